//! The parts that every benchmark of the core is made of. An event has 256 bytes.

use std::{
    hint::black_box,
    task::{Context, Waker},
    time::Instant,
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, Filter, Hub, NewEvent, Overflow, Room, SubscribeOptions, Subscription, Topic,
};

pub(crate) fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}

pub(crate) fn event(topic: &Topic) -> NewEvent<Bytes> {
    NewEvent::new(topic.clone(), Bytes::from_static(&[7; 256]))
}

pub(crate) fn subscribe_as(
    hub: &Hub<Bytes>,
    client: &str,
    filters: &[&str],
) -> Subscription<Bytes> {
    hub.subscribe(options(client, filters), Instant::now())
        .unwrap()
}

#[allow(dead_code, reason = "one of the two benches uses it")]
pub(crate) fn subscribe_conflating(
    hub: &Hub<Bytes>,
    client: &str,
    filters: &[&str],
) -> Subscription<Bytes> {
    let mut options = options(client, filters);
    options.limits.overflow = Overflow::Conflate;
    hub.subscribe(options, Instant::now()).unwrap()
}

fn options(client: &str, filters: &[&str]) -> SubscribeOptions {
    let filters = filters.iter().map(|filter| Filter::new(filter).unwrap());
    SubscribeOptions::new(ClientId::new(client).unwrap(), filters.collect())
}

/// Takes everything, and parks.
pub(crate) fn drain(subscription: &mut Subscription<Bytes>, batch: &mut Batch<Bytes>) {
    let mut cx = Context::from_waker(Waker::noop());
    while subscription
        .poll_next(&mut cx, Room::events(64), batch)
        .is_ready()
    {
        black_box(&batch);
    }
}

//! The costs of the parts of the core: `cargo bench -p tidegate-core`.
//!
//! An event has 256 bytes. Every benchmark prints the time for one operation, and where one operation
//! handles several events, events per second.

use std::time::Instant;

use bytes::Bytes;
use divan::{Bencher, counter::ItemsCount};
use tidegate_core::{
    Batch, ClientId, Filter, HistoryLimits, Hub, HubConfig, SubscribeOptions, Subscription,
};

mod support;

use support::{drain, event, subscribe_as, topic};

fn main() {
    divan::main();
}

fn hub() -> Hub<Bytes> {
    Hub::new(HubConfig {
        history: HistoryLimits::OFF,
        ..HubConfig::new(1)
    })
}

fn subscribe(hub: &Hub<Bytes>, filters: &[&str]) -> Subscription<Bytes> {
    subscribe_as(hub, "c", filters)
}

/// Clients of one filter: publishing costs the same, but each that is parked is woken and drains.
#[divan::bench(args = [0, 1, 10, 100, 1_000])]
fn publish_and_drain(bencher: Bencher<'_, '_>, subscribers: usize) {
    let hub = Hub::new(HubConfig {
        history: HistoryLimits::OFF,
        client_ids: tidegate_core::ClientIdPolicy::Several,
        ..HubConfig::new(1)
    });
    let mut streams: Vec<_> = (0..subscribers).map(|_| subscribe(&hub, &["a"])).collect();
    let mut batch = Batch::default();
    streams
        .iter_mut()
        .for_each(|stream| drain(stream, &mut batch));
    let a = topic("a");
    bencher
        .counter(ItemsCount::new(subscribers.max(1)))
        .bench_local(|| {
            hub.publish([event(&a)], Instant::now()).unwrap();
            streams
                .iter_mut()
                .for_each(|stream| drain(stream, &mut batch));
        });
}

/// 64 events that are there: taking them, and parking.
#[divan::bench]
fn drain_64(bencher: Bencher<'_, '_>) {
    let mut batch = Batch::default();
    let a = topic("a");
    bencher
        .counter(ItemsCount::new(64_usize))
        .with_inputs(|| {
            let hub = hub();
            let mut stream = subscribe(&hub, &["a"]);
            drain(&mut stream, &mut Batch::default());
            hub.publish((0..64).map(|_| event(&a)), Instant::now())
                .unwrap();
            stream
        })
        .bench_local_refs(|stream| drain(stream, &mut batch));
}

/// A batch of 64 events in one publish, for one subscriber who takes it whole.
#[divan::bench]
fn publish_and_drain_64(bencher: Bencher<'_, '_>) {
    let hub = hub();
    let mut stream = subscribe(&hub, &["a"]);
    let mut batch = Batch::default();
    let a = topic("a");
    bencher.counter(ItemsCount::new(64_usize)).bench_local(|| {
        hub.publish((0..64).map(|_| event(&a)), Instant::now())
            .unwrap();
        drain(&mut stream, &mut batch);
    });
}

/// One event among so many distinct filters, of which one matches.
#[divan::bench(args = [10, 100, 1_000, 10_000, 100_000])]
fn match_literal(bencher: Bencher<'_, '_>, filters: usize) {
    matching(bencher, filters, |i| format!("a.b{i}.c"));
}

/// The same with wildcards; two match.
#[divan::bench(args = [10, 100, 1_000, 10_000, 100_000])]
fn match_wildcard(bencher: Bencher<'_, '_>, filters: usize) {
    matching(bencher, filters, |i| match i % 2 {
        0 => format!("*.b{i}.c"),
        _ => format!("a.b{}.>", i - 1),
    });
}

fn matching(bencher: Bencher<'_, '_>, filters: usize, filter: impl Fn(usize) -> String) {
    let hub = hub();
    let names: Vec<_> = (0..filters).map(filter).collect();
    // A client may hold only so many, so there are several clients.
    let streams: Vec<_> = names
        .chunks(1_000)
        .enumerate()
        .map(|(client, names)| {
            let filters = names.iter().map(|name| Filter::new(name).unwrap());
            let client = ClientId::new(&format!("c{client}")).unwrap();
            let options = SubscribeOptions::new(client, filters.collect());
            hub.subscribe(options, Instant::now()).unwrap()
        })
        .collect();
    let one = topic("a.b4.c");
    bencher.bench_local(|| hub.publish([event(&one)], Instant::now()).unwrap());
    drop(streams);
}

/// With so many others there, on other filters.
#[divan::bench(args = [0, 1_000, 100_000])]
fn subscribe_and_cancel(bencher: Bencher<'_, '_>, others: usize) {
    let hub = Hub::new(HubConfig {
        client_ids: tidegate_core::ClientIdPolicy::Several,
        ..HubConfig::new(1)
    });
    let _others: Vec<_> = (0..others)
        .map(|i| subscribe_as(&hub, &format!("c{i}"), &[&format!("other.{i}")]))
        .collect();
    bencher.bench_local(|| subscribe(&hub, &["user.me", "room.mine", "news.>"]));
}

//! The work of conflation, in steps and not in time: it is bounded by what is handed out, not by what is kept.

use std::{
    num::NonZeroU64,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;

use crate::{
    Batch, ClientId, Filter, HistoryLimits, Hub, HubConfig, Limits, NewEvent, Overflow, Room,
    SubscribeOptions, Subscription, Topic, subject, survivors::work,
};

const KEYS: u64 = 16_384;
const CHUNK: usize = 64;

/// Steps for each survivor: two searches of 16 steps each, as `KEYS` has 15 bits. A walk over the survivors for each
/// chunk would be about a hundred times as many.
const STEPS: u64 = 32;

fn hub(memory_budget: u64) -> Hub<Bytes> {
    Hub::new(HubConfig {
        history: HistoryLimits::OFF,
        memory_budget,
        ..HubConfig::new(1)
    })
}

fn subscribe(
    hub: &Hub<Bytes>,
    client: &str,
    filters: &[String],
    max_events: u64,
) -> Subscription<Bytes> {
    let filters = filters.iter().map(|filter| Filter::new(filter).unwrap());
    let options = SubscribeOptions {
        limits: Limits {
            max_events: NonZeroU64::new(max_events).unwrap(),
            max_bytes: NonZeroU64::new(64 << 20).unwrap(),
            overflow: Overflow::Conflate,
        },
        ..SubscribeOptions::new(ClientId::new(client).unwrap(), filters.collect())
    };
    hub.subscribe(options, Instant::now()).unwrap()
}

fn publish(hub: &Hub<Bytes>, topic: &str, key: u64) {
    let event = NewEvent {
        key: Some(key.to_string().into()),
        ..NewEvent::new(Topic::new(topic).unwrap(), Bytes::from_static(b"x"))
    };
    hub.publish([event], Instant::now()).unwrap();
}

fn poll(subscription: &mut Subscription<Bytes>, batch: &mut Batch<Bytes>) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    let polled = subscription.poll_next(&mut cx, Room::events(CHUNK), batch);
    assert!(!matches!(polled, Poll::Ready(Err(_))));
    polled.is_ready()
}

/// Drains in chunks. Returns the events handed out, those counted, and the most steps of one poll.
fn drain(subscription: &mut Subscription<Bytes>) -> (u64, u64, u64) {
    let mut batch = Batch::default();
    let (mut events, mut counted, mut most) = (0, 0, 0);
    work::take();
    while poll(subscription, &mut batch) {
        events += batch.events.len() as u64;
        counted += batch.gaps.iter().map(|gap| gap.count).sum::<u64>();
        most = most.max(work::take());
    }
    (events, counted, most)
}

#[test]
fn draining_costs_what_is_handed_out_and_not_what_is_kept() {
    let hub = hub(u64::MAX);
    let mut subscription = subscribe(&hub, "c", &["k".to_owned()], 2 * KEYS);
    work::take();
    for key in 0..KEYS {
        publish(&hub, "k", key);
    }
    // Each second one is replaced, so the survivors lie scattered among dead slots.
    for key in (0..KEYS).step_by(2) {
        publish(&hub, "k", key);
    }
    let steps = work::take();
    assert!(steps < KEYS * STEPS, "{steps} to publish");
    let mut batch = Batch::default();
    let (mut events, mut steps) = (0, 0);
    while poll(&mut subscription, &mut batch) {
        events += batch.events.len() as u64;
        steps += work::take();
    }
    assert_eq!(events, KEYS);
    assert!(steps < KEYS * STEPS, "{steps} to drain");
}

#[test]
fn one_poll_costs_the_same_however_many_are_kept() {
    let most = |keys: u64| {
        let hub = hub(u64::MAX);
        // A second cursor keeps the survivors, so the log is not written anew while the first drains.
        let _slow = subscribe(&hub, "slow", &["k".to_owned()], 2 * KEYS);
        let mut subscription = subscribe(&hub, "c", &["k".to_owned()], 2 * KEYS);
        (0..keys).for_each(|key| publish(&hub, "k", key));
        let (events, _, most) = drain(&mut subscription);
        assert_eq!(events, keys);
        most
    };
    let (few, many) = (most(KEYS / 16), most(KEYS));
    // 16 times as many are four bits more of a place.
    assert!(
        few > 0 && many < 2 * few,
        "{few} of {}, {many} of {KEYS}",
        KEYS / 16
    );
}

#[test]
fn dropping_what_is_beyond_the_limits_walks_over_none_of_it() {
    let hub = hub(u64::MAX);
    let mut subscription = subscribe(&hub, "c", &["k".to_owned()], 100);
    let _slow = subscribe(&hub, "slow", &["k".to_owned()], 2 * KEYS);
    (0..KEYS).for_each(|key| publish(&hub, "k", key));
    work::take();
    let mut batch = Batch::default();
    assert!(poll(&mut subscription, &mut batch));
    assert_eq!(batch.gaps[0].count, KEYS - 100);
    let steps = work::take();
    assert!(steps < CHUNK as u64 * STEPS, "{steps}");
}

#[test]
fn many_conflating_feeds_are_merged_in_their_number_and_not_in_what_they_keep() {
    const FEEDS: u64 = 256;
    let hub = hub(u64::MAX);
    let topics: Vec<_> = (0..FEEDS).map(|i| format!("k{i}")).collect();
    let mut subscription = subscribe(&hub, "c", &topics, 2 * KEYS);
    for key in 0..KEYS / FEEDS {
        topics.iter().for_each(|topic| publish(&hub, topic, key));
    }
    let (events, _, most) = drain(&mut subscription);
    assert_eq!(events, KEYS);
    // One look at each feed and one at each event.
    assert!(most < (FEEDS + CHUNK as u64) * STEPS, "{most}");
}

#[test]
fn evicting_for_the_budget_costs_what_goes() {
    // Room for about a thousand survivors.
    let hub = hub(500_000);
    let mut subscription = subscribe(&hub, "c", &["k".to_owned()], 2 * KEYS);
    work::take();
    (0..KEYS).for_each(|key| publish(&hub, "k", key));
    let steps = work::take();
    assert!(steps < KEYS * STEPS, "{steps}");
    let (events, counted, _) = drain(&mut subscription);
    assert_eq!(events + counted, KEYS);
}

#[test]
fn a_leaving_cursor_frees_its_survivors_at_once_and_a_few_at_a_time() {
    let hub = hub(u64::MAX);
    let slow = subscribe(&hub, "slow", &["k".to_owned()], 2 * KEYS);
    (0..KEYS).for_each(|key| publish(&hub, "k", key));
    let behind = subscribe(&hub, "behind", &["k".to_owned()], 2 * KEYS);
    publish(&hub, "k", KEYS);
    let before = hub.stats().retained_bytes;
    work::take();
    drop(slow);
    let steps = work::take();
    assert!(steps < KEYS * STEPS, "{steps}");
    let after = hub.stats().retained_bytes;
    assert!(after < before / 1_000, "{before} {after}");
    drop(behind);
    assert_eq!(hub.stats().retained_bytes, 0);
}

#[test]
fn an_event_is_hashed_once_for_all_feeds_and_not_at_all_if_nobody_conflates() {
    let hub = hub(u64::MAX);
    let filters = |i| ["k.*".to_owned(), format!("*.x{i}")];
    let mut options = SubscribeOptions::new(
        ClientId::new("plain").unwrap(),
        vec![Filter::new("k.*").unwrap()],
    );
    options.limits.overflow = Overflow::DropOldest;
    let _plain = hub.subscribe(options, Instant::now()).unwrap();
    subject::hashed();
    publish(&hub, "k.a", 1);
    assert_eq!(subject::hashed(), 0);
    let _conflating: Vec<_> = (0..64)
        .map(|i| subscribe(&hub, &format!("c{i}"), &filters(i), KEYS))
        .collect();
    publish(&hub, "k.a", 1);
    assert_eq!(subject::hashed(), 1);
}

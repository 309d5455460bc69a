//! No silent loss, seen from outside: what a subscription that is not polled has lost is known before it is told.

use std::{
    num::NonZeroU64,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, Filter, GapReason, HistoryLimits, Hub, HubConfig, NewEvent, Overflow, Room,
    SubscribeOptions, Subscription, Topic,
};

fn hub(memory_budget: u64) -> Hub<Bytes> {
    Hub::new(HubConfig {
        memory_budget,
        history: HistoryLimits {
            max_events: 0,
            ..HistoryLimits::default()
        },
        ..HubConfig::new(1)
    })
}

fn subscribe(
    hub: &Hub<Bytes>,
    filters: &[&str],
    (max_events, max_bytes): (u64, u64),
    overflow: Overflow,
) -> Subscription<Bytes> {
    let filters = filters.iter().map(|filter| Filter::new(filter).unwrap());
    let mut options = SubscribeOptions::new(ClientId::new("c").unwrap(), filters.collect());
    options.limits.max_events = NonZeroU64::new(max_events).unwrap();
    options.limits.max_bytes = NonZeroU64::new(max_bytes).unwrap();
    options.limits.overflow = overflow;
    hub.subscribe(options, Instant::now()).unwrap()
}

fn publish(hub: &Hub<Bytes>, topic: &str, size: usize, count: usize) {
    let event = || NewEvent::new(Topic::new(topic).unwrap(), Bytes::from(vec![0; size]));
    for _ in 0..count {
        hub.publish([event()], Instant::now()).unwrap();
    }
}

/// The pending loss as listed, which is what the subscription sees of itself.
fn pending(hub: &Hub<Bytes>, subscription: &Subscription<Bytes>) -> u64 {
    let listed = hub.subscriptions();
    assert_eq!(listed, [subscription.info()]);
    listed[0].pending_loss
}

/// The counts of the gaps of one poll, by reason, and the number of its events.
fn poll(subscription: &mut Subscription<Bytes>) -> (Vec<(GapReason, u64)>, usize) {
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    let polled = subscription.poll_next(&mut cx, Room::events(usize::MAX), &mut batch);
    assert!(matches!(polled, Poll::Ready(Ok(()))), "{polled:?}");
    let gaps = batch.gaps.iter().map(|gap| (gap.reason, gap.count));
    (gaps.collect(), batch.events.len())
}

#[test]
fn loss_beyond_the_limit_in_events_is_known_before_it_is_told() {
    let hub = hub(u64::MAX);
    let mut stalled = subscribe(&hub, &["a", "b.>"], (4, u64::MAX), Overflow::DropOldest);
    for (round, expected) in [0, 2, 5, 8].into_iter().enumerate() {
        assert_eq!(pending(&hub, &stalled), expected, "{round}");
        publish(&hub, "a", 1, if round == 0 { 5 } else { 2 });
        publish(&hub, "b.x", 1, 1);
    }
    let info = stalled.info();
    assert_eq!((info.backlog, info.lost), (15, 0));
    assert_eq!(poll(&mut stalled), (vec![(GapReason::Overflow, 11)], 4));
    let info = stalled.info();
    assert_eq!((info.backlog, info.lost, info.pending_loss), (0, 11, 0));
}

#[test]
fn loss_beyond_the_limit_in_bytes_is_known_before_it_is_told() {
    let hub = hub(u64::MAX);
    let mut stalled = subscribe(&hub, &["a"], (1_000, 100), Overflow::DropOldest);
    // 10 + 90 fit, and every other pair of two neighbors does not.
    for size in [60, 50, 10, 90] {
        publish(&hub, "a", size, 1);
    }
    assert_eq!(pending(&hub, &stalled), 2);
    assert_eq!(poll(&mut stalled), (vec![(GapReason::Overflow, 2)], 2));
    publish(&hub, "a", 5_000, 1);
    assert_eq!(
        pending(&hub, &stalled),
        0,
        "the newest fits, whatever its size"
    );
}

#[test]
fn loss_in_bytes_over_several_filters_is_estimated() {
    let hub = hub(u64::MAX);
    let stalled = subscribe(&hub, &["a", "b"], (1_000, 100), Overflow::DropOldest);
    for _ in 0..10 {
        publish(&hub, "a", 10, 1);
        publish(&hub, "b", 10, 1);
    }
    assert_eq!(pending(&hub, &stalled), 10);
}

#[test]
fn loss_for_the_memory_budget_is_known_before_it_is_told() {
    let hub = hub(64 << 10);
    let mut stalled = subscribe(&hub, &["a", "b"], (1_000, u64::MAX), Overflow::DropOldest);
    publish(&hub, "b", 1, 3);
    publish(&hub, "a", 10_000, 20);
    // Those to `b` came before others that are gone, and go with them.
    let known = pending(&hub, &stalled);
    let (gaps, events) = poll(&mut stalled);
    let told: u64 = gaps.iter().map(|(_, count)| count).sum();
    assert!(known > 3 && told == known, "{known} {gaps:?}");
    assert_eq!(told + events as u64, 23);
}

#[test]
fn subscription_that_ends_instead_has_no_pending_loss() {
    let hub = hub(u64::MAX);
    let stalled = subscribe(&hub, &["a"], (4, u64::MAX), Overflow::Disconnect);
    publish(&hub, "a", 1, 10);
    assert_eq!(pending(&hub, &stalled), 0);
    assert_eq!(stalled.info().backlog, 10);
}

#[test]
fn what_newer_events_replaced_is_no_loss() {
    let hub = hub(u64::MAX);
    let mut stalled = subscribe(&hub, &["a.*"], (4, u64::MAX), Overflow::Conflate);
    for topic in ["a.1", "a.2", "a.3", "a.4"] {
        publish(&hub, topic, 1, 10);
    }
    let info = stalled.info();
    assert_eq!(
        (info.backlog, info.pending_loss, info.pending_conflation),
        (40, 0, 36)
    );
    publish(&hub, "a.5", 1, 1);
    assert_eq!(pending(&hub, &stalled), 1, "one survivor more than fit");
    let expected = vec![(GapReason::Conflated, 36), (GapReason::Overflow, 1)];
    assert_eq!(poll(&mut stalled), (expected, 4));
}

//! Bounded memory: whatever is published and whoever stalls, the bytes of events stay within the budget,
//! and a gap counts every event that this cost a subscriber.

use std::{
    num::NonZeroU64,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use proptest::prelude::*;
use tidegate_core::{
    Batch, ClientId, Filter, GapReason, Hub, HubConfig, Limits, NewEvent, Overflow, Room, Start,
    SubscribeOptions, Subscription, Topic,
};

const BUDGET: u64 = 100_000;

fn hub(memory_budget: u64) -> Hub<Bytes> {
    Hub::new(HubConfig {
        memory_budget,
        ..HubConfig::new(1)
    })
}

fn subscribe(
    hub: &Hub<Bytes>,
    client: usize,
    filters: &[&str],
    overflow: Overflow,
    start: Start,
) -> Subscription<Bytes> {
    let non_zero = |n| NonZeroU64::new(n).unwrap();
    let limits = Limits {
        max_events: non_zero(60_000),
        max_bytes: non_zero(60 << 20),
        overflow,
    };
    let filters = filters
        .iter()
        .map(|filter| Filter::new(filter).unwrap())
        .collect();
    let client_id = ClientId::new(&format!("c{client}")).unwrap();
    hub.subscribe(
        SubscribeOptions {
            limits,
            start,
            ..SubscribeOptions::new(client_id, filters)
        },
        Instant::now(),
    )
    .unwrap()
}

fn publish(hub: &Hub<Bytes>, topic: &str, size: usize) {
    let event = NewEvent::new(Topic::new(topic).unwrap(), Bytes::from(vec![0; size]));
    hub.publish([event], Instant::now()).unwrap();
}

/// The events that a subscription was given until nothing was left, and the counts of its gaps by reason.
#[derive(Debug, Default, PartialEq, Eq)]
struct Given {
    sequences: Vec<u64>,
    evicted: u64,
    overflowed: u64,
    conflated: u64,
}

impl Given {
    fn accounted(&self) -> u64 {
        self.sequences.len() as u64 + self.evicted + self.overflowed + self.conflated
    }
}

fn drain(subscription: &mut Subscription<Bytes>, given: &mut Given) {
    drain_up_to(u64::MAX, subscription, given);
}

fn drain_up_to(up_to: u64, subscription: &mut Subscription<Bytes>, given: &mut Given) {
    let room = Room {
        up_to,
        ..Room::events(7)
    };
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    // A replay may ask to be polled again when it has not found anything yet.
    for _ in 0..10 {
        while let Poll::Ready(taken) = subscription.poll_next(&mut cx, room, &mut batch) {
            taken.unwrap();
            let mut counted_through = 0;
            for gap in &batch.gaps {
                if gap.reason != GapReason::Conflated {
                    assert!(gap.first_sequence > counted_through, "{:?}", batch.gaps);
                    counted_through = gap.last_sequence;
                }
                match gap.reason {
                    GapReason::Evicted => given.evicted += gap.count,
                    GapReason::Overflow => given.overflowed += gap.count,
                    GapReason::Conflated => given.conflated += gap.count,
                    other => panic!("{other:?}"),
                }
            }
            given
                .sequences
                .extend(batch.events.iter().map(|event| event.sequence()));
        }
    }
    assert!(given.sequences.is_sorted_by(|a, b| a < b));
}

#[test]
fn the_budget_evicts_the_oldest_and_tells_a_stalled_subscriber() {
    let hub = hub(BUDGET);
    let mut stalled = subscribe(&hub, 0, &["a"], Overflow::DropOldest, Start::Live);
    for _ in 0..1_000 {
        publish(&hub, "a", 1_000);
        assert!(hub.stats().retained_bytes <= BUDGET);
    }
    let mut given = Given::default();
    drain(&mut stalled, &mut given);
    assert!(given.evicted > 0 && given.overflowed == 0);
    assert_eq!(given.evicted + given.sequences.len() as u64, 1_000);
    assert_eq!(
        given.sequences.last(),
        Some(&1_000),
        "the newest are what is kept"
    );
    let contiguous = given.sequences[0]..=1_000;
    assert!(given.sequences.iter().copied().eq(contiguous));
}

/// A run is evicted for all subscribers at once, so it may begin before events that one of them has seen.
#[test]
fn an_evicted_gap_begins_behind_what_was_handed_out() {
    for overflow in [Overflow::DropOldest, Overflow::Conflate] {
        let hub = hub(BUDGET);
        let mut stalled = subscribe(&hub, 0, &["*"], overflow, Start::Live);
        let mut reader = subscribe(&hub, 1, &["*"], overflow, Start::Live);
        let publish_some = |topics: std::ops::Range<usize>| {
            topics.for_each(|topic| publish(&hub, &format!("t{topic}"), 1_000));
        };
        publish_some(0..20);
        let mut cx = Context::from_waker(Waker::noop());
        let mut batch = Batch::default();
        let polled = reader.poll_next(&mut cx, Room::events(10), &mut batch);
        assert!(polled.is_ready() && batch.events.len() == 10);
        publish_some(20..500);
        for (subscription, first) in [(&mut reader, 11), (&mut stalled, 1)] {
            assert!(
                subscription
                    .poll_next(&mut cx, Room::events(10), &mut batch)
                    .is_ready()
            );
            let gap = batch.gaps[0];
            assert_eq!(
                (gap.reason, gap.first_sequence),
                (GapReason::Evicted, first)
            );
            assert_eq!(gap.last_sequence + 1 - gap.first_sequence, gap.count);
            assert_eq!(batch.events[0].sequence(), gap.last_sequence + 1);
        }
    }
}

/// A subscription to `a` that may be behind by ten events.
fn subscribe_within_ten(hub: &Hub<Bytes>) -> Subscription<Bytes> {
    let options = SubscribeOptions {
        limits: Limits {
            max_events: NonZeroU64::new(10).unwrap(),
            ..Limits::default()
        },
        ..SubscribeOptions::new(ClientId::new("c").unwrap(), vec![Filter::new("a").unwrap()])
    };
    hub.subscribe(options, Instant::now()).unwrap()
}

#[test]
fn overflow_and_eviction_are_separate_gaps() {
    let hub = hub(BUDGET);
    let mut stalled = subscribe_within_ten(&hub);
    for _ in 0..25 {
        publish(&hub, "a", 10);
    }
    // A large event takes the place of the oldest that were before it.
    publish(&hub, "other", BUDGET as usize - 2_000);
    for _ in 0..5 {
        publish(&hub, "a", 10);
    }
    let mut given = Given::default();
    drain(&mut stalled, &mut given);
    // 30 in all: 15 were beyond the limits before; of the 15 after, the budget took the oldest.
    assert_eq!(given.overflowed, 15);
    assert!(given.evicted > 0);
    assert_eq!(given.evicted + given.sequences.len() as u64, 15);
}

#[test]
fn overflow_in_between_evictions_is_one_gap() {
    let hub = hub(BUDGET);
    let mut stalled = subscribe_within_ten(&hub);
    for _ in 0..2 {
        for _ in 0..15 {
            publish(&hub, "a", 10);
        }
        publish(&hub, "other", BUDGET as usize);
    }
    for _ in 0..15 {
        publish(&hub, "a", 10);
    }
    let mut given = Given::default();
    drain(&mut stalled, &mut given);
    assert_eq!((given.evicted, given.overflowed), (35, 0));
    assert_eq!(given.sequences.len(), 10);
}

#[test]
fn an_event_larger_than_the_budget_is_evicted_and_counted() {
    let hub = hub(BUDGET);
    let mut subscription = subscribe(&hub, 0, &["a"], Overflow::DropOldest, Start::Live);
    publish(&hub, "a", 2 * BUDGET as usize);
    assert!(hub.stats().retained_bytes <= BUDGET);
    let mut given = Given::default();
    drain(&mut subscription, &mut given);
    assert_eq!(
        given,
        Given {
            evicted: 1,
            ..Given::default()
        }
    );
}

#[test]
fn a_million_topics_published_once_leave_nothing() {
    let hub = Hub::new(HubConfig {
        history: tidegate_core::HistoryLimits::OFF,
        ..HubConfig::new(1)
    });
    for i in 0..1_000_000 {
        publish(&hub, &format!("t.{i}"), 0);
    }
    let stats = hub.stats();
    assert_eq!(
        (stats.published, stats.retained_bytes, stats.feeds),
        (1_000_000, 0, 0)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever the filters, the policy and the pace: nothing is uncounted, and all is freed at the end.
    #[test]
    fn every_event_is_delivered_or_counted_under_any_budget(
        budget in 3_000..60_000u64,
        steps in prop::collection::vec((0..6usize, 0..2_000usize, 0..5usize, 0..20u64), 1..200),
    ) {
        let hub = hub(budget);
        let mut subscribers = [
            subscribe(&hub, 0, &["a"], Overflow::DropOldest, Start::Live),
            subscribe(&hub, 1, &["a", "b"], Overflow::DropOldest, Start::Live),
            subscribe(&hub, 2, &[">"], Overflow::DropOldest, Start::Live),
            subscribe(&hub, 3, &["a", "b"], Overflow::Conflate, Start::Live),
            subscribe(&hub, 4, &["b", "c"], Overflow::DropOldest, Start::Live),
        ];
        let wanted = [&["a"][..], &["a", "b"], &["a", "b", "c"], &["a", "b"], &["b", "c"]];
        let mut given: [Given; 5] = Default::default();
        let mut matched: [Vec<u64>; 5] = Default::default();
        for (what, size, who, back) in steps {
            let head = hub.position().sequence;
            if what < 5 {
                let topic = ["a", "b", "c", "a", "b"][what];
                publish(&hub, topic, size);
                for (matched, wanted) in matched.iter_mut().zip(wanted) {
                    matched.extend(wanted.contains(&topic).then_some(head + 1));
                }
                prop_assert!(hub.stats().retained_bytes <= budget);
            } else {
                // A few of these leave nothing for later.
                drain_up_to(head.saturating_sub(back) + 4, &mut subscribers[who], &mut given[who]);
            }
            for i in 0..5 {
                let position = subscribers[i].position().unwrap().sequence;
                let passed = matched[i].partition_point(|sequence| *sequence <= position) as u64;
                let accounted = given[i].accounted();
                prop_assert!(passed <= accounted, "{} up to {}, {:?}", passed, position, given[i]);
            }
        }
        for i in 0..5 {
            drain(&mut subscribers[i], &mut given[i]);
            prop_assert_eq!(
                given[i].accounted(),
                matched[i].len() as u64,
                "subscriber {}: {:?}",
                i,
                given[i]
            );
            prop_assert_eq!(given[i].overflowed, 0);
        }
        drop(subscribers);
        let stats = hub.stats();
        prop_assert_eq!(
            stats.matched,
            stats.handed_off + stats.evicted + stats.conflated + stats.overflowed + stats.abandoned
        );
        prop_assert_eq!((stats.feeds, stats.clients), (0, 0));
    }
}

/// However many feeds hold an event: publishers wait while it goes from each of them.
#[test]
fn one_publish_evicts_little_more_than_it_has_to() {
    const FEEDS: u64 = 512;
    /// Bytes of a place in a feed, and of one in history.
    const PLACE: u64 = 32;
    let hub = hub(FEEDS * PLACE * 2_000);
    // Distinct filters that all match the one topic: each subscriber has a feed of its own.
    let _stalled: Vec<_> = (0..FEEDS)
        .map(|i| {
            let tokens = (0..9).map(|bit| if i >> bit & 1 == 1 { "a" } else { "*" });
            let filter = tokens.collect::<Vec<_>>().join(".");
            let client = usize::try_from(i).unwrap();
            subscribe(&hub, client, &[&filter], Overflow::DropOldest, Start::Live)
        })
        .collect();
    let mut most_freed = 0;
    let mut before = 0;
    for _ in 0..5_000 {
        publish(&hub, "a.a.a.a.a.a.a.a.a", 0);
        let after = hub.stats().retained_bytes;
        most_freed = most_freed.max(u64::saturating_sub(before, after));
        before = after;
    }
    assert!(most_freed > 0, "some has to go");
    let most_places = most_freed / PLACE;
    assert!(most_places < 8_192 + 2 * FEEDS, "{most_places} at once");
}

/// A log that others share: what it hands to this hub is far apart.
#[test]
fn budget_evicts_no_more_where_sequences_are_far_apart() {
    let hub = hub(BUDGET);
    for i in 1..=1_000 {
        let event = NewEvent::new(Topic::new("a").unwrap(), Bytes::from(vec![0; 100]));
        hub.append([(i << 40, event)], Instant::now()).unwrap();
    }
    let stats = hub.stats();
    assert!(stats.retained_bytes <= BUDGET);
    assert!(
        stats.retained_bytes > BUDGET * 9 / 10,
        "{}",
        stats.retained_bytes
    );
}

//! Resume: history keeps what its limits allow, a resumption within it is whole, and one beyond it is told so before
//! the first event.

use std::{
    num::NonZeroU64,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, Filter, GapReason, HistoryLimits, Hub, HubConfig, Limits, NewEvent, Position,
    Room, Start, SubscribeError, SubscribeOptions, Subscription, Topic,
};

const EPOCH: u64 = 7;

fn hub(history: HistoryLimits) -> Hub<Bytes> {
    Hub::new(HubConfig {
        history,
        ..HubConfig::new(EPOCH)
    })
}

fn keeping(max_events: usize) -> Hub<Bytes> {
    hub(HistoryLimits {
        max_events,
        ..HistoryLimits::default()
    })
}

fn publish(hub: &Hub<Bytes>, topic: &str, count: usize, now: Instant) {
    for _ in 0..count {
        let event = NewEvent::new(Topic::new(topic).unwrap(), Bytes::from_static(&[0; 100]));
        hub.publish([event], now).unwrap();
    }
}

fn subscribe(
    hub: &Hub<Bytes>,
    filters: &[&str],
    start: Start,
) -> Result<Subscription<Bytes>, SubscribeError> {
    let filters = filters.iter().map(|filter| Filter::new(filter).unwrap());
    let options = SubscribeOptions {
        start,
        ..SubscribeOptions::new(ClientId::new("c").unwrap(), filters.collect())
    };
    hub.subscribe(options, Instant::now())
}

/// The gaps, by reason and range, and the sequences that a subscription is given until it has caught up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Given {
    gaps: Vec<(GapReason, u64, u64, u64)>,
    sequences: Vec<u64>,
    caught_up: Option<u64>,
}

fn drain(subscription: &mut Subscription<Bytes>) -> Given {
    let mut given = Given::default();
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    // A replay may ask to be polled again when it has not found anything yet.
    for _ in 0..100 {
        while let Poll::Ready(taken) = subscription.poll_next(&mut cx, Room::events(7), &mut batch)
        {
            taken.unwrap();
            let gaps = batch.gaps.iter();
            given.gaps.extend(
                gaps.map(|gap| (gap.reason, gap.first_sequence, gap.last_sequence, gap.count)),
            );
            let events = batch.events.iter();
            given.sequences.extend(events.map(|event| event.sequence()));
            if let Some(position) = batch.caught_up {
                assert_eq!(given.caught_up.replace(position.sequence), None);
            }
        }
    }
    given
}

fn after(sequence: u64) -> Start {
    Start::After(Position {
        epoch: EPOCH,
        sequence,
    })
}

fn resumed(hub: &Hub<Bytes>, filters: &[&str], start: Start) -> Given {
    drain(&mut subscribe(hub, filters, start).unwrap())
}

fn kept(sequences: impl IntoIterator<Item = u64>, head: u64) -> Given {
    Given {
        gaps: vec![],
        sequences: sequences.into_iter().collect(),
        caught_up: Some(head),
    }
}

#[test]
fn history_keeps_no_more_events_than_its_limit() {
    let hub = keeping(10);
    publish(&hub, "a", 25, Instant::now());
    assert_eq!(hub.stats().history_events, 10);
    assert_eq!(resumed(&hub, &["a"], Start::Last(100)), kept(16..=25, 25));
}

#[test]
fn history_keeps_no_more_bytes_than_its_limit() {
    let hub = hub(HistoryLimits {
        max_bytes: 1_050,
        ..HistoryLimits::default()
    });
    publish(&hub, "a", 25, Instant::now());
    let stats = hub.stats();
    assert_eq!((stats.history_events, stats.history_bytes), (10, 1_000));
    assert_eq!(resumed(&hub, &["a"], Start::Last(100)), kept(16..=25, 25));
}

#[test]
fn history_keeps_nothing_that_is_older_than_its_limit() {
    let hub = hub(HistoryLimits {
        max_age: Duration::from_secs(60),
        ..HistoryLimits::default()
    });
    let begin = Instant::now();
    let at = |second| begin + Duration::from_secs(second);
    publish(&hub, "a", 5, at(0));
    publish(&hub, "a", 5, at(30));
    hub.expire_history(at(59));
    assert_eq!(hub.stats().history_events, 10);
    hub.expire_history(at(60));
    assert_eq!(hub.stats().history_events, 5);
    let expired = (GapReason::Expired, 3, 5, 0);
    let given = resumed(&hub, &["a"], after(2));
    assert_eq!(
        (given.gaps, given.sequences),
        (vec![expired], vec![6, 7, 8, 9, 10])
    );
    // Publishing lets go of what is too old too.
    publish(&hub, "a", 1, at(90));
    assert_eq!(resumed(&hub, &["a"], Start::Last(100)), kept([11], 11));
}

#[test]
fn without_history_only_the_head_can_be_resumed_from() {
    let hub = hub(HistoryLimits::OFF);
    publish(&hub, "a", 5, Instant::now());
    assert_eq!(resumed(&hub, &["a"], after(5)), kept([], 5));
    let given = resumed(&hub, &["a"], after(4));
    assert_eq!(given.gaps, [(GapReason::Expired, 5, 5, 0)]);
    assert_eq!((given.sequences, given.caught_up), (vec![], Some(5)));
}

/// History has 16 to 25.
#[test]
fn resume_is_whole_at_the_edge_of_history_and_expired_before_it() {
    let hub = keeping(10);
    publish(&hub, "a", 25, Instant::now());
    assert_eq!(resumed(&hub, &["a"], after(15)), kept(16..=25, 25));
    for before in [14, 3, 0] {
        let given = resumed(&hub, &["a"], after(before));
        assert_eq!(given.gaps, [(GapReason::Expired, before + 1, 15, 0)]);
        assert_eq!(given.sequences, (16..=25).collect::<Vec<_>>());
        assert_eq!(given.caught_up, Some(25));
    }
    assert_eq!(resumed(&hub, &["a"], after(24)), kept([25], 25));
    assert_eq!(resumed(&hub, &["a"], after(25)), kept([], 25));
}

#[test]
fn resume_from_the_future_is_refused_and_changes_nothing() {
    let hub = keeping(10);
    publish(&hub, "a", 3, Instant::now());
    let refused = subscribe(&hub, &["a"], after(4)).unwrap_err();
    assert_eq!(refused, SubscribeError::PositionAhead { head: 3 });
    assert_eq!((hub.stats().subscriptions, hub.stats().clients), (0, 0));
}

#[test]
fn resume_before_any_event_was_seen() {
    let hub = keeping(10);
    assert_eq!(resumed(&hub, &["a"], after(0)), kept([], 0));
    let mut early = subscribe(&hub, &["a"], after(0)).unwrap();
    publish(&hub, "a", 3, Instant::now());
    assert_eq!(drain(&mut early).sequences, [1, 2, 3]);
}

#[test]
fn resume_from_another_epoch_replays_all_of_history() {
    let hub = keeping(10);
    publish(&hub, "a", 25, Instant::now());
    let elsewhere = Start::After(Position {
        epoch: EPOCH + 1,
        sequence: 1_000,
    });
    let given = resumed(&hub, &["a"], elsewhere);
    assert_eq!(given.gaps, [(GapReason::EpochChanged, 0, 15, 0)]);
    assert_eq!(given.sequences, (16..=25).collect::<Vec<_>>());
}

#[test]
fn replay_last_counts_over_all_filters_together() {
    let hub = keeping(100);
    let now = Instant::now();
    for _ in 0..5 {
        publish(&hub, "a.x", 1, now);
        publish(&hub, "b.y", 1, now);
        publish(&hub, "c", 1, now);
    }
    let given = resumed(&hub, &["a.*", "*.y", "a.x"], Start::Last(3));
    assert_eq!(given, kept([11, 13, 14], 15));
}

#[test]
fn a_replay_ignores_the_limits_of_the_subscription() {
    let hub = keeping(10_000);
    publish(&hub, "a", 10_000, Instant::now());
    let options = SubscribeOptions {
        start: Start::Last(10_000),
        limits: Limits {
            max_events: NonZeroU64::new(10).unwrap(),
            ..Limits::default()
        },
        ..SubscribeOptions::new(ClientId::new("c").unwrap(), vec![Filter::new("a").unwrap()])
    };
    let mut subscription = hub.subscribe(options, Instant::now()).unwrap();
    let given = drain_all(&mut subscription);
    assert_eq!(given, kept(1..=10_000, 10_000));
}

fn drain_all(subscription: &mut Subscription<Bytes>) -> Given {
    let mut all = Given::default();
    while all.caught_up.is_none() {
        let given = drain(subscription);
        all.gaps.extend(given.gaps);
        all.sequences.extend(given.sequences);
        all.caught_up = given.caught_up;
    }
    all
}

#[test]
fn an_overtaken_replay_reports_its_exact_loss() {
    let hub = keeping(100);
    publish(&hub, "a", 100, Instant::now());
    let mut slow = subscribe(&hub, &["a"], after(0)).unwrap();
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    let mut given = 0;
    while given == 0 {
        let _ = slow.poll_next(&mut cx, Room::events(7), &mut batch);
        given += batch.events.len() as u64;
    }
    publish(&hub, "other", 50, Instant::now());
    let rest = drain(&mut slow);
    let [(reason, first, last, count)] = rest.gaps[..] else {
        panic!("{rest:?}")
    };
    assert_eq!((reason, first, last), (GapReason::Overflow, given + 1, 50));
    assert_eq!(given + count + rest.sequences.len() as u64, 100);
    assert_eq!(count, 50 - given);
}

#[test]
fn new_history_limits_apply_at_once_and_report_the_loss() {
    let hub = keeping(10);
    let now = Instant::now();
    publish(&hub, "t", 10, now);
    let limits = HistoryLimits {
        max_events: 4,
        ..HistoryLimits::default()
    };
    hub.set_history_limits(limits, now);
    assert_eq!(hub.stats().history_events, 4);
    let given = resumed(&hub, &["t"], after(0));
    assert_eq!(given.gaps, [(GapReason::Expired, 1, 6, 0)]);
    assert_eq!(given.sequences, [7, 8, 9, 10]);
    assert_eq!(hub.stats().gaps.expired, 1);

    hub.set_history_limits(HistoryLimits::OFF, now);
    publish(&hub, "t", 1, now);
    assert_eq!(hub.stats().history_events, 0);
    hub.set_history_limits(limits, now);
    publish(&hub, "t", 1, now);
    assert_eq!(hub.stats().history_events, 1);
}

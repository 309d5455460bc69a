//! No silent loss under conflation, with releases: what is replaced while it is held back is counted before a position
//! or a later event passes it.

use std::{
    num::NonZeroU64,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, CloseReason, Filter, Gap, GapReason, HistoryLimits, Hub, HubConfig, Limits,
    NewEvent, Overflow, Room, SubscribeOptions, Subscription, Topic,
};

fn hub() -> Hub<Bytes> {
    Hub::new(HubConfig {
        history: HistoryLimits::OFF,
        ..HubConfig::new(1)
    })
}

fn subscribe(hub: &Hub<Bytes>, filters: &[&str], overflow: Overflow) -> Subscription<Bytes> {
    let filters = filters.iter().map(|filter| Filter::new(filter).unwrap());
    let options = SubscribeOptions {
        limits: Limits {
            overflow,
            ..Limits::default()
        },
        ..SubscribeOptions::new(ClientId::new("c").unwrap(), filters.collect())
    };
    hub.subscribe(options, Instant::now()).unwrap()
}

fn publish(hub: &Hub<Bytes>, topics: &[&str]) {
    let event = |topic: &&str| NewEvent::new(Topic::new(topic).unwrap(), Bytes::from_static(b"x"));
    hub.publish(topics.iter().map(event), Instant::now())
        .unwrap();
}

/// Room for so many events up to a sequence.
fn release(events: usize, up_to: u64) -> Room {
    Room {
        up_to,
        ..Room::events(events)
    }
}

/// Polls once. Returns the sequences and the gaps; none if it is pending.
fn poll(subscription: &mut Subscription<Bytes>, room: Room) -> Option<(Vec<u64>, Vec<Gap>)> {
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    match subscription.poll_next(&mut cx, room, &mut batch) {
        Poll::Pending => None,
        Poll::Ready(polled) => {
            polled.unwrap();
            let sequences = batch.events.iter().map(|event| event.sequence());
            Some((sequences.collect(), batch.gaps))
        }
    }
}

fn conflated(first_sequence: u64, last_sequence: u64, count: u64, first_index: u64) -> Gap {
    Gap {
        first_sequence,
        last_sequence,
        count,
        reason: GapReason::Conflated,
        first_index,
    }
}

#[test]
fn an_event_replaced_in_the_middle_of_a_release_is_told_before_the_position_passes_it() {
    let hub = hub();
    let mut subscription = subscribe(&hub, &["k.*"], Overflow::Conflate);
    publish(&hub, &["k.a", "k.b"]);
    // A release of what is there now, of which one chunk takes the first.
    assert_eq!(
        poll(&mut subscription, release(1, 2)),
        Some((vec![1], vec![]))
    );
    // 3 replaces 2, and is not part of the release. 4 does not match.
    publish(&hub, &["k.b"]);
    publish(&hub, &["other"]);
    for _ in 0..3 {
        assert_eq!(poll(&mut subscription, release(1, 2)), None);
        assert_eq!(subscription.position().unwrap().sequence, 1);
        assert_eq!((subscription.next_index(), subscription.backlog()), (1, 2));
    }
    assert_eq!(
        poll(&mut subscription, release(1, 4)),
        Some((vec![3], vec![conflated(2, 2, 1, 1)]))
    );
    assert_eq!(poll(&mut subscription, release(1, 4)), None);
    assert_eq!(subscription.position().unwrap().sequence, 4);
}

#[test]
fn what_was_replaced_in_one_feed_is_told_before_a_later_event_of_another() {
    let hub = hub();
    let mut subscription = subscribe(&hub, &["a", "b"], Overflow::Conflate);
    publish(&hub, &["a", "b", "a", "b"]);
    // The survivors are 3 and 4: the poll finds that 1 and 2 were replaced, and may give neither.
    assert_eq!(poll(&mut subscription, release(8, 2)), None);
    assert_eq!(subscription.position().unwrap().sequence, 0);
    publish(&hub, &["a"]);
    // Now 3 was replaced too.
    assert_eq!(
        poll(&mut subscription, release(8, 4)),
        Some((vec![4], vec![conflated(1, 4, 3, 0)]))
    );
    assert_eq!(subscription.position().unwrap().sequence, 4);
}

#[test]
fn what_was_replaced_and_not_told_is_behind_until_it_is_abandoned() {
    let hub = hub();
    let mut subscription = subscribe(&hub, &["k"], Overflow::Conflate);
    publish(&hub, &["k", "k", "k"]);
    assert_eq!(poll(&mut subscription, release(8, 2)), None);
    assert_eq!(subscription.backlog(), 3);
    assert_eq!(subscription.info().backlog, 3);
    assert_eq!(hub.subscriptions()[0].backlog, 3);
    hub.close(CloseReason::ShuttingDown);
    let mut cx = Context::from_waker(Waker::noop());
    let polled = subscription.poll_next(&mut cx, release(8, 3), &mut Batch::default());
    assert_eq!(polled, Poll::Ready(Err(CloseReason::ShuttingDown)));
    assert_eq!(subscription.position().unwrap().sequence, 0);
    drop(subscription);
    let stats = hub.stats();
    assert_eq!((stats.matched, stats.abandoned, stats.conflated), (3, 3, 0));
}

#[test]
fn what_was_replaced_is_told_with_what_the_budget_evicted() {
    const BUDGET: u64 = 20_000;
    let hub = Hub::new(HubConfig {
        history: HistoryLimits::OFF,
        memory_budget: BUDGET,
        ..HubConfig::new(1)
    });
    let mut subscription = subscribe(&hub, &["a", "b"], Overflow::Conflate);
    publish(&hub, &["a", "a", "b"]);
    assert_eq!(poll(&mut subscription, release(8, 1)), None);
    // Evicts everything, itself included, which is the last event of `a`.
    let large = NewEvent::new(
        Topic::new("a").unwrap(),
        Bytes::from(vec![0; BUDGET as usize]),
    );
    hub.publish([large], Instant::now()).unwrap();
    let (events, gaps) = poll(&mut subscription, release(8, 4)).unwrap();
    assert_eq!(events, []);
    let counts: Vec<_> = gaps.iter().map(|gap| (gap.reason, gap.count)).collect();
    // 1 was replaced by 2. What replaced 2 was evicted, so 2 counts as evicted.
    assert_eq!(counts, [(GapReason::Conflated, 1), (GapReason::Evicted, 3)]);
    assert_eq!(subscription.position().unwrap().sequence, 4);
}

/// The limits hold for the whole backlog, so what others subscribe to changes nothing.
#[test]
fn a_release_gives_the_same_whatever_the_limits_of_those_who_share_the_feed() {
    for others in [1, 1_000] {
        let hub = hub();
        let within = |client: &str, max_events: u64| {
            let mut options = SubscribeOptions::new(
                ClientId::new(client).unwrap(),
                vec![Filter::new("k").unwrap()],
            );
            options.limits.max_events = NonZeroU64::new(max_events).unwrap();
            hub.subscribe(options, Instant::now()).unwrap()
        };
        let _other = within("other", others);
        let mut subscription = within("c", 4);
        publish(&hub, &["k"; 10]);
        // 7 to 10 fit. The release has 1 to 8.
        let (events, gaps) = poll(&mut subscription, release(20, 8)).unwrap();
        assert_eq!(events, [7, 8]);
        assert_eq!((gaps[0].reason, gaps[0].count), (GapReason::Overflow, 6));
        assert_eq!(poll(&mut subscription, release(20, 8)), None);
        assert_eq!(subscription.position().unwrap().sequence, 8);
    }
}

//! Subscriptions that begin while a publisher is between its search and its commit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Instant,
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, ClientIdPolicy, Filter, Hub, HubConfig, NewEvent, Predicate, Room,
    SubscribeOptions, Subscription, Topic,
};

/// More topics than one step searches for, so that the batch is between search and commit after it.
const TOPICS: u64 = 20_000;

fn hub() -> Hub<Bytes> {
    Hub::new(HubConfig {
        client_ids: ClientIdPolicy::Several,
        ..HubConfig::new(1)
    })
}

fn batch() -> impl Iterator<Item = NewEvent<Bytes>> {
    (0..TOPICS).map(|i| NewEvent::new(Topic::new(&format!("t.{i}")).unwrap(), Bytes::new()))
}

fn subscribe(
    hub: &Hub<Bytes>,
    filters: &[String],
    predicate: Option<&Predicate<Bytes>>,
) -> Subscription<Bytes> {
    let filters = filters.iter().map(|filter| Filter::new(filter).unwrap());
    let mut options = SubscribeOptions::new(ClientId::new("c").unwrap(), filters.collect());
    options.limits.max_events = TOPICS.try_into().unwrap();
    hub.subscribe_matching(options, predicate, Instant::now())
        .unwrap()
}

/// Takes all that is there, and returns the sequences.
fn drain(subscription: &mut Subscription<Bytes>) -> Vec<u64> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut taken = Batch::default();
    let mut sequences = Vec::new();
    while subscription.poll_next(&mut cx, Room::events(1_000), &mut taken) == Poll::Ready(Ok(())) {
        assert!(taken.gaps.is_empty());
        sequences.extend(taken.events.iter().map(|event| event.sequence()));
    }
    sequences
}

/// Begins to publish the batch, lets `subscribe` subscribe after the first step, and returns what that subscription is given.
fn given_to_a_late_one(
    hub: &Hub<Bytes>,
    subscribe: impl FnOnce() -> Subscription<Bytes>,
) -> Vec<u64> {
    let mut publishing = hub.begin_publish(batch());
    assert_eq!(publishing.step(Instant::now()), Ok(None), "it is searching");
    let mut late = subscribe();
    while publishing.step(Instant::now()).unwrap().is_none() {}
    drain(&mut late)
}

#[test]
fn a_subscription_that_began_after_the_search_gets_every_event_once() {
    let hub = hub();
    let everything = || subscribe(&hub, &["t.*".to_owned()], None);
    let all: Vec<_> = (1..=TOPICS).collect();
    assert!(given_to_a_late_one(&hub, everything) == all);
    // Its feed is there now, and is shared.
    let _other = everything();
    let next: Vec<_> = (TOPICS + 1..=2 * TOPICS).collect();
    assert!(given_to_a_late_one(&hub, everything) == next);
    // More filters than may be matched under the publish lock.
    let many: Vec<_> = (0..1_000).map(|i| format!("t.{}", i * 20)).collect();
    let expected: Vec<_> = (0..1_000).map(|i| 2 * TOPICS + 1 + i * 20).collect();
    assert_eq!(
        given_to_a_late_one(&hub, || subscribe(&hub, &many, None)),
        expected
    );
}

/// Few enough to be matched under the publish lock.
#[test]
fn a_late_feed_that_is_matched_under_the_lock_gets_every_event_once() {
    const EVENTS: u64 = 2_000;
    let hub = hub();
    // A filter that makes each search visit more than 20 places, so that one step does not find the feeds of all.
    let deep = |last: &str| [&["t"; 20].join("."), last].join(".");
    let mut early = subscribe(&hub, &[deep("*")], None);
    let events = (0..EVENTS)
        .map(|i| NewEvent::new(Topic::new(&deep(&i.to_string())).unwrap(), Bytes::new()));
    let mut publishing = hub.begin_publish(events);
    assert_eq!(publishing.step(Instant::now()), Ok(None), "it is searching");
    let mut late = subscribe(&hub, &["t.>".to_owned()], None);
    while publishing.step(Instant::now()).unwrap().is_none() {}
    let all: Vec<_> = (1..=EVENTS).collect();
    assert!(drain(&mut early) == all);
    assert!(drain(&mut late) == all);
}

#[test]
fn a_late_predicate_is_asked_about_every_event_once() {
    let hub = hub();
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let predicate = Predicate::new(move |_: &Bytes| {
        count.fetch_add(1, Relaxed);
        true
    });
    let late = || subscribe(&hub, &["t.*".to_owned()], Some(&predicate));
    let all: Vec<_> = (1..=TOPICS).collect();
    assert!(given_to_a_late_one(&hub, late) == all);
    assert_eq!(asked.load(Relaxed), TOPICS);
}

#[test]
fn a_subscription_to_a_feed_that_another_is_about_to_join_misses_nothing() {
    let hub = hub();
    let mut publishing = hub.begin_publish(batch());
    assert_eq!(publishing.step(Instant::now()), Ok(None));
    drop(subscribe(&hub, &["t.*".to_owned()], None));
    let mut second = subscribe(&hub, &["t.*".to_owned()], None);
    while publishing.step(Instant::now()).unwrap().is_none() {}
    assert_eq!(drain(&mut second).len() as u64, TOPICS);
}

/// A batch is published whole or not at all, also by a task that is cancelled in the middle.
#[test]
fn a_batch_that_is_dropped_in_the_middle_is_published_whole_or_not_at_all() {
    let hub = hub();
    let mut publishing = hub.begin_publish(batch());
    assert_eq!(publishing.step(Instant::now()), Ok(None));
    drop(publishing);
    assert_eq!(hub.position().sequence, 0, "nothing was committed");

    // 64 feeds that every event goes to: more appends than one part has.
    let filters = |i: usize| ["t.*".to_owned(), format!("x.{i}.*")];
    let predicate = |_: usize| Predicate::new(|_: &Bytes| true);
    let predicates: Vec<_> = (0..64).map(predicate).collect();
    let mut subscriptions: Vec<_> = predicates
        .iter()
        .enumerate()
        .map(|(i, predicate)| subscribe(&hub, &filters(i), Some(predicate)))
        .collect();
    let mut publishing = hub.begin_publish(batch());
    while hub.position().sequence == 0 {
        assert_eq!(publishing.step(Instant::now()), Ok(None));
    }
    assert!(hub.position().sequence < TOPICS, "one part of it");
    drop(publishing);
    assert_eq!(hub.position().sequence, TOPICS);
    for subscription in &mut subscriptions {
        assert_eq!(drain(subscription).len() as u64, TOPICS);
    }
}

/// However many come and go, a publisher searches twice at most.
#[test]
fn a_publisher_among_predicates_that_come_and_go_is_not_starved() {
    let hub = hub();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let predicate = Predicate::new(|_: &Bytes| true);
                drop(subscribe(&hub, &["t.*".to_owned()], Some(&predicate)));
            }
        });
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let predicate = Predicate::new(move |_: &Bytes| {
            count.fetch_add(1, Relaxed);
            true
        });
        let mut subscription = subscribe(&hub, &["t.*".to_owned()], Some(&predicate));
        for i in 0..500 {
            let event = NewEvent::new(Topic::new(&format!("t.{i}")).unwrap(), Bytes::new());
            hub.publish([event], Instant::now()).unwrap();
        }
        stop.store(true, Relaxed);
        assert_eq!(asked.load(Relaxed), 500, "asked once about each");
        assert_eq!(drain(&mut subscription).len(), 500);
    });
}

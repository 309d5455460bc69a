//! The park/wake protocol, checked by loom on the real hub: every interleaving of its locks and of the
//! watermark, up to three preemptions. A lost wake-up shows as a deadlock, for `block_on` then waits
//! forever.
//!
//! Run by `RUSTFLAGS="--cfg tidegate_loom" cargo test -p tidegate-core --release --lib loom`.

use std::{
    future::poll_fn,
    num::NonZeroU64,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use loom::{future::block_on, thread};

use crate::{
    Batch, ClientId, CloseReason, Filter, HistoryLimits, Hub, HubConfig, Limits, NewEvent,
    Overflow, Room, SubscribeOptions, Subscription, Topic,
};

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn hub() -> Hub<Bytes> {
    Hub::new(HubConfig {
        history: HistoryLimits::OFF,
        ..HubConfig::new(1)
    })
}

fn subscribe(hub: &Hub<Bytes>, filters: &[&str], max_events: u64) -> Subscription<Bytes> {
    subscribe_with(hub, filters, max_events, Overflow::DropOldest)
}

fn subscribe_with(
    hub: &Hub<Bytes>,
    filters: &[&str],
    max_events: u64,
    overflow: Overflow,
) -> Subscription<Bytes> {
    let filters = filters.iter().map(|f| Filter::new(f).unwrap()).collect();
    let mut options = SubscribeOptions::new(ClientId::new("c").unwrap(), filters);
    options.limits = Limits {
        max_events: NonZeroU64::new(max_events).unwrap(),
        overflow,
        ..Limits::default()
    };
    hub.subscribe(options, Instant::now()).unwrap()
}

fn publish(hub: &Hub<Bytes>, topics: &[&str]) {
    let event = |topic: &&str| NewEvent::new(Topic::new(topic).unwrap(), Bytes::from_static(b"x"));
    hub.publish(topics.iter().map(event), Instant::now())
        .unwrap();
}

/// Waits for a batch and returns the sequences in it and how many events its gaps count.
async fn next(subscription: &mut Subscription<Bytes>) -> Result<(Vec<u64>, u64), CloseReason> {
    let mut batch = Batch::default();
    poll_fn(|cx| subscription.poll_next(cx, Room::events(8), &mut batch)).await?;
    let lost = batch.gaps.iter().map(|gap| gap.count).sum();
    Ok((
        batch.events.iter().map(|event| event.sequence()).collect(),
        lost,
    ))
}

/// Takes until `expected` events were delivered or counted. They must come in order, each once.
async fn take(subscription: &mut Subscription<Bytes>, expected: u64) -> (Vec<u64>, u64) {
    let (mut seen, mut lost) = (Vec::new(), 0);
    while seen.len() as u64 + lost < expected {
        let (events, gaps) = next(subscription).await.unwrap();
        seen.extend(events);
        lost += gaps;
    }
    assert!(
        seen.is_sorted_by(|a, b| a < b),
        "out of order or twice: {seen:?}"
    );
    assert_eq!(seen.len() as u64 + lost, expected);
    (seen, lost)
}

#[test]
fn loom_publish_against_poll_loses_no_wake_up() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a"], 8);
        let publisher = thread::spawn(move || {
            publish(&hub, &["a"]);
            publish(&hub, &["a"]);
        });
        let (seen, _) = block_on(take(&mut subscription, 2));
        assert_eq!(seen, [1, 2]);
        publisher.join().unwrap();
    });
}

#[test]
fn loom_two_publishers_and_two_feeds_stay_in_order() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a", "b"], 8);
        let publishers = ["a", "b"].map(|topic| {
            let hub = hub.clone();
            thread::spawn(move || publish(&hub, &[topic]))
        });
        let (seen, _) = block_on(take(&mut subscription, 2));
        assert_eq!(seen, [1, 2]);
        for publisher in publishers {
            publisher.join().unwrap();
        }
    });
}

#[test]
fn loom_a_batch_over_two_feeds_becomes_visible_at_once() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a", "b"], 8);
        let publisher = thread::spawn(move || publish(&hub, &["b", "a"]));
        assert_eq!(block_on(next(&mut subscription)), Ok((vec![1, 2], 0)));
        publisher.join().unwrap();
    });
}

#[test]
fn loom_eviction_against_poll_counts_every_event() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a", "b"], 1);
        let publisher = thread::spawn(move || {
            publish(&hub, &["a", "b"]);
            publish(&hub, &["a"]);
        });
        block_on(take(&mut subscription, 3));
        publisher.join().unwrap();
    });
}

#[test]
fn loom_drop_against_publish_leaves_nothing() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a"], 8);
        let mut batch = Batch::default();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(
            subscription
                .poll_next(&mut cx, Room::events(8), &mut batch)
                .is_pending()
        );
        let dropper = thread::spawn(move || drop(subscription));
        publish(&hub, &["a"]);
        dropper.join().unwrap();
        let stats = hub.stats();
        assert_eq!((stats.subscriptions, stats.clients, stats.feeds), (0, 0, 0));
        assert_eq!(stats.matched, stats.abandoned);
    });
}

#[test]
fn loom_close_wakes_and_nothing_comes_after() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a"], 8);
        let closer = {
            let hub = hub.clone();
            thread::spawn(move || hub.close(CloseReason::ShuttingDown))
        };
        let reason = block_on(async {
            loop {
                if let Err(reason) = next(&mut subscription).await {
                    return reason;
                }
            }
        });
        assert_eq!(reason, CloseReason::ShuttingDown);
        closer.join().unwrap();
        let mut batch = Batch::default();
        let again = subscription.poll_next(
            &mut Context::from_waker(Waker::noop()),
            Room::events(8),
            &mut batch,
        );
        assert_eq!(again, Poll::Ready(Err(CloseReason::ShuttingDown)));
    });
}

#[test]
fn loom_takeover_ends_the_old_and_keeps_the_new() {
    check(|| {
        let hub = hub();
        let mut old = subscribe(&hub, &["a"], 8);
        let newcomer = {
            let hub = hub.clone();
            thread::spawn(move || subscribe(&hub, &["a"], 8))
        };
        assert_eq!(block_on(next(&mut old)), Err(CloseReason::TakenOver));
        // The late cancel of the old one.
        drop(old);
        let mut new = newcomer.join().unwrap();
        assert_eq!(hub.stats().clients, 1);
        publish(&hub, &["a"]);
        assert_eq!(block_on(next(&mut new)), Ok((vec![1], 0)));
    });
}

/// Takes releases of a subscription that every event matches, until `expected` were delivered or counted. At no moment
/// is the position beyond what was. Returns how many polls left something that no release could have taken yet.
fn take_releases(subscription: &mut Subscription<Bytes>, events: usize, expected: u64) -> u64 {
    let mut batch = Batch::default();
    let (mut seen, mut in_vain) = (0, 0);
    let mut up_to = subscription.head().sequence;
    while subscription.next_index() < expected {
        let room = Room {
            up_to,
            ..Room::events(events)
        };
        let polled = block_on(poll_fn(|cx| {
            match subscription.poll_next(cx, room, &mut batch) {
                // Something is left, and the next release may begin at once.
                Poll::Pending if subscription.is_behind() => Poll::Ready(None),
                polled => polled.map(Some),
            }
        }));
        assert!(subscription.position().unwrap().sequence <= subscription.next_index());
        match polled {
            // What is left was committed after this release began, or it is not committed yet.
            None => {
                let head = subscription.head().sequence;
                if head == up_to {
                    in_vain += 1;
                    thread::yield_now();
                }
                up_to = head;
            }
            Some(polled) => polled.unwrap(),
        }
        for event in &batch.events {
            assert!(event.sequence() > seen, "out of order or twice");
            seen = event.sequence();
        }
    }
    assert_eq!(subscription.next_index(), expected);
    in_vain
}

#[test]
fn loom_a_replaced_event_is_told_before_the_position_passes_it() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe_with(&hub, &["a", "b"], 8, Overflow::Conflate);
        let publisher = thread::spawn(move || {
            publish(&hub, &["a", "b"]);
            publish(&hub, &["b"]);
        });
        take_releases(&mut subscription, 1, 3);
        publisher.join().unwrap();
    });
}

/// While the later event of one feed is taken, what replaced the earlier one of another is evicted.
#[test]
fn loom_conflation_against_eviction_counts_every_event() {
    check(|| {
        // By the limits of a view: the memory budget looks at feeds in an order that is another in each run.
        let hub = Hub::new(HubConfig {
            history: HistoryLimits::OFF,
            max_limits: Limits {
                max_events: NonZeroU64::new(2).unwrap(),
                ..Limits::default()
            },
            ..HubConfig::new(1)
        });
        let mut subscription = subscribe_with(&hub, &["a.*", "b"], 2, Overflow::Conflate);
        publish(&hub, &["a.x", "b", "a.x"]);
        let publisher = thread::spawn(move || publish(&hub, &["a.y", "a.z"]));
        take_releases(&mut subscription, 8, 5);
        publisher.join().unwrap();
    });
}

#[test]
fn loom_releases_are_in_order_and_do_not_spin() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a", "b"], 8);
        let publisher = thread::spawn(move || {
            publish(&hub, &["a"]);
            publish(&hub, &["b"]);
        });
        assert_eq!(
            take_releases(&mut subscription, 1, 2),
            0,
            "a spin until a commit"
        );
        publisher.join().unwrap();
    });
}

/// A lost range is in no feed: who is parked is woken for it all the same, and gets what follows in its order.
#[test]
fn loom_a_lost_range_wakes_who_waits() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a"], 8);
        let log = thread::spawn(move || {
            publish(&hub, &["a"]);
            hub.lose(2, 5).unwrap();
        });
        let mut batch = Batch::default();
        let (mut seen, mut lost) = (Vec::new(), 0);
        while lost == 0 {
            block_on(poll_fn(|cx| {
                subscription.poll_next(cx, Room::events(8), &mut batch)
            }))
            .unwrap();
            seen.extend(batch.events.iter().map(|event| event.sequence()));
            lost = batch.gaps.first().map_or(0, |gap| gap.last_sequence);
            assert!(lost == 0 || seen == [1], "before the event, or without it");
        }
        assert_eq!(subscription.position().unwrap().sequence, 5);
        log.join().unwrap();
    });
}

/// A poll that is under way when an epoch begins gives nothing of it, and the next one says that the old one has ended.
#[test]
fn loom_a_new_epoch_against_poll_gives_nothing_of_it() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a"], 8);
        publish(&hub, &["a"]);
        let log = thread::spawn(move || {
            hub.begin_epoch(2, 0).unwrap();
            publish(&hub, &["a", "a"]);
        });
        let mut seen = 0;
        let reason = block_on(async {
            loop {
                match next(&mut subscription).await {
                    Ok((events, lost)) => seen += events.len() as u64 + lost,
                    Err(reason) => return reason,
                }
            }
        });
        assert_eq!(reason, CloseReason::EpochChanged);
        assert!(seen <= 1, "{seen} of the one event of its epoch");
        assert_eq!(subscription.position().unwrap().epoch, 1);
        log.join().unwrap();
    });
}

/// A subscriber that begins while an epoch does is of one of the two, whole.
#[test]
fn loom_a_new_epoch_against_subscribe_leaves_nobody_in_between() {
    check(|| {
        let hub = hub();
        let log = {
            let hub = hub.clone();
            thread::spawn(move || {
                hub.begin_epoch(2, 0).unwrap();
                publish(&hub, &["a"]);
            })
        };
        let mut subscription = subscribe(&hub, &["a"], 8);
        let epoch = subscription.began_at().epoch;
        log.join().unwrap();
        let is_at_end = subscription.began_at().sequence == 1;
        if epoch == 1 {
            let ended = block_on(next(&mut subscription));
            assert_eq!(ended, Err(CloseReason::EpochChanged));
        } else if !is_at_end {
            assert_eq!(block_on(next(&mut subscription)), Ok((vec![1], 0)));
        }
        drop(subscription);
        let stats = hub.stats();
        assert_eq!((stats.subscriptions, stats.clients, stats.feeds), (0, 0, 0));
    });
}

#[test]
fn loom_a_close_wakes_who_waits_for_the_end() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a"], 8);
        let publisher = thread::spawn(move || {
            publish(&hub, &["a"]);
            hub.close(CloseReason::ShuttingDown);
        });
        let reason = block_on(poll_fn(|cx| subscription.poll_end(cx)));
        assert_eq!(reason, CloseReason::ShuttingDown);
        publisher.join().unwrap();
    });
}

#[test]
fn loom_a_poll_after_one_for_the_end_loses_no_wake_up() {
    check(|| {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a"], 8);
        let publisher = thread::spawn(move || {
            publish(&hub, &["a"]);
            publish(&hub, &["a"]);
        });
        let mut cx = Context::from_waker(Waker::noop());
        assert!(subscription.poll_end(&mut cx).is_pending());
        let (seen, _) = block_on(take(&mut subscription, 2));
        assert_eq!(seen, [1, 2]);
        publisher.join().unwrap();
    });
}

//! No silent loss, and order, with real threads: publishers at full speed, and subscribers of every policy that park
//! and are woken.

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Instant,
};

use bytes::Bytes;
use tidegate_core::{
    Batch, ClientId, CloseReason, Filter, GapReason, HistoryLimits, Hub, HubConfig, Limits,
    NewEvent, Overflow, Room, Stats, SubscribeOptions, Topic,
};

const TOPICS: [&str; 4] = ["a.x", "a.y", "b.x", "b.y"];
const EVENTS_OF_EACH: u64 = 20_000;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The counts of a subscriber from its beginning until the hub closed.
#[derive(Debug, Default)]
struct Given {
    events: u64,
    missed: u64,
    last_sequence: u64,
    newest: BTreeMap<&'static str, u64>,
}

fn publish(hub: &Hub<Bytes>, topic: &'static str, published: &AtomicU64) {
    let topic = Topic::new(topic).unwrap();
    for _ in 0..EVENTS_OF_EACH {
        let event = NewEvent::new(topic.clone(), Bytes::from_static(b"payload"));
        let last = hub.publish([event], Instant::now()).unwrap().last_sequence;
        published.store(last, Relaxed);
    }
}

fn subscribe(
    hub: &Hub<Bytes>,
    number: usize,
    filters: &[&str],
    overflow: Overflow,
    releases: bool,
) -> Given {
    let matches_all = filters == [">"];
    let filters = filters.iter().map(|filter| Filter::new(filter).unwrap());
    let client = ClientId::new(&number.to_string()).unwrap();
    let options = SubscribeOptions {
        limits: Limits {
            max_events: NonZeroU64::new(16).unwrap(),
            overflow,
            ..Limits::default()
        },
        ..SubscribeOptions::new(client, filters.collect())
    };
    let mut subscription = hub.subscribe(options, Instant::now()).unwrap();
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let (mut given, mut batch) = (Given::default(), Batch::default());
    let mut up_to = if releases { 0 } else { u64::MAX };
    for turn in 1.. {
        // Some subscribers take releases: all that was there when one began, in a few polls.
        if up_to < u64::MAX && turn % 8 == 0 {
            up_to = subscription.head().sequence;
        }
        let room = Room {
            up_to,
            ..Room::events(1 + turn % 40)
        };
        let polled = subscription.poll_next(&mut cx, room, &mut batch);
        // Where every event matches, as many as there are up to a position must have been delivered or counted.
        if matches_all {
            assert!(subscription.position().unwrap().sequence <= subscription.next_index());
        }
        match polled {
            Poll::Pending if subscription.is_behind() => {}
            Poll::Pending => thread::park(),
            Poll::Ready(Err(CloseReason::ShuttingDown)) => break,
            Poll::Ready(Err(reason)) => panic!("{reason:?}"),
            Poll::Ready(Ok(())) => given.take(&batch, overflow),
        }
    }
    given
}

impl Given {
    fn take(&mut self, batch: &Batch<Bytes>, overflow: Overflow) {
        for gap in &batch.gaps {
            let expected = match overflow {
                Overflow::Conflate => GapReason::Conflated,
                _ => GapReason::Overflow,
            };
            assert_eq!(gap.reason, expected);
            self.missed += gap.count;
        }
        for event in &batch.events {
            assert!(event.sequence() > self.last_sequence, "order");
            self.last_sequence = event.sequence();
            let topic = TOPICS
                .iter()
                .find(|topic| **topic == event.topic().as_str());
            self.newest.insert(topic.unwrap(), event.sequence());
        }
        self.events += batch.events.len() as u64;
    }
}

#[test]
fn every_event_is_delivered_or_counted_at_full_speed() {
    let hub = Hub::new(HubConfig {
        history: HistoryLimits::OFF,
        ..HubConfig::new(1)
    });
    // One feed; two disjoint feeds; a group of overlapping filters; and the same ones conflated. Some take releases.
    let wanted: [(&[&str], Overflow, u64, bool); 9] = [
        (&["a.x"], Overflow::DropOldest, 1, false),
        (&["a.x", "b.y"], Overflow::DropOldest, 2, false),
        (&["a.*", "*.x"], Overflow::DropOldest, 3, false),
        (&[">"], Overflow::DropOldest, 4, false),
        (&[">"], Overflow::DropOldest, 4, true),
        (&["a.x", "b.*"], Overflow::Conflate, 3, false),
        (&[">"], Overflow::Conflate, 4, false),
        (&["a.x", "b.*"], Overflow::Conflate, 3, true),
        (&[">"], Overflow::Conflate, 4, true),
    ];
    let newest: Vec<_> = TOPICS.iter().map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        let subscribers: Vec<_> = wanted
            .iter()
            .enumerate()
            .map(|(number, (filters, overflow, _, releases))| {
                let hub = &hub;
                scope.spawn(move || subscribe(hub, number, filters, *overflow, *releases))
            })
            .collect();
        while hub.stats().subscriptions < wanted.len() as u64 {
            thread::yield_now();
        }
        let publishers: Vec<_> = TOPICS
            .into_iter()
            .zip(&newest)
            .map(|(topic, newest)| scope.spawn(|| publish(&hub, topic, newest)))
            .collect();
        publishers
            .into_iter()
            .for_each(|publisher| publisher.join().unwrap());
        // Closing would cut short who is behind still.
        let all = wanted.iter().map(|(_, _, topics, _)| topics).sum::<u64>() * EVENTS_OF_EACH;
        let told = |stats: Stats| stats.handed_off + stats.overflowed + stats.conflated;
        while told(hub.stats()) < all {
            thread::yield_now();
        }
        hub.close(CloseReason::ShuttingDown);
        for (subscriber, (filters, overflow, topics, _)) in subscribers.into_iter().zip(wanted) {
            let given = subscriber.join().unwrap();
            let matched = topics * EVENTS_OF_EACH;
            assert_eq!(
                given.events + given.missed,
                matched,
                "{filters:?} {overflow:?}"
            );
            for (topic, newest) in TOPICS.iter().zip(&newest) {
                if let Some(got) = given.newest.get(topic) {
                    assert!(overflow != Overflow::Conflate || *got == newest.load(Relaxed));
                }
            }
        }
    });
    assert_eq!((hub.stats().subscriptions, hub.stats().feeds), (0, 0));
}

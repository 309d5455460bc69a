//! Work whose instructions are counted: `counts WORK TIMES`. `.ci/counts` runs it under valgrind.
//!
//! The preparation does not depend on TIMES, so the difference between two runs is the cost of the operations alone.
//! An event has 256 bytes.

#![expect(
    clippy::print_stdout,
    reason = "the script reads the names of the works"
)]

use std::{env, hint::black_box, sync::Arc, time::Instant};

use bytes::Bytes;
use tidegate_core::{Batch, ClientIdPolicy, HistoryLimits, Hub, HubConfig, NewEvent};

mod support;

use support::{event, subscribe_as, topic};

/// Enough that rings and maps have the size that they keep.
const WARM_UP: usize = 2_000;

type Work = fn(times: usize);

const WORKS: [(&str, Work); 6] = [
    ("publish", publish),
    ("fan-out", fan_out),
    ("drain", drain),
    ("conflate", conflate),
    ("match", matches),
    ("subscribe", subscribe_and_cancel),
];

fn main() {
    // `cargo bench` gives `--bench`, and gets the names.
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [work, times] = arguments.as_slice() else {
        WORKS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, work) = WORKS
        .iter()
        .find(|(name, _)| name == work)
        .expect("the name of a work");
    work(times.parse().expect("a number"));
}

/// One event for one subscription that does not read: it displaces the oldest.
fn publish(times: usize) {
    let hub = hub();
    let _stream = subscribe_as(&hub, "c", &["a"]);
    let (topic, now) = (topic("a"), Instant::now());
    for _ in 0..WARM_UP + times {
        hub.publish([event(&topic)], now).unwrap();
    }
}

/// One event for 100 parked subscriptions, each of which is woken, takes it and parks.
fn fan_out(times: usize) {
    let hub = hub();
    let mut streams: Vec<_> = (0..100).map(|_| subscribe_as(&hub, "c", &["a"])).collect();
    let mut batch = Batch::default();
    let (topic, now) = (topic("a"), Instant::now());
    for _ in 0..WARM_UP / 100 + times {
        for stream in &mut streams {
            support::drain(stream, &mut batch);
        }
        hub.publish([event(&topic)], now).unwrap();
    }
}

/// A batch of 64 events, published at once and taken at once.
fn drain(times: usize) {
    let hub = hub();
    let mut stream = subscribe_as(&hub, "c", &["a"]);
    let mut batch = Batch::default();
    let (topic, now) = (topic("a"), Instant::now());
    for _ in 0..WARM_UP / 64 + times {
        hub.publish((0..64).map(|_| event(&topic)), now).unwrap();
        support::drain(&mut stream, &mut batch);
    }
}

/// A batch of 64 events with 32 keys, published at once; the 32 that survive are taken at once.
fn conflate(times: usize) {
    let hub = hub();
    let mut stream = support::subscribe_conflating(&hub, "c", &["a"]);
    let mut batch = Batch::default();
    let (topic, now) = (topic("a"), Instant::now());
    let keys: Vec<Arc<str>> = (0..32).map(|key| format!("key-{key}").into()).collect();
    for _ in 0..WARM_UP / 64 + times {
        let events = keys.iter().chain(&keys).map(|key| NewEvent {
            key: Some(Arc::clone(key)),
            ..event(&topic)
        });
        hub.publish(events, now).unwrap();
        support::drain(&mut stream, &mut batch);
    }
}

/// One event among 2,000 distinct filters, half of them with a wildcard; three match.
fn matches(times: usize) {
    let hub = hub();
    let filters: Vec<_> = (0..500)
        .flat_map(|i| {
            [
                format!("a.b{i}.c"),
                format!("a.b{i}.d"),
                format!("*.b{i}.c"),
                format!("a.b{i}.>"),
            ]
        })
        .collect();
    let _streams: Vec<_> = filters
        .iter()
        .map(|filter| subscribe_as(&hub, "c", &[filter]))
        .collect();
    let (topic, now) = (topic("a.b4.c"), Instant::now());
    for _ in 0..WARM_UP + times {
        hub.publish([event(&topic)], now).unwrap();
    }
}

/// A subscription to three filters that comes and goes, beside 1,000 others on filters of their own.
fn subscribe_and_cancel(times: usize) {
    let hub = hub();
    let _others: Vec<_> = (0..1_000)
        .map(|i| subscribe_as(&hub, &format!("c{i}"), &[&format!("other.{i}")]))
        .collect();
    for _ in 0..WARM_UP / 100 + times {
        black_box(subscribe_as(&hub, "c", &["user.me", "room.mine", "news.>"]));
    }
}

fn hub() -> Hub<Bytes> {
    Hub::new(HubConfig {
        history: HistoryLimits::OFF,
        client_ids: ClientIdPolicy::Several,
        ..HubConfig::new(1)
    })
}

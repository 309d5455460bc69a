//! The memory of feeds, in bytes that the allocator was asked for: no more than the memory budget says.

use std::{num::NonZeroU64, time::Instant};

use bytes::Bytes;
use tidegate_core::{
    ClientId, Filter, HistoryLimits, Hub, HubConfig, NewEvent, SubscribeOptions, Topic,
};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Subscribers that read nothing, each of a topic of its own that was busy once: what the budget evicts from their feeds
/// goes with its places, though nothing is appended to them any more.
#[test]
fn places_of_events_that_the_budget_evicted_are_given_back() {
    const BUDGET: u64 = 4 << 20;
    let hub = Hub::new(HubConfig {
        history: HistoryLimits::OFF,
        memory_budget: BUDGET,
        ..HubConfig::new(1)
    });
    let _profiler = dhat::Profiler::builder().testing().build();
    let before = dhat::HeapStats::get().curr_bytes;
    let mut stalled = Vec::new();
    for i in 0..12 {
        let topic = format!("t.{i}");
        let id = ClientId::new(&format!("c{i}")).unwrap();
        let mut options = SubscribeOptions::new(id, vec![Filter::new(&topic).unwrap()]);
        options.limits.max_events = NonZeroU64::new(60_000).unwrap();
        stalled.push(hub.subscribe(options, Instant::now()).unwrap());
        for _ in 0..15_000 {
            let event = NewEvent::new(Topic::new(&topic).unwrap(), Bytes::new());
            hub.publish([event], Instant::now()).unwrap();
        }
        assert!(hub.stats().retained_bytes <= BUDGET);
    }
    let held = dhat::HeapStats::get().curr_bytes - before;
    // Each place has 32 bytes: 15,000 of each feed would be 6 MiB more.
    assert!(held as u64 <= BUDGET * 11 / 10, "{held}");
}

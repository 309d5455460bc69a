//! The memory of filters, in bytes that the allocator was asked for: less than [`FilterCost::bytes`] says, and in proportion to
//! the request that carried them.

use std::time::Instant;

use bytes::Bytes;
use proptest::prelude::*;
use tidegate_core::{
    ClientId, Filter, FilterCost, HistoryLimits, Hub, HubConfig, Limits, Overflow, SubscribeOptions,
};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// The bytes that a subscription holds beside its filters: itself, its registration, its signal and its own topic's feed.
const SUBSCRIPTION_BYTES: u64 = 4 << 10;

/// The most filters and tokens that the service lets one request have.
const MAX_FILTERS: usize = 1_024;
const MAX_TOKENS: usize = 8_192;

/// The bytes that a subscription with `filters` holds, of a hub that has others.
fn held(filters: &[String], overflow: Overflow) -> u64 {
    let hub = Hub::<Bytes>::new(HubConfig {
        history: HistoryLimits::OFF,
        max_filter_work: u64::MAX,
        ..HubConfig::new(1)
    });
    let subscribe = |id: &str, filters: &[String]| {
        let filters = filters.iter().map(|filter| Filter::new(filter).unwrap());
        let mut options = SubscribeOptions::new(ClientId::new(id).unwrap(), filters.collect());
        options.limits = Limits {
            overflow,
            ..Limits::default()
        };
        hub.subscribe(options, Instant::now()).unwrap()
    };
    let _other = subscribe("other", &["other.*".to_owned()]);
    let before = dhat::HeapStats::get().curr_bytes;
    let subscription = subscribe("c", filters);
    let held = dhat::HeapStats::get().curr_bytes - before;
    assert!(hub.stats().filter_bytes >= filters.len() as u64);
    drop(subscription);
    let left = dhat::HeapStats::get().curr_bytes.saturating_sub(before);
    // The registry keeps room for some more entries, whatever left, and the index for a part of what did: both at once.
    assert!(
        left < (8 << 10) + held / 8,
        "{left} of {held} bytes stay when it has left"
    );
    held as u64
}

/// The bytes of the filters as fields of a request: a tag, a length and the text.
fn on_the_wire(filters: &[String]) -> u64 {
    let length = |filter: &String| if filter.len() < 128 { 1 } else { 2 };
    let field = |filter: &String| 1 + length(filter) + filter.len() as u64;
    filters.iter().map(field).sum()
}

/// Filters of one of the shapes that cost the most in some way, as many as a request may have.
fn filters() -> impl Strategy<Value = Vec<String>> {
    let shape = (
        1..=32usize,
        1..=8usize,
        0..6usize,
        1..=MAX_FILTERS,
        any::<bool>(),
    );
    shape
        .prop_map(|(tokens, letters, shared, count, tails)| {
            let count = count.min(MAX_TOKENS / tokens).max(1);
            let name = |i: usize, place: usize| {
                let text = format!("{:x}", (i * 31 + place * 7 + 1) * 2_654_435_761);
                text.chars().cycle().take(letters).collect::<String>()
            };
            let filter = |i: usize| {
                let mut filter: Vec<String> = (0..tokens)
                    .map(|place| match place {
                        _ if place < shared && i >> place & 1 == 1 => "*".to_owned(),
                        _ if place < shared => "t".to_owned(),
                        _ => name(i, place),
                    })
                    .collect();
                filter[tokens - 1] = if tails && tokens > 1 && i.is_multiple_of(2) {
                    ">".to_owned()
                } else {
                    format!("{i}")
                };
                filter.join(".")
            };
            (0..count)
                .map(filter)
                .filter(|filter| filter.len() <= 256)
                .collect()
        })
        .prop_filter("no filters", |filters: &Vec<String>| !filters.is_empty())
}

#[test]
fn filters_hold_less_than_they_are_counted_for_and_give_it_back() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let config = ProptestConfig {
        cases: 60,
        ..ProptestConfig::default()
    };
    proptest!(config, |(filters in filters(), conflates in any::<bool>())| {
        let overflow = if conflates { Overflow::Conflate } else { Overflow::DropOldest };
        let held = held(&filters, overflow);
        let cost = FilterCost::of(&filters.iter().map(|f| Filter::new(f).unwrap()).collect::<Vec<_>>());
        let wire = on_the_wire(&filters);
        prop_assert!(held <= cost.bytes + SUBSCRIPTION_BYTES, "{} bytes of {}, {} filters such as {}", held, cost.bytes, filters.len(), filters[0]);
        prop_assert!(is_in_proportion(held, wire), "{held} bytes of a request of {wire}");
    });
    // As many filters as a request may have, each of as many tokens, as long as 64 KiB allow: the most of 336 shapes.
    let token = |i: usize, place: usize| format!("{:07x}", i * 31 + place * 7);
    let filter = |i| {
        (0..7)
            .map(move |place| token(i, place) + ".")
            .collect::<String>()
    };
    let longest: Vec<_> = (0..MAX_FILTERS)
        .map(|i| format!("{}{i}", filter(i)))
        .collect();
    let (held, wire) = (held(&longest, Overflow::Conflate), on_the_wire(&longest));
    assert!(held > 16 * (64 << 10), "{held} bytes are not the worst");
    assert!(
        is_in_proportion(held, wire),
        "{held} bytes of a request of {wire}"
    );
}

/// Whether what a request of `wire` bytes holds is at most 17 times its size, or that of one of 64 KiB where it is smaller.
fn is_in_proportion(held: u64, wire: u64) -> bool {
    held <= 17 * (64 << 10) || wire > 64 << 10
}

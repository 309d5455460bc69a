//! The cost of the worst legal requests, found by search: how long each lock is held, and how much a poll or a step does.
//!
//! Legal is what the service lets through by default: 1,024 filters and 8,192 tokens in a subscription, whose cost is at most
//! 256, and 1,000 events in a batch, of 64 KiB here.

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::prelude::*;

use crate::{
    Batch, ClientId, ClientIdPolicy, Filter, FilterCost, HistoryLimits, Hub, HubConfig, Limits,
    NewEvent, Overflow, Room, Start, SubscribeOptions, Subscription, SweepRules, Topic,
    held::take_longest,
};

/// The bound of the documents, and how much slower a build without optimization is.
const LONGEST_HOLD: Duration =
    Duration::from_millis(if cfg!(debug_assertions) { 5 * 15 } else { 5 });

const MAX_FILTERS: usize = 1_024;
const MAX_FILTER_TOKENS: usize = 8_192;
const MAX_EVENTS: usize = 1_000;
const REQUEST_BYTES: usize = 64 << 10;

/// A shape of filters, and of the topics that make them cost.
#[derive(Debug, Clone)]
struct Shape {
    /// How many tokens a filter has.
    tokens: usize,
    /// The places in which filters part into a literal and `*`.
    parted: Vec<usize>,
    /// Filters end with `>`.
    has_tails: bool,
    /// Filters of different subscriptions are the same.
    is_shared: bool,
    /// The last token is `*`, so that everything matches.
    matches: bool,
}

#[derive(Debug, Clone)]
struct Attack {
    shape: Shape,
    subscriptions: usize,
    filters: usize,
    overflow: u8,
    max_events: u64,
    last: Option<u32>,
    events: usize,
    key_bytes: usize,
    budget: u64,
}

fn attack() -> impl Strategy<Value = Attack> {
    let parted = prop::collection::vec(0..30usize, 0..8);
    let shape = (
        1..=32usize,
        parted,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(tokens, parted, has_tails, is_shared, matches)| Shape {
            tokens,
            parted,
            has_tails,
            is_shared,
            matches,
        });
    let overflow = 0..3u8;
    let limits = prop_oneof![Just(1u64), Just(1_024), Just(65_536)];
    let last = prop_oneof![Just(None), Just(Some(10)), Just(Some(u32::MAX))];
    let budget = prop_oneof![Just(u64::MAX), Just(1 << 20), Just(64 << 10)];
    let key = prop_oneof![4 => Just(0usize), 1 => Just(REQUEST_BYTES / 4)];
    (
        (shape, 1..=48usize, 1..=MAX_FILTERS, overflow, limits),
        (last, 1..=MAX_EVENTS, key, budget),
    )
        .prop_map(
            |(
                (shape, subscriptions, filters, overflow, max_events),
                (last, events, key_bytes, budget),
            )| {
                Attack {
                    shape,
                    subscriptions,
                    filters,
                    overflow,
                    max_events,
                    last,
                    events,
                    key_bytes,
                    budget,
                }
            },
        )
}

impl Shape {
    /// As many of `count` filters as are legal.
    fn filters(&self, subscription: usize, count: usize) -> Vec<Filter> {
        let count = count.min(MAX_FILTER_TOKENS / self.tokens).max(1);
        let own = if self.is_shared { 0 } else { subscription };
        let filter = |i: usize| {
            let mut tokens = vec!["t".to_owned(); self.tokens];
            for (bit, place) in self.parted.iter().enumerate() {
                if i >> bit & 1 == 1 && *place < self.tokens {
                    tokens[*place] = "*".to_owned();
                }
            }
            tokens[self.tokens - 1] = match (self.has_tails && self.tokens > 1, self.matches) {
                (true, _) => ">".to_owned(),
                (_, true) => "*".to_owned(),
                _ => format!("x{own}x{i}"),
            };
            Filter::new(&tokens.join(".")).ok()
        };
        let mut filters: Vec<_> = (0..count).filter_map(filter).collect();
        while FilterCost::of(&filters).work > 256 {
            filters.truncate(filters.len() / 2);
        }
        filters
    }

    fn topic(&self, i: usize) -> Topic {
        let mut tokens = vec!["t".to_owned(); self.tokens];
        tokens[self.tokens - 1] = format!("e{i}");
        Topic::new(&tokens.join(".")).unwrap()
    }
}

impl Attack {
    fn options(&self, i: usize) -> SubscribeOptions {
        let id = ClientId::new(&format!("c{i}")).unwrap();
        SubscribeOptions {
            limits: Limits {
                max_events: NonZeroU64::new(self.max_events).unwrap(),
                max_bytes: NonZeroU64::new(64 << 20).unwrap(),
                overflow: [
                    Overflow::DropOldest,
                    Overflow::Conflate,
                    Overflow::Disconnect,
                ][usize::from(self.overflow)],
            },
            start: self.last.map_or(Start::Live, Start::Last),
            ..SubscribeOptions::new(id, self.shape.filters(i, self.filters))
        }
    }

    fn batch(&self) -> Vec<NewEvent<Bytes>> {
        let each = self.shape.topic(0).as_str().len() + self.key_bytes + 4;
        let count = self.events.min(REQUEST_BYTES / each).max(1);
        let event = |i: usize| NewEvent {
            key: (self.key_bytes > 0).then(|| "k".repeat(self.key_bytes).into()),
            ..NewEvent::new(self.shape.topic(i), Bytes::from_static(b"x"))
        };
        (0..count).map(event).collect()
    }
}

/// The longest holds of an attack, by request and lock.
#[derive(Debug, Default)]
struct Longest(BTreeMap<(&'static str, &'static str), Duration>);

impl Longest {
    /// Measures one request.
    fn of<R>(&mut self, request: &'static str, act: impl FnOnce() -> R) -> R {
        take_longest();
        let result = act();
        for (lock, held) in take_longest() {
            let entry = self.0.entry((request, lock)).or_default();
            *entry = held.max(*entry);
        }
        result
    }

    fn worst(&self) -> Option<(&(&'static str, &'static str), &Duration)> {
        self.0.iter().max_by_key(|(_, held)| **held)
    }
}

fn run(attack: &Attack) -> Longest {
    let mut longest = Longest::default();
    let mut now = Instant::now();
    let hub = Hub::new(HubConfig {
        client_ids: ClientIdPolicy::Takeover,
        memory_budget: attack.budget,
        history: HistoryLimits::default(),
        ..HubConfig::new(1)
    });
    let mut cx = Context::from_waker(Waker::noop());
    let mut batch = Batch::default();
    let mut poll = |subscription: &mut Subscription<Bytes>| {
        let room = Room {
            bytes: 16 << 10,
            overhead: 16,
            ..Room::events(usize::MAX)
        };
        subscription.poll_next(&mut cx, room, &mut batch)
    };
    // A history of what the filters have to be compared with.
    for _ in 0..10_000 / attack.events.max(100) {
        longest.of("publish", || hub.publish(attack.batch(), now).unwrap());
    }
    let mut subscriptions = Vec::new();
    for i in 0..attack.subscriptions {
        let options = attack.options(i);
        let subscription = longest.of("subscribe", || hub.subscribe(options, now).unwrap());
        subscriptions.push(subscription);
    }
    for _ in 0..3 {
        longest.of("publish", || hub.publish(attack.batch(), now).unwrap());
        for subscription in &mut subscriptions {
            let _ = longest.of("poll", || poll(subscription));
        }
    }
    longest.of("list", || hub.subscriptions());
    longest.of("sweep", || hub.sweep(&SweepRules::default(), now));
    // Everything in history is too old at once.
    now += Duration::from_secs(3_600);
    longest.of("expire", || hub.expire_history(now));
    // Each takes over from another, and the others leave.
    let options = attack.options(0);
    let newer = longest.of("subscribe", || hub.subscribe(options, now).unwrap());
    for subscription in &mut subscriptions {
        for _ in 0..100 {
            let polled = longest.of("poll", || poll(subscription));
            if !matches!(polled, Poll::Ready(Ok(()))) {
                break;
            }
        }
    }
    while let Some(subscription) = subscriptions.pop() {
        longest.of("leave", || drop(subscription));
    }
    longest.of("leave", || drop(newer));
    assert_eq!(hub.stats().feeds, 0);
    assert_eq!(hub.stats().filter_bytes, 0);
    longest
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "the figure is for whoever runs it by hand"
)]
fn no_legal_request_of_64_kib_holds_a_lock_for_long() {
    let cases = if cfg!(debug_assertions) { 25 } else { 150 };
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let worst = std::cell::RefCell::new((Duration::ZERO, String::new()));
    proptest!(config, |(attack in attack())| {
        let mut longest = run(&attack);
        // Work is the same each time. What is long once only is the system's, which gives memory to this thread.
        for _ in 0..2 {
            if longest.worst().is_some_and(|(_, held)| *held > LONGEST_HOLD) {
                longest = run(&attack);
            }
        }
        if let Some((at, held)) = longest.worst() {
            if *held > worst.borrow().0 {
                *worst.borrow_mut() = (*held, format!("{at:?} of {attack:?}"));
            }
            prop_assert!(*held <= LONGEST_HOLD, "{at:?} was held for {held:?}");
        }
    });
    println!("the longest hold: {:?}", worst.borrow());
}

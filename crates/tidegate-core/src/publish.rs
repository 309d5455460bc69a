//! What the publish lock guards, and publishing under it.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Release},
    task::Waker,
    time::Instant,
};

use crate::{
    close::CloseReason,
    counters::{Counters, add},
    event::{Event, NewEvent, Payload, Position},
    feed::{Feed, FeedKey, FeedKind},
    history::History,
    limits::Limits,
    options::HubConfig,
    predicate::PredicateList,
    registry::Registry,
    retained::Retained,
    sync::{AtomicU64, Mutex, MutexGuard},
    trie::Trie,
};

/// Over the memory budget, one part in so many of the sequences that are kept goes at a time: few enough
/// steps to look at all feeds for each, small enough not to hold the publish lock for long.
const EVICTION_STEPS: u64 = 32;

/// What the handles and the subscriptions of a hub share. See the crate's *Lock order*.
#[derive(Debug)]
pub(crate) struct Shared<P> {
    pub(crate) epoch: u64,
    pub(crate) max_limits: Limits,
    memory_budget: u64,
    retained: Retained,
    /// The publish lock.
    pub(crate) publish: Mutex<State<P>>,
    pub(crate) history: Mutex<History<P>>,
    /// Written under the publish lock, read by publishers before they take it.
    predicates: Mutex<PredicateList<P>>,
    /// Everything up to this sequence is in history and in the feeds. Written under the publish lock.
    pub(crate) committed: AtomicU64,
    pub(crate) registry: Registry<P>,
    pub(crate) counters: Counters,
}

/// What the publish lock guards.
#[derive(Debug)]
pub(crate) struct State<P> {
    /// The sequence of the newest event.
    pub(crate) head: u64,
    feeds: HashMap<FeedKey, Arc<Feed<P>>>,
    /// The same feeds, by each of their filters.
    by_filter: Trie<Arc<Feed<P>>>,
    closed: Option<CloseReason>,
}

/// What became of a batch that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The epoch of the sequences.
    pub epoch: u64,
    /// The sequence of the first event.
    pub first_sequence: u64,
    /// The sequence of the last event.
    pub last_sequence: u64,
    /// How many events.
    pub count: usize,
    /// How many subscriptions matched, summed over the events.
    pub matched: u64,
}

/// Why events were not published. Nothing of the batch was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The hub is closed.
    #[error("not published: {0}")]
    Closed(CloseReason),
    /// A sequence handed to [`Hub::append`](crate::Hub::append) is not above the one before it.
    #[error("not appended: sequence {given} is not above {head}")]
    OutOfOrder {
        /// The sequence before it.
        head: u64,
        /// The sequence that was given.
        given: u64,
    },
}

// ===== impl Shared =====

impl<P: Payload> Shared<P> {
    pub(crate) fn new(config: HubConfig) -> Self {
        let retained = Retained::default();
        let state = State {
            head: 0,
            feeds: HashMap::new(),
            by_filter: Trie::new(),
            closed: None,
        };
        Self {
            epoch: config.epoch,
            max_limits: config.max_limits,
            memory_budget: config.memory_budget,
            retained: retained.clone(),
            publish: Mutex::new(state),
            history: Mutex::new(History::new(config.history, retained)),
            predicates: Mutex::new(PredicateList::default()),
            committed: AtomicU64::new(0),
            registry: Registry::new(config.client_ids),
            counters: Counters::default(),
        }
    }

    pub(crate) const fn position(&self, sequence: u64) -> Position {
        Position {
            epoch: self.epoch,
            sequence,
        }
    }

    /// Refuses all that comes after and ends every subscription. The first reason holds.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.publish.lock().closed.get_or_insert(reason);
        self.registry.close(reason);
    }

    /// How many feeds there are.
    pub(crate) fn feeds(&self) -> usize {
        self.publish.lock().feeds.len()
    }

    /// How many bytes all events hold.
    pub(crate) fn retained_bytes(&self) -> u64 {
        self.retained.bytes()
    }

    /// Puts `event` into the memory that all its takers will share, and counts it.
    pub(crate) fn share(&self, event: NewEvent<P>) -> Arc<Event<P>> {
        event.into_shared(&self.retained)
    }

    /// Numbers `events`, in their order, with `sequence(head, i)`, and appends them everywhere.
    pub(crate) fn commit(
        &self,
        mut events: Vec<Arc<Event<P>>>,
        now: Instant,
        sequence: impl Fn(u64, usize) -> u64,
    ) -> Result<Published, PublishError> {
        let mut wake = Vec::new();
        let published = {
            let mut state = self.lock_with_verdicts(&mut events);
            state.number(&mut events, sequence)?;
            let first = state.head + 1;
            let first_sequence = events.first().map_or(first, |event| event.sequence);
            let matched = state.append(&events, &mut wake);
            self.remember(&events, now);
            self.keep_within_budget(&state);
            self.committed.store(state.head, Release);
            Published {
                epoch: self.epoch,
                first_sequence,
                last_sequence: state.head,
                count: events.len(),
                matched,
            }
        };
        wake.into_iter().for_each(Waker::wake);
        add(&self.counters.published, published.count as u64);
        add(&self.counters.matched, published.matched);
        Ok(published)
    }

    /// Takes the publish lock, with every predicate there is having been asked about `events` before.
    fn lock_with_verdicts(&self, events: &mut [Arc<Event<P>>]) -> MutexGuard<'_, State<P>> {
        loop {
            let predicates = self.predicates.lock().clone();
            predicates.evaluate(events);
            let state = self.publish.lock();
            if self.predicates.lock().version == predicates.version {
                return state;
            }
        }
    }

    /// The feed of `kind`, made if there is none.
    pub(crate) fn feed(&self, state: &mut State<P>, kind: FeedKind<P>) -> Arc<Feed<P>> {
        let key = kind.key();
        if let Some(feed) = state.feeds.get(&key) {
            return Arc::clone(feed);
        }
        if let Some(predicate) = &kind.predicate {
            let mut predicates = self.predicates.lock();
            *predicates = predicates.with(predicate);
        }
        let feed = Arc::new(Feed::new(kind, self.retained.clone()));
        state.insert(key, &feed);
        feed
    }

    fn remember(&self, events: &[Arc<Event<P>>], now: Instant) {
        let mut history = self.history.lock();
        for event in events {
            history.append(event, now);
        }
    }

    /// Evicts the oldest events of all, below one sequence for the whole hub: they are shared, so taking
    /// one from a single feed might free nothing.
    fn keep_within_budget(&self, state: &State<P>) {
        while self.retained.bytes() > self.memory_budget {
            let mut history = self.history.lock();
            let feeds = state.feeds.values().filter_map(|feed| feed.lock().oldest());
            let Some(oldest) = feeds.chain(history.oldest()).min() else {
                // All that is left is on its way to subscribers.
                return;
            };
            let floor = oldest + (state.head - oldest) / EVICTION_STEPS;
            history.evict_through(floor);
            drop(history);
            for feed in state.feeds.values() {
                feed.lock().evict_through(floor);
            }
        }
    }

    /// Waits until a publisher that holds the publish lock has committed.
    pub(crate) fn pass_through_publish_lock(&self) {
        drop(self.publish.lock());
    }

    /// Forgets those of `feeds` that nobody uses any more.
    pub(crate) fn forget_unused(&self, feeds: &[Arc<Feed<P>>]) {
        if feeds.is_empty() {
            return;
        }
        let mut state = self.publish.lock();
        for feed in feeds {
            if state.forget_if_unused(feed)
                && let Some(predicate) = &feed.kind().predicate
            {
                let mut predicates = self.predicates.lock();
                *predicates = predicates.without(predicate);
            }
        }
    }
}

// ===== impl State =====

impl<P: Payload> State<P> {
    /// Gives each event its sequence, or none of them when one would be out of order.
    fn number(
        &self,
        events: &mut [Arc<Event<P>>],
        sequence: impl Fn(u64, usize) -> u64,
    ) -> Result<(), PublishError> {
        if let Some(reason) = self.closed {
            return Err(PublishError::Closed(reason));
        }
        let mut head = self.head;
        for (i, event) in events.iter_mut().enumerate() {
            let given = sequence(self.head, i);
            if given <= head {
                return Err(PublishError::OutOfOrder { head, given });
            }
            head = given;
            Arc::get_mut(event)
                .expect("nobody else has it yet")
                .sequence = given;
        }
        Ok(())
    }

    /// Appends numbered events to the feeds that match. Returns how many subscriptions matched.
    fn append(&mut self, events: &[Arc<Event<P>>], wake: &mut Vec<Waker>) -> u64 {
        let mut matched = 0;
        let mut feeds: Vec<&Arc<Feed<P>>> = Vec::new();
        let mut previous = None;
        for event in events {
            // A batch is often of one topic.
            if previous != Some(event.topic()) {
                feeds.clear();
                self.by_filter
                    .matching(event.topic().as_str(), &mut |feed| feeds.push(feed));
                previous = Some(event.topic());
            }
            for feed in feeds.iter().filter(|feed| feed.accepts(event)) {
                matched += feed.lock().append(event, wake);
            }
        }
        self.head = events.last().map_or(self.head, |event| event.sequence);
        matched
    }

    fn insert(&mut self, key: FeedKey, feed: &Arc<Feed<P>>) {
        for filter in feed.filters().iter() {
            self.by_filter.insert(filter, Arc::clone(feed));
        }
        self.feeds.insert(key, Arc::clone(feed));
    }

    /// Returns whether it did.
    fn forget_if_unused(&mut self, feed: &Arc<Feed<P>>) -> bool {
        let key = feed.kind().key();
        let known = self.feeds.get(&key);
        let is_known = known.is_some_and(|known| Arc::ptr_eq(known, feed));
        let is_forgotten = is_known && feed.lock().is_unused();
        if is_forgotten {
            self.feeds.remove(&key);
            for filter in feed.filters().iter() {
                self.by_filter
                    .remove(filter, |other| Arc::ptr_eq(other, feed));
            }
        }
        is_forgotten
    }
}

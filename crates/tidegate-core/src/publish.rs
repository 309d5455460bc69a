//! The publish lock: the state that it guards, and publishing under it.
//!
//! Work that may take long, or runs code of the application, is done before the lock or after it: events are allocated
//! and predicates evaluated before, subscriptions woken after.

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
    sending::Senders,
    sync::{AtomicU64, Mutex, MutexGuard},
    trie::Trie,
};

/// Over the memory budget, the hub evicts 1/32 of the retained sequence range per step. A step looks at all feeds, so
/// there must be few; it evicts more than is needed by up to its size, so it must be small. With 32, at most 3 % too
/// many sequences go, whatever their sizes. Chosen, not measured.
const EVICTION_STEPS: u64 = 32;

/// The hub itself, which its handles and its subscriptions share. See the crate's *Lock order*.
#[derive(Debug)]
pub(crate) struct Shared<P> {
    /// The identity of the sequence space.
    pub(crate) epoch: u64,
    /// The largest limits of a subscription.
    pub(crate) max_limits: Limits,
    /// The most bytes that events may hold.
    memory_budget: u64,
    /// The bytes that events hold.
    retained: Retained,
    /// The events that are being sent, which have a share of the budget.
    pub(crate) senders: Arc<Senders>,
    /// The publish lock, with its state.
    pub(crate) publish: Mutex<State<P>>,
    /// Recent events. Written under the publish lock, read by replays without it.
    pub(crate) history: Mutex<History<P>>,
    /// The predicates of all feeds. Written under the publish lock, read by publishers before they take it.
    predicates: Mutex<PredicateList<P>>,
    /// Everything up to this sequence is in history and in the feeds. Written under the publish lock.
    pub(crate) committed: AtomicU64,
    /// The subscriptions, by client id.
    pub(crate) registry: Registry<P>,
    /// The counters of the hub.
    pub(crate) counters: Counters,
}

/// The state behind the publish lock.
#[derive(Debug)]
pub(crate) struct State<P> {
    /// The sequence of the newest event. Ahead of `committed` only while a publisher is in between.
    pub(crate) head: u64,
    /// Every feed that a subscription uses.
    feeds: HashMap<FeedKey, Arc<Feed<P>>>,
    /// The same feeds, by each of their filters.
    by_filter: Trie<Arc<Feed<P>>>,
    /// The reason why the hub was closed; nothing is published after it.
    closed: Option<CloseReason>,
}

/// The place of a batch that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The epoch of the sequences.
    pub epoch: u64,
    /// The sequence of the first event; of an empty batch, that of the next event to come.
    pub first_sequence: u64,
    /// The sequence of the last event; of an empty batch, that of the newest event before it.
    pub last_sequence: u64,
    /// How many events.
    pub count: usize,
    /// How many subscriptions matched, summed over the events.
    pub matched: u64,
}

/// The reason why events were not published. None of the batch was.
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
    /// An empty hub.
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
            senders: Arc::new(Senders::new(config.memory_budget)),
            publish: Mutex::new(state),
            history: Mutex::new(History::new(config.history, retained)),
            predicates: Mutex::new(PredicateList::default()),
            committed: AtomicU64::new(0),
            registry: Registry::new(config.client_ids),
            counters: Counters::default(),
        }
    }

    /// A position of this hub.
    pub(crate) const fn position(&self, sequence: u64) -> Position {
        Position {
            epoch: self.epoch,
            sequence,
        }
    }

    /// Refuses further events and subscriptions, and ends every subscription. The first reason holds.
    pub(crate) fn close(&self, reason: CloseReason) {
        // One lock after the other: under both, publishers would wait while everybody is woken.
        self.publish.lock().closed.get_or_insert(reason);
        self.registry.close(reason);
    }

    /// How many feeds there are.
    pub(crate) fn feeds(&self) -> usize {
        self.publish.lock().feeds.len()
    }

    /// How many bytes all events hold, wherever they are referred to from.
    pub(crate) fn retained_bytes(&self) -> u64 {
        self.retained.bytes()
    }

    /// Moves `event` into the memory that history, feeds and subscribers will share, and counts it.
    pub(crate) fn share(&self, event: NewEvent<P>) -> Arc<Event<P>> {
        event.into_shared(&self.retained)
    }

    /// Numbers `events`, in their order, with `sequence(head, i)`, and appends them everywhere: the publisher's half
    /// of the protocol in [`signal`](crate::signal).
    pub(crate) fn commit(
        &self,
        mut events: Vec<Arc<Event<P>>>,
        now: Instant,
        sequence: impl Fn(u64, usize) -> u64,
    ) -> Result<Published, PublishError> {
        let mut wake = Vec::new();
        let published = {
            let mut state = self.lock_with_verdicts(&mut events);
            // Before anything else, because it may refuse: then nothing has changed.
            state.number(&mut events, sequence)?;
            let first = state.head + 1;
            let first_sequence = events.first().map_or(first, |event| event.sequence);
            let matched = state.append(&events, &mut wake);
            self.remember(&events, now);
            // After both, since evicting from one of them frees nothing that the other still has; and with the new
            // events in place, which may have to go as well.
            self.keep_within_budget(&state);
            // Last. Release: whoever reads this watermark finds every push to a ready list that led up to it. Once for
            // the batch, which so becomes visible at once.
            self.committed.store(state.head, Release);
            Published {
                epoch: self.epoch,
                first_sequence,
                last_sequence: state.head,
                count: events.len(),
                matched,
            }
        };
        // Under no lock: a waker runs code of the executor, and may poll a subscription of this hub at once.
        wake.into_iter().for_each(Waker::wake);
        add(&self.counters.published, published.count as u64);
        add(&self.counters.matched, published.matched);
        Ok(published)
    }

    /// Takes the publish lock once `events` carry the answer of every predicate there is. Predicates are code of the
    /// application and run under no lock; see *Late comers* in [`predicate`](crate::predicate).
    fn lock_with_verdicts(&self, events: &mut [Arc<Event<P>>]) -> MutexGuard<'_, State<P>> {
        loop {
            let predicates = self.predicates.lock().clone();
            predicates.evaluate(events);
            let state = self.publish.lock();
            // The list is written under the publish lock only, so from here on it stays as it is.
            if self.predicates.lock().version == predicates.version {
                return state;
            }
        }
    }

    /// The feed of `kind`, made if there is none. The caller holds the publish lock and joins the feed under it: until
    /// then it counts as unused.
    pub(crate) fn feed(&self, state: &mut State<P>, kind: FeedKind<P>) -> Arc<Feed<P>> {
        let key = kind.key();
        if let Some(feed) = state.feeds.get(&key) {
            return Arc::clone(feed);
        }
        if let Some(predicate) = &kind.predicate {
            // A new version sends publishers that wait for the publish lock back to evaluate it.
            let mut predicates = self.predicates.lock();
            *predicates = predicates.with(predicate);
        }
        let feed = Arc::new(Feed::new(kind, self.retained.clone()));
        state.insert(key, &feed);
        feed
    }

    /// Appends `events` to history.
    fn remember(&self, events: &[Arc<Event<P>>], now: Instant) {
        let mut history = self.history.lock();
        for event in events {
            history.append(event, now);
        }
    }

    /// Evicts the oldest events until the hub is within its memory budget, up to one sequence for the whole hub:
    /// events are shared, so evicting one from a single feed might free nothing.
    fn keep_within_budget(&self, state: &State<P>) {
        // What is sent beyond its share is about to be freed by other means, and evicting anything for it would free
        // none of it.
        while self.retained.bytes() > self.memory_budget.saturating_add(self.senders.excess()) {
            let mut history = self.history.lock();
            let feeds = state.feeds.values().filter_map(|feed| feed.lock().oldest());
            let Some(oldest) = feeds.chain(history.oldest()).min() else {
                // Everything left is on its way to subscribers, and is freed when they drop it.
                return;
            };
            let floor = oldest + (state.head - oldest) / EVICTION_STEPS;
            history.evict_through(floor);
            // Before the feeds evict, which may free many events: replays need not wait for that.
            drop(history);
            for feed in state.feeds.values() {
                feed.lock().evict_through(floor);
            }
        }
    }

    /// Waits until the publisher that holds the publish lock, if there is one, has committed.
    pub(crate) fn pass_through_publish_lock(&self) {
        drop(self.publish.lock());
    }

    /// Forgets the feeds among `feeds` that no subscription uses any more.
    pub(crate) fn forget_unused(&self, feeds: &[Arc<Feed<P>>]) {
        // Without the publish lock where there is nothing to forget: a subscription that was taken over leaves even its
        // client's own feed to the newer one.
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
    /// Gives each event its sequence. Fails when the hub is closed or a sequence is out of order; then the caller
    /// drops all of them.
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

    /// Appends numbered events to the feeds that match. Returns how many subscriptions matched, summed over the events.
    fn append(&mut self, events: &[Arc<Event<P>>], wake: &mut Vec<Waker>) -> u64 {
        let mut matched = 0;
        let mut feeds: Vec<&Arc<Feed<P>>> = Vec::new();
        let mut previous = None;
        for event in events {
            // A batch is often of one topic: then one search of the trie does for all of it.
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

    /// Adds a feed, by its key and by each of its filters.
    fn insert(&mut self, key: FeedKey, feed: &Arc<Feed<P>>) {
        for filter in feed.filters().iter() {
            self.by_filter.insert(filter, Arc::clone(feed));
        }
        self.feeds.insert(key, Arc::clone(feed));
    }

    /// Removes `feed` if no subscription uses it. Returns whether it did.
    fn forget_if_unused(&mut self, feed: &Arc<Feed<P>>) -> bool {
        // Somebody may have joined it since its last subscription left, or another may have forgotten it, and a new
        // feed stands under its key: so by identity, and under the publish lock, where feeds are joined.
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

//! The hub: publishes events to whoever wants them, and lets subscribers in.
//!
//! # Publishing
//! [`Hub::publish`] never waits for a subscriber. It numbers the events, appends them to history and to
//! the feed of each distinct filter that matches, and wakes who was parked there. Its cost is in
//! distinct matching filters and parked subscribers, never in the backlog of anyone.
//!
//! # Closing
//! [`Hub::close`] ends every subscription with a reason and lets no further one in.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed, Release},
    },
    task::Waker,
    time::Instant,
};

use crate::{
    close::CloseReason,
    counters::{Counters, Stats, add},
    event::{Event, NewEvent, Payload, Position},
    feed::{Feed, FeedKey, FeedKind},
    filter::Filter,
    groups::disjoint_groups,
    history::{History, HistoryLimits},
    info::{Holder, SubscriptionInfo},
    limits::{Limits, Overflow},
    options::{HubConfig, Start, SubscribeOptions},
    predicate::{Live, Predicate},
    registry::{Feeds, Listed, Refusal, Registry, SweepRules, Swept},
    retained::Retained,
    signal::Signal,
    subscription::{Parts, Subscription},
    sync::{AtomicU64, Mutex, MutexGuard},
    topic::ClientId,
    trie::Trie,
};

/// Over the memory budget, one part in so many of the sequences that are kept goes at a time: few enough
/// steps to look at all feeds for each, small enough not to hold the publish lock for long.
const EVICTION_STEPS: u64 = 32;

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
    /// A sequence handed to [`Hub::append`] is not above the one before it.
    #[error("not appended: sequence {given} is not above {head}")]
    OutOfOrder {
        /// The sequence before it.
        head: u64,
        /// The sequence that was given.
        given: u64,
    },
}

/// Why a subscription was not let in. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The client id is in use, and [`ClientIdPolicy::Reject`](crate::ClientIdPolicy::Reject) holds, or it is another principal that uses
    /// it.
    #[error("the client id is in use")]
    ClientIdTaken,
    /// The position to resume from is of this epoch and after its newest event.
    #[error("the position to resume from is ahead of the newest event, {head}")]
    PositionAhead {
        /// The sequence of the newest event.
        head: u64,
    },
    /// The hub is closed.
    #[error("not subscribed: {0}")]
    Closed(CloseReason),
}

/// The handle to a hub; its clones are handles to the same one. See [the crate](crate).
#[derive(Debug)]
pub struct Hub<P> {
    shared: Arc<Shared<P>>,
}

/// What the handles and the subscriptions of a hub share. See the crate's *Lock order*.
#[derive(Debug)]
pub(crate) struct Shared<P> {
    pub(crate) epoch: u64,
    pub(crate) most: Limits,
    memory_budget: u64,
    retained: Retained,
    /// The publish lock.
    pub(crate) publish: Mutex<State<P>>,
    pub(crate) history: Mutex<History<P>>,
    /// Written under the publish lock, read by publishers before they take it.
    predicates: Mutex<Live<P>>,
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

// ===== impl Hub =====

impl<P> Clone for Hub<P> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<P: Payload> Hub<P> {
    /// Makes a hub.
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        Self {
            shared: Arc::new(Shared::new(config)),
        }
    }

    /// Publishes `events` in their order, with consecutive sequences and no others' between. All become
    /// visible at once. Never waits for a subscriber.
    ///
    /// `now` is the time that the age of history is measured by.
    ///
    /// # Errors
    /// [`PublishError::Closed`] when the hub was closed; then none is published.
    pub fn publish(
        &self,
        events: impl IntoIterator<Item = NewEvent<P>>,
        now: Instant,
    ) -> Result<Published, PublishError> {
        let events: Vec<_> = events
            .into_iter()
            .map(|event| self.shared.share(event))
            .collect();
        self.shared
            .commit(events, now, |head, i| head + 1 + i as u64)
    }

    /// Appends events that a sequencer outside has numbered. Sequences must increase, within the call
    /// and from call to call; they need not be consecutive.
    ///
    /// # Errors
    /// [`PublishError`]; then none is appended.
    pub fn append(
        &self,
        events: impl IntoIterator<Item = (u64, NewEvent<P>)>,
        now: Instant,
    ) -> Result<Published, PublishError> {
        let (sequences, events): (Vec<_>, Vec<_>) = events
            .into_iter()
            .map(|(sequence, event)| (sequence, self.shared.share(event)))
            .unzip();
        self.shared.commit(events, now, |_, i| sequences[i])
    }

    /// Lets a subscriber in. From here on it misses nothing that it is not told of.
    ///
    /// `now` is the time that the age of history is measured by.
    ///
    /// # Errors
    /// [`SubscribeError`]; then nothing has changed, and a subscription that holds the client id goes on.
    pub fn subscribe(
        &self,
        options: SubscribeOptions,
        now: Instant,
    ) -> Result<Subscription<P>, SubscribeError> {
        self.subscribe_matching(options, None, now)
    }

    /// As [`subscribe`](Self::subscribe), for those matching events only whose payload passes `predicate`.
    /// Those to this client alone come in any case.
    ///
    /// A subscription that conflates keeps the latest event of each key that passes: one that does not pass
    /// replaces nothing.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub fn subscribe_matching(
        &self,
        options: SubscribeOptions,
        predicate: Option<&Predicate<P>>,
        now: Instant,
    ) -> Result<Subscription<P>, SubscribeError> {
        let shared = &self.shared;
        if let Start::After(position) = options.start {
            let head = shared.committed.load(Acquire);
            if position.epoch == shared.epoch && position.sequence > head {
                return Err(SubscribeError::PositionAhead { head });
            }
        }
        let groups = disjoint_groups(options.filters).into_iter();
        let mut kinds: Vec<_> = groups
            .map(|filters| FeedKind {
                filters,
                predicate: predicate.cloned(),
            })
            .collect();
        kinds.push(FeedKind {
            filters: [Filter::for_client(&options.client_id)].into(),
            predicate: None,
        });

        let ends_when_stalled = options.limits.overflow == Overflow::Disconnect;
        let signal = Arc::new(Signal::new(ends_when_stalled, options.reset));
        let holder = Holder {
            client: options.client_id,
            principal: options.principal,
        };
        let id = shared.registry.enter(&holder, &signal)?;
        shared.history.lock().expire(now);
        let parts = Parts {
            id,
            holder,
            limits: options.limits.clamped(shared.most),
            signal,
        };

        let (subscription, feeds) = {
            let mut state = shared.publish.lock();
            let feeds: Feeds<P> = kinds
                .into_iter()
                .map(|kind| shared.feed(&mut state, kind))
                .collect();
            let shared = Arc::clone(shared);
            let subscription =
                Subscription::begin(shared, parts, &feeds, options.start, state.head);
            (subscription, feeds)
        };
        shared.registry.joined(id, feeds);
        Ok(subscription)
    }

    /// Every subscription that was not dropped, in the order in which they came, as its last poll left it.
    /// Takes each of their feeds' locks in turn, for a moment.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<SubscriptionInfo> {
        let mut subscriptions: Vec<_> = self
            .shared
            .registry
            .list()
            .iter()
            .map(Listed::info)
            .collect();
        subscriptions.sort_unstable_by_key(|subscription| subscription.id);
        subscriptions
    }

    /// Ends every subscription of `client` with [`CloseReason::Disconnected`]. Returns how many.
    pub fn disconnect(&self, client: &ClientId) -> usize {
        let registry = &self.shared.registry;
        registry.end_client(client, CloseReason::Disconnected)
    }

    /// Ends every subscription with `reason` and refuses all that comes after. The first reason holds.
    pub fn close(&self, reason: CloseReason) {
        self.shared.close(reason);
    }

    /// Ends one subscription, by its [identity](Subscription::id), unless it has ended before. The first
    /// reason holds. Returns whether it is there.
    pub fn end(&self, id: u64, reason: CloseReason) -> bool {
        self.shared.registry.end(id, reason)
    }

    /// Lets go of history that is too old at `now`. Publishing and subscribing do so too; call this
    /// from time to time for hubs where neither happens.
    pub fn expire_history(&self, now: Instant) {
        self.shared.history.lock().expire(now);
    }

    /// Keeps as much history as `limits` allow from here on. What they do not allow goes at once; what has gone
    /// does not come back.
    pub fn set_history_limits(&self, limits: HistoryLimits, now: Instant) {
        self.shared.history.lock().set_limits(limits, now);
    }

    /// Looks at all subscriptions for consumers that do not take what is there, and does what the rules
    /// say. Call it every second or so, or a few times within the shortest of the rules' times: what a
    /// sweep cannot see, it cannot count. It takes no lock that publishing takes, but for a moment that of one
    /// subscription at a time.
    pub fn sweep(&self, rules: &SweepRules, now: Instant) -> Swept {
        let swept = self.shared.registry.sweep(rules, now);
        let Counters {
            stalled,
            ended_stalled,
            reset,
            ..
        } = &self.shared.counters;
        stalled.store(swept.stalled, Relaxed);
        add(ended_stalled, swept.closed);
        add(reset, swept.reset);
        swept
    }

    /// The position of the newest event.
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.position(self.shared.committed.load(Acquire))
    }

    /// The state of the hub in numbers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let feeds = shared.feeds();
        let clients = shared.registry.clients();
        let history = shared.history.lock();
        let (history_events, history_bytes) = (history.len(), history.bytes());
        Stats {
            retained_bytes: shared.retained_bytes(),
            clients,
            feeds,
            history_events,
            history_bytes,
            ..shared.counters.snapshot()
        }
    }
}

impl From<Refusal> for SubscribeError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Taken => Self::ClientIdTaken,
            Refusal::Closed(reason) => Self::Closed(reason),
        }
    }
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
            most: config.most,
            memory_budget: config.memory_budget,
            retained: retained.clone(),
            publish: Mutex::new(state),
            history: Mutex::new(History::new(config.history, retained)),
            predicates: Mutex::new(Live::default()),
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
    fn commit(
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
            predicates.judge(events);
            let state = self.publish.lock();
            if self.predicates.lock().version == predicates.version {
                return state;
            }
        }
    }

    /// The feed of `kind`, made if there is none.
    fn feed(&self, state: &mut State<P>, kind: FeedKind<P>) -> Arc<Feed<P>> {
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
            for feed in feeds.iter().filter(|feed| feed.admits(event)) {
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

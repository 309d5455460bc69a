//! The publish lock: the state that it guards, and committing under it.
//!
//! Work that may take long, or runs code of the application, is done before the lock or after it: events are allocated, their feeds
//! searched for and predicates evaluated before, subscriptions woken after. Under it, events are numbered and
//! appended, and wakers collected.
//!
//! # Late comers
//! A feed that was added after the search for an event has to get the event all the same, if its subscription begins before the
//! commit. Such feeds are listed as late while a publisher may need them, and are matched alone, under the lock, if that is little.
//! If it is more, or a predicate would have to run, the publisher lets go of the lock, searches again while nobody can add a
//! feed, and commits: it tries twice at most, however many subscribers come and go.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64 as AtomicCounter,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::Waker,
    time::Instant,
};

use crate::{
    close::CloseReason,
    counters::{Counters, add},
    event::{Event, NewEvent, Payload, Position},
    feed::{Feed, FeedKind},
    freed::Freed,
    history::History,
    index::{FilterBytesExceeded, Index, Joined, Late},
    limits::Limits,
    options::HubConfig,
    part::Part,
    registry::Registry,
    retained::Retained,
    sending::Senders,
    sync::{AtomicU64, Mutex},
};

/// Over the memory budget, the hub evicts 1/32 of the retained sequence range at once. It looks at all feeds that hold events then,
/// so that must be seldom; it evicts more than is needed, so that must be small. With 32, at most 3 % too many sequences go,
/// whatever their sizes. Chosen, not measured.
const EVICTION_STEPS: u64 = 32;

/// The most places of events, in history and in feeds, that are evicted beyond what is needed: publishers wait for it, and
/// 8,192 take about 1 ms.
const MAX_EVICTION: u64 = 8_192;

/// How many feeds are joined or forgotten under one lock of the index, in which others who come or go wait. Chosen; `cost_tests.rs`
/// measures the lock.
const JOINS: usize = 64;

/// The most filters of feeds that are remembered as late: a count of feeds would bound neither their memory nor the time
/// to match or to free them. A publisher that needs a forgotten one searches again. Chosen, not measured.
const MAX_LATE: usize = 1_024;

/// The hub itself, which its handles and its subscriptions share. See the crate's *Lock order*.
#[derive(Debug)]
pub(crate) struct Shared<P> {
    /// The epoch, to be read together with `committed`: both are changed under this lock, where the epoch changes. The
    /// innermost lock but that of a signal.
    epoch: Mutex<u64>,
    /// The largest limits of a subscription.
    pub(crate) max_limits: Limits,
    /// The most work that the filters of a subscription may add to a search.
    pub(crate) max_filter_work: u64,
    /// The most bytes that filters may hold.
    pub(crate) max_filter_bytes: u64,
    /// The most bytes that events may hold.
    memory_budget: u64,
    /// The bytes that events hold.
    retained: Retained,
    /// The feeds, by their filters.
    pub(crate) index: Index<P>,
    /// Whether any subscription has ever conflated, so that the subjects of events are worth hashing. It orders nothing:
    /// an event that misses it is hashed later.
    pub(crate) conflates: AtomicBool,
    /// The events that are being sent, which have a share of the budget.
    pub(crate) senders: Arc<Senders>,
    /// The publish lock, with its state.
    pub(crate) publish: Mutex<State<P>>,
    /// Held by [`Hub::append`](crate::Hub::append) from its first part to its last: no other may number events in between,
    /// lose any, or begin an epoch.
    pub(crate) appending: Mutex<()>,
    /// Recent events. Written under the publish lock, read by replays without it.
    pub(crate) history: Mutex<History<P>>,
    /// Everything up to this sequence is in history and in the feeds. Written under the publish lock.
    pub(crate) committed: AtomicU64,
    /// Rises with each range that was lost, and with each epoch, which has lost none. Written under the publish lock, before
    /// `committed`.
    pub(crate) losses: AtomicCounter,
    /// The subscriptions, by client id.
    pub(crate) registry: Registry<P>,
    /// The counters of the hub.
    pub(crate) counters: Counters,
}

/// The state behind the publish lock.
#[derive(Debug)]
pub(crate) struct State<P> {
    /// The identity of the sequence space.
    pub(crate) epoch: u64,
    /// The sequence of the newest event. Ahead of `committed` only while a publisher is in between.
    pub(crate) head: u64,
    /// Whether it is known where the sequences of this hub begin. If not, they begin with the first that it is handed.
    pub(crate) knows_beginning: bool,
    /// Feeds that were added while publishers were between search and commit, oldest first.
    pub(crate) late: Vec<Late<P>>,
    /// The highest version of a late feed that was forgotten because there were too many.
    pub(crate) late_forgotten: u64,
    /// The feeds that hold events, and some that did: what eviction has to look at.
    pub(crate) holding: Vec<Arc<Feed<P>>>,
    /// The next of them to look at, whether it still holds events.
    pub(crate) next_look: usize,
    /// The reason why the hub was closed; nothing is published after it.
    closed: Option<CloseReason>,
}

/// The sequences of a batch.
#[derive(Debug)]
pub(crate) enum Numbering {
    /// The next ones.
    Next,
    /// These, for the events in their order.
    Given(Vec<u64>),
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

impl Published {
    /// The place of this part of a batch and the part after it.
    pub(crate) const fn and(self, after: Self) -> Self {
        Self {
            epoch: after.epoch,
            first_sequence: self.first_sequence,
            last_sequence: after.last_sequence,
            count: self.count + after.count,
            matched: self.matched + after.matched,
        }
    }
}

/// The reason why events were not published. None of the batch was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The hub is closed.
    #[error("not published: {0}")]
    Closed(CloseReason),
    /// A sequence handed to [`Hub::append`](crate::Hub::append) is not above the one before it, or one handed to
    /// [`Hub::advance`](crate::Hub::advance) or [`Hub::lose`](crate::Hub::lose) is not where it has to be.
    #[error("not appended: sequence {given} is not above {head}")]
    OutOfOrder {
        /// The sequence before it.
        head: u64,
        /// The sequence that was given.
        given: u64,
    },
    /// The sequence is [`u64::MAX`], which no event may have: nothing could follow it.
    #[error("not appended: the sequences are used up; begin a new epoch")]
    SequencesUsedUp,
    /// The epoch to begin is the one that goes on: positions of it would mean two things.
    #[error("no epoch begun: {epoch} is the epoch that goes on; choose another")]
    EpochGoesOn {
        /// The epoch.
        epoch: u64,
    },
}

// ===== impl Shared =====

impl<P: Payload> Shared<P> {
    /// An empty hub, whose sequences begin after `after`, or, if that is not known, with the first that it is handed.
    pub(crate) fn new(config: HubConfig, after: Option<u64>) -> Self {
        let retained = Retained::default();
        let (epoch, head) = (config.epoch, after.unwrap_or(0));
        let history = History::new(config.history, retained.clone(), epoch, head);
        let state = State {
            epoch,
            head,
            knows_beginning: after.is_some(),
            late: Vec::new(),
            late_forgotten: 0,
            holding: Vec::new(),
            next_look: 0,
            closed: None,
        };
        Self {
            epoch: Mutex::new(epoch),
            max_limits: config.max_limits,
            max_filter_work: config.max_filter_work,
            max_filter_bytes: config.max_filter_bytes,
            memory_budget: config.memory_budget,
            retained,
            index: Index::new(),
            conflates: AtomicBool::new(false),
            senders: Arc::new(Senders::new(config.memory_budget)),
            publish: Mutex::new(state),
            appending: Mutex::new(()),
            history: Mutex::new(history),
            committed: AtomicU64::new(head),
            losses: AtomicCounter::new(0),
            registry: Registry::new(config.client_ids),
            counters: Counters::default(),
        }
    }

    /// The position up to which everything is in place.
    pub(crate) fn position(&self) -> Position {
        // Under its lock the epoch does not change between the two.
        let epoch = self.epoch.lock();
        Position {
            epoch: *epoch,
            sequence: self.committed.load(Acquire),
        }
    }

    /// Begins at the position `after`. The caller holds the publish lock, and everybody who is here has ended.
    pub(crate) fn set_position(&self, after: Position) {
        let mut epoch = self.epoch.lock();
        *epoch = after.epoch;
        self.committed.store(after.sequence, Release);
    }

    /// Refuses further events and subscriptions, and ends every subscription. The first reason holds.
    pub(crate) fn close(&self, reason: CloseReason) {
        // One lock after the other: under both, publishers would wait while everybody is woken.
        self.publish.lock().closed.get_or_insert(reason);
        self.registry.close(reason);
    }

    /// How many bytes all events hold, wherever they are referred to from.
    pub(crate) fn retained_bytes(&self) -> u64 {
        self.retained.bytes()
    }

    /// Moves `event` into the memory that history, feeds and subscribers will share, and counts it.
    pub(crate) fn share(&self, event: NewEvent<P>) -> Arc<Event<P>> {
        let mut event = event.into_shared(&self.retained);
        if self.conflates.load(Relaxed)
            && let Some(event) = Arc::get_mut(&mut event)
        {
            event.hash_subject();
        }
        event
    }

    /// Numbers the events of `part`, in their order, and appends them everywhere: the publisher's half of the protocol in
    /// [`signal`](crate::signal). Empties the part, unless it fails.
    ///
    /// Only the first part of a batch can be refused: a batch is published whole. Who is to be woken is added to `wake`, for
    /// the caller, when it holds no lock and has noted that the part was committed.
    pub(crate) fn commit(
        &self,
        part: &mut Part<P>,
        now: Instant,
        numbering: &Numbering,
        (is_first, is_last): (bool, bool),
        wake: &mut Vec<Waker>,
        freed: &mut Freed<P>,
    ) -> Result<Published, PublishError> {
        let published = {
            // In this order, so that the index is let go of after the publish lock.
            let mut members = None;
            let mut state = loop {
                let state = self.publish.lock();
                // With the lock of the index nobody has added a feed since the search.
                if members.is_some() || state.can_match_late(part) {
                    break state;
                }
                drop(state);
                members = Some(self.index.lock());
                part.search_again(&self.index);
            };
            // Before anything else, because it may refuse: then nothing has changed.
            let numbered = state.number(part, numbering, is_first);
            if numbered.is_err() {
                self.end_searching(&mut state, freed);
            }
            numbered?;
            if let Some(first) = part.events().first() {
                self.note_beginning(&mut state, first.sequence);
            }
            let first = state.head + 1;
            let first_sequence = part.events().first().map_or(first, |event| event.sequence);
            let matched = state.append(part, wake, freed);
            if is_last {
                self.end_searching(&mut state, freed);
            }
            self.remember(part.events(), now, freed);
            // After both, since evicting from one of them frees nothing that the other still has; and with the new
            // events in place, which may have to go as well.
            self.keep_within_budget(&mut state, freed);
            // Last. Release: whoever reads this watermark finds every push to a ready list that led up to it. Once for
            // the part, which so becomes visible at once.
            self.committed.store(state.head, Release);
            Published {
                epoch: state.epoch,
                first_sequence,
                last_sequence: state.head,
                count: part.events().len(),
                matched,
            }
        };
        part.clear();
        add(&self.counters.published, published.count as u64);
        add(&self.counters.matched, published.matched);
        Ok(published)
    }

    /// Notes that `first` is the first sequence that this hub is handed, if it is. Nobody has told it what came before,
    /// so whoever resumes from there is told that it is gone.
    pub(crate) fn note_beginning(&self, state: &mut State<P>, first: u64) {
        if !state.knows_beginning {
            state.knows_beginning = true;
            self.history.lock().begin_after(first - 1);
        }
    }

    /// Counts a subscription that is about to begin into the feeds of `kinds`, which are made if they are not there.
    pub(crate) fn join(
        &self,
        kinds: Vec<FeedKind<P>>,
    ) -> Result<Box<[Arc<Feed<P>>]>, FilterBytesExceeded> {
        let mut freed = Freed::new();
        let mut joined = Vec::with_capacity(kinds.len());
        let mut kinds = kinds.into_iter().peekable();
        while kinds.peek().is_some() {
            let mut members = self.index.lock();
            let some = kinds.by_ref().take(JOINS);
            let Ok(Joined { feeds, added }) =
                self.index
                    .join(&mut members, some, self.max_filter_bytes, &self.retained)
            else {
                drop(members);
                self.leave(&joined);
                return Err(FilterBytesExceeded);
            };
            // With the lock of the index, so that a publisher that takes it finds all late feeds; and before a
            // subscription begins in the feeds, also that of somebody else.
            if !added.is_empty() && self.index.is_searched() {
                self.publish.lock().add_late(added, &mut freed);
            }
            joined.extend(feeds);
        }
        Ok(joined.into())
    }

    /// Drops from history what is too old at `now`.
    pub(crate) fn expire_history(&self, now: Instant) {
        loop {
            let mut freed = Freed::new();
            // Publishers get the lock in between.
            let is_done = !self.history.lock().expire(now, &mut freed);
            if is_done {
                break;
            }
        }
    }

    /// Counts a publisher out that has committed its last part, or will commit none.
    pub(crate) fn end_searching(&self, state: &mut State<P>, freed: &mut Freed<P>) {
        // Under the publish lock, where late feeds are added: those that are there were in the index before, and whoever
        // begins to search after the last publisher has ended finds them.
        if self.index.end_searching() {
            for late in state.late.drain(..) {
                freed.feed(late.feed);
            }
        }
    }

    /// Appends `events` to history.
    fn remember(&self, events: &[Arc<Event<P>>], now: Instant, freed: &mut Freed<P>) {
        let mut history = self.history.lock();
        for event in events {
            history.append(event, now, freed);
        }
        // What is left for the next time is expired before anybody begins to read.
        history.expire(now, freed);
    }

    /// Evicts the oldest events until the hub is within its memory budget, up to one sequence for the whole hub:
    /// events are shared, so evicting one from a single feed might free nothing.
    fn keep_within_budget(&self, state: &mut State<P>, freed: &mut Freed<P>) {
        if !self.is_over_budget() {
            return;
        }
        // One look at each feed, however many sequences have to go: they may be far apart, and in few feeds each.
        let mut by_oldest = state.by_oldest(freed);
        let oldest = |by_oldest: &BinaryHeap<Reverse<(u64, usize)>>| {
            let of_feeds = by_oldest.peek().map(|Reverse((oldest, _))| *oldest);
            let of_history = self.history.lock().oldest();
            of_feeds.into_iter().chain(of_history).min()
        };
        let Some(first) = oldest(&by_oldest) else {
            // Everything left is on its way to subscribers, and is freed when they drop it.
            return;
        };
        // Some more than has to go, so that not every publisher looks at all feeds; as long as that is little work.
        let enough = first + (state.head - first) / EVICTION_STEPS;
        let mut evicted = 0;
        while let Some(floor) = oldest(&by_oldest)
            && (self.is_over_budget() || (floor <= enough && evicted < MAX_EVICTION))
        {
            self.history.lock().evict_through(floor, freed);
            evicted += 1;
            while let Some(mut next) = by_oldest.peek_mut()
                && next.0.0 <= floor
            {
                evicted += 1;
                let mut feed = state.holding[next.0.1].lock();
                feed.evict_through(floor, freed);
                match feed.oldest() {
                    Some(oldest) => next.0.0 = oldest,
                    None => _ = PeekMut::pop(next),
                }
            }
        }
    }

    /// Whether events hold more than the memory budget. What is sent beyond its share is about to be freed by other means,
    /// and evicting anything for it would free none of it.
    fn is_over_budget(&self) -> bool {
        self.retained.bytes() > self.memory_budget.saturating_add(self.senders.excess())
    }

    /// Waits until the publisher that holds the publish lock, if there is one, has committed.
    pub(crate) fn pass_through_publish_lock(&self) {
        drop(self.publish.lock());
    }

    /// Counts a subscription that did not begin out of its feeds.
    pub(crate) fn leave(&self, feeds: &[Arc<Feed<P>>]) {
        let unused = feeds.iter().filter(|feed| feed.lock().remove_user());
        let unused: Vec<_> = unused.cloned().collect();
        self.forget_unused(&unused);
    }

    /// Forgets the feeds among `feeds` that no subscription uses any more.
    pub(crate) fn forget_unused(&self, feeds: &[Arc<Feed<P>>]) {
        // Without any lock where there is nothing to forget: a subscription that was taken over leaves even its
        // client's own feed to the newer one.
        if feeds.is_empty() {
            return;
        }
        let mut forgotten = Vec::new();
        for some in feeds.chunks(JOINS) {
            let mut members = self.index.lock();
            forgotten.extend(self.index.forget_unused(&mut members, some));
        }
        // Without the lock of those: nobody can find them there any more, so nobody waits for this.
        self.index.remove(&forgotten);
        let mut freed = Freed::new();
        for feed in &forgotten {
            // A publisher may list it again, once: it holds nothing then, and the next look takes it off.
            if feed.lock().listed_at().is_some() {
                self.publish.lock().take_off_holding(feed, &mut freed);
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
        part: &mut Part<P>,
        numbering: &Numbering,
        is_first: bool,
    ) -> Result<(), PublishError> {
        if is_first {
            self.check_open()?;
        }
        let mut head = self.head;
        for (i, event) in part.events_mut() {
            let given = match numbering {
                Numbering::Next => head + 1,
                Numbering::Given(sequences) => sequences[i],
            };
            check_sequence(head, given)?;
            head = given;
            Arc::get_mut(event)
                .expect("nobody else has it yet")
                .sequence = given;
        }
        Ok(())
    }

    /// Fails when the hub is closed.
    pub(crate) fn check_open(&self) -> Result<(), PublishError> {
        self.closed
            .map_or(Ok(()), |reason| Err(PublishError::Closed(reason)))
    }

    /// Whether the late feeds that `part` needs are known and can be matched under this lock.
    fn can_match_late(&self, part: &Part<P>) -> bool {
        part.is_since(self.late_forgotten) && part.can_match(&self.late)
    }

    /// Notes feeds that were added while a publisher was between search and commit.
    fn add_late(&mut self, added: Vec<Late<P>>, freed: &mut Freed<P>) {
        self.late.extend(added);
        let mut filters = 0;
        let kept = self.late.iter().rev().take_while(|late| {
            filters += late.feed.filters().len();
            filters <= MAX_LATE
        });
        let surplus = self.late.len() - kept.count();
        for late in self.late.drain(..surplus) {
            self.late_forgotten = late.version;
            freed.feed(late.feed);
        }
    }

    /// Appends numbered events to the feeds that match. Returns how many subscriptions matched, summed over the events.
    fn append(&mut self, part: &Part<P>, wake: &mut Vec<Waker>, freed: &mut Freed<P>) -> u64 {
        let mut matched = 0;
        for target in part.targets() {
            let late = Late::after(&self.late, target.version).iter();
            // One with a predicate does not match here: `can_match_late` has made sure of it.
            let late = late
                .map(|late| &late.feed)
                .filter(|feed| feed.matches(target.event.topic()));
            for feed in target.feeds.iter().chain(late) {
                matched += append_to(
                    &mut self.holding,
                    &mut self.next_look,
                    feed,
                    target.event,
                    wake,
                    freed,
                );
            }
        }
        self.head = part
            .events()
            .last()
            .map_or(self.head, |event| event.sequence);
        matched
    }

    /// The oldest sequence of each feed that holds events, with its place in the list, lowest first. Takes the others off the
    /// list.
    fn by_oldest(&mut self, freed: &mut Freed<P>) -> BinaryHeap<Reverse<(u64, usize)>> {
        let mut oldest = Vec::with_capacity(self.holding.len());
        while let Some(feed) = self.holding.get(oldest.len()) {
            let mut state = feed.lock();
            if let Some(sequence) = state.oldest() {
                oldest.push(Reverse((sequence, oldest.len())));
            } else {
                *state.listed_at() = None;
                drop(state);
                take_off(&mut self.holding, oldest.len(), freed);
            }
        }
        oldest.into()
    }

    /// Takes a feed off the list of those that hold events.
    fn take_off_holding(&mut self, feed: &Arc<Feed<P>>, freed: &mut Freed<P>) {
        // The lock goes before that of the feed that comes there instead.
        let at = feed.lock().listed_at().take();
        if let Some(at) = at {
            take_off(&mut self.holding, at as usize, freed);
        }
    }
}

/// Fails unless `given` may be the sequence of what comes after `head`.
pub(crate) const fn check_sequence(head: u64, given: u64) -> Result<(), PublishError> {
    if given <= head {
        return Err(PublishError::OutOfOrder { head, given });
    }
    if given == u64::MAX {
        return Err(PublishError::SequencesUsedUp);
    }
    Ok(())
}

/// Appends `event` to `feed`, and lists the feed among those that hold events if it does now. Returns how many subscriptions
/// it matches.
fn append_to<P: Payload>(
    holding: &mut Vec<Arc<Feed<P>>>,
    next_look: &mut usize,
    feed: &Arc<Feed<P>>,
    event: &Arc<Event<P>>,
    wake: &mut Vec<Waker>,
    freed: &mut Freed<P>,
) -> u64 {
    let (matched, is_new) = {
        let mut state = feed.lock();
        let matched = state.append(event, wake, freed);
        if state.has_unwanted() {
            freed.crowded(Arc::clone(feed) as _);
        }
        let is_new = state.listed_at().is_none() && state.oldest().is_some();
        if is_new {
            *state.listed_at() = u32::try_from(holding.len()).ok();
        }
        (matched, is_new)
    };
    if is_new {
        holding.push(Arc::clone(feed));
        // Two looks for each new one: the list is at most about twice as long as it has to be, and nobody waits for more than this.
        for _ in 0..2 {
            look(holding, next_look, freed);
        }
    }
    matched
}

/// Looks at one of the feeds that hold events, and takes it off the list if it holds none.
fn look<P: Payload>(holding: &mut Vec<Arc<Feed<P>>>, next_look: &mut usize, freed: &mut Freed<P>) {
    if *next_look >= holding.len() {
        *next_look = 0;
    }
    let Some(feed) = holding.get(*next_look) else {
        return;
    };
    let is_empty = {
        let mut state = feed.lock();
        let is_empty = state.oldest().is_none();
        if is_empty {
            *state.listed_at() = None;
        }
        is_empty
    };
    if is_empty {
        take_off(holding, *next_look, freed);
    } else {
        *next_look += 1;
    }
}

/// Takes the feed at a place off the list. The last one comes there instead.
fn take_off<P: Payload>(holding: &mut Vec<Arc<Feed<P>>>, at: usize, freed: &mut Freed<P>) {
    freed.feed(holding.swap_remove(at));
    if let Some(moved) = holding.get(at) {
        *moved.lock().listed_at() = u32::try_from(at).ok();
    }
    if holding.len() < holding.capacity() / 8 {
        holding.shrink_to_fit();
    }
}

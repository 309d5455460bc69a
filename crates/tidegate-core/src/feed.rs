//! A feed: the events that match one group of filters, in order, numbered densely.
//!
//! All subscriptions with the same filters share a feed; each has a cursor in it. The feed keeps the events
//! that some cursor has still to see, and of those no more than the largest limits among its subscriptions:
//! beyond those every one of them would drop them anyway. So a feed whose subscribers are caught up holds
//! nothing. While one is behind, the feed may hold up to the largest limits among those who share it,
//! whoever is behind; a subscriber to many feeds can hold its limits in each, until it is polled next.
//!
//! Numbers are dense, so how many events lie between two cursors is a subtraction, also when they are
//! long gone.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
};

use slab::Slab;

use crate::{
    backlog::Backlog,
    bisect::first_without,
    bounds::Bounds,
    event::{Event, Payload},
    evicted::Evicted,
    freed::{Crowded, Freed},
    groups::FilterGroup,
    latest::Latest,
    limits::{Limits, Overflow},
    predicate::Predicate,
    retained::Retained,
    signal::{Ready, Signal},
    subscription::Room,
    sync::{Mutex, MutexGuard},
    topic::Topic,
};

/// A ring that once was long gives its memory back down to this many slots: 512 bytes, as a slot has 32. Chosen,
/// not measured.
const SMALL_RING: usize = 16;

/// The most events that are let go under one hold of the feed's lock, for which publishers wait; twice, where some were
/// seen and others are beyond the limits. 1,024 take about 0.1 ms.
const FREED_AT_ONCE: usize = 1_024;

/// The events of one group of filters, and the cursors of the subscriptions that share it.
#[derive(Debug)]
pub(crate) struct Feed<P> {
    /// The filters and the predicate; never changes.
    kind: FeedKind<P>,
    /// Its identity among all feeds of the process.
    id: u64,
    /// Everything else, behind the lock of the feed.
    state: Mutex<FeedState<P>>,
}

/// The state behind the lock of a feed.
#[derive(Debug)]
pub(crate) struct FeedState<P> {
    /// The hub's count of bytes, which the slots of the ring add to.
    retained: Retained,
    /// The events that some cursor has still to see, oldest first.
    ring: VecDeque<Slot<P>>,
    /// The slots that are counted: all that the ring has room for, if that is many, else those that it has.
    counted: usize,
    /// The number of the event at the front of the ring, or of the next event if it is empty.
    first: u64,
    /// The sequence of the event numbered `first - 1`; 0 if there was none.
    removed_sequence: u64,
    /// The running total of bytes through the event numbered `first - 1`.
    removed_bytes: u64,
    /// Whether the ring has more events that no cursor wants than could be let go at once.
    has_unwanted: bool,
    /// Events evicted for the memory budget before every cursor had seen them.
    evicted: Evicted,
    /// The sequence of the newest event appended.
    newest: u64,
    /// How many cursors have seen everything.
    caught_up: u32,
    /// The subscriptions that wait for the next event, with the number of their cursor. Only cursors that have
    /// seen everything are here.
    parked: Slab<(Arc<Signal>, u32)>,
    /// How often `parked` was emptied. A key of an earlier round is void: the slab gives its number out again.
    parked_round: u64,
    /// The limits of the cursors, which bound the ring.
    bounds: Bounds,
    /// The view of conflating cursors, while there are any. They are not among the cursors of the ring.
    latest: Option<Box<Latest<P>>>,
    /// How many subscriptions an event of the feed matches, those that replay history included.
    subscribers: u64,
    /// How many subscriptions use the feed: those, and the ones that are about to begin.
    users: u64,
    /// Where the hub's list of feeds that hold events has this one, if it has.
    listed_at: Option<u32>,
}

/// An event in the ring.
#[derive(Debug)]
struct Slot<P> {
    /// The event, which history and other feeds share.
    event: Arc<Event<P>>,
    /// The event's sequence, here so that a search does not follow pointers.
    sequence: u64,
    /// The running total of bytes through this event.
    bytes_through: u64,
    /// How many cursors stand here: this is the first event that they have not seen.
    cursors: u32,
}

/// The key of a parked registration, to take it back when the cursor goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ParkKey {
    /// Where it is in `parked`.
    key: usize,
    /// The round in which it was made; in a later one the registration is gone.
    round: u64,
}

/// The next event of a cursor that has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// There is one, with this sequence.
    Event(u64),
    /// There is none yet.
    Nothing,
}

/// The filters and the predicate of a feed, which it is found by.
#[derive(Debug)]
pub(crate) struct FeedKind<P> {
    /// Each event matches at least one of these.
    pub(crate) filters: FilterGroup,
    /// Each payload passes this, if it is set.
    pub(crate) predicate: Option<Predicate<P>>,
}

impl<P> Clone for FeedKind<P> {
    fn clone(&self) -> Self {
        Self {
            filters: Arc::clone(&self.filters),
            predicate: self.predicate.clone(),
        }
    }
}

// ===== impl Feed =====

impl<P: Payload> Feed<P> {
    /// An empty feed without cursors.
    pub(crate) fn new(kind: FeedKind<P>, retained: Retained) -> Self {
        // Of the process and not of the hub: consumers of several hubs keep ranges side by side.
        static IDS: AtomicU64 = AtomicU64::new(0);
        Self {
            kind,
            id: IDS.fetch_add(1, Relaxed),
            state: Mutex::new(FeedState {
                retained,
                ring: VecDeque::new(),
                counted: 0,
                first: 0,
                removed_sequence: 0,
                removed_bytes: 0,
                has_unwanted: false,
                evicted: Evicted::default(),
                newest: 0,
                caught_up: 0,
                parked: Slab::new(),
                parked_round: 0,
                bounds: Bounds::default(),
                latest: None,
                subscribers: 0,
                users: 0,
                listed_at: None,
            }),
        }
    }

    /// The filters of the feed.
    pub(crate) const fn filters(&self) -> &FilterGroup {
        &self.kind.filters
    }

    /// The filters and the predicate of the feed.
    pub(crate) const fn kind(&self) -> &FeedKind<P> {
        &self.kind
    }

    /// The identity of the feed. No other of the process ever has it, also when this one is gone.
    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    /// The predicate of the feed, if it has one.
    pub(crate) const fn predicate(&self) -> Option<&Predicate<P>> {
        self.kind.predicate.as_ref()
    }

    /// Whether an event of this topic matches one of the filters.
    pub(crate) fn matches(&self, topic: &Topic) -> bool {
        self.kind.filters.iter().any(|filter| filter.matches(topic))
    }

    /// Lets go of the events that no cursor has still to see, a few at a time: publishers get the lock in between. The caller does not hold it.
    pub(crate) fn free_unwanted(&self, freed: &mut Freed<P>) {
        while self.lock().free_unwanted(freed) {}
    }

    /// Takes the lock of the feed.
    pub(crate) fn lock(&self) -> MutexGuard<'_, FeedState<P>> {
        self.state.lock()
    }
}

impl<P: Payload> Crowded<P> for Feed<P> {
    fn free_some(&self, freed: &mut Freed<P>) -> bool {
        self.lock().free_unwanted(freed)
    }
}

// ===== impl FeedState: publishing =====

impl<P: Payload> FeedState<P> {
    /// Appends `event`, puts the feed on the ready lists of the subscriptions that wait, and adds their wakers to
    /// `wake`. Returns how many subscriptions the event matches.
    ///
    /// A publisher that finds the feed twice, as late and in the index, appends the event once.
    pub(crate) fn append(
        &mut self,
        event: &Arc<Event<P>>,
        wake: &mut Vec<Waker>,
        freed: &mut Freed<P>,
    ) -> u64 {
        if event.sequence == self.newest {
            return 0;
        }
        self.newest = event.sequence;
        let number = self.end();
        if let Some(latest) = &mut self.latest {
            latest.append(number, event, freed);
        }
        let bytes_through = self.bytes_before(number) + event.size();
        // The cursors that had seen everything now stand before this event.
        let cursors = std::mem::take(&mut self.caught_up);
        self.ring.push_back(Slot {
            event: Arc::clone(event),
            sequence: event.sequence,
            bytes_through,
            cursors,
        });
        self.remove_unwanted(freed);
        // Last, when the feed is as it will be read. From `push_ready` on a subscription may take its ready list,
        // which only the lock of its signal guards, and go on to wait for this feed's lock. It finds the event in
        // the ring and its cursor before it.
        if !self.parked.is_empty() {
            // The slab gives the same keys out again: those that cursors still hold are void from here on.
            self.parked_round += 1;
            let wakers = self.parked.drain().filter_map(|(signal, cursor)| {
                signal.push_ready(Ready {
                    cursor,
                    head: event.sequence,
                })
            });
            wake.extend(wakers);
        }
        self.subscribers
    }

    /// Removes events at the front that no cursor has still to see, or that are beyond the limits of every cursor; not all
    /// at once where there are many.
    fn remove_unwanted(&mut self, freed: &mut Freed<P>) {
        let (are_seen_left, are_others_left) = (self.remove_seen(freed), self.evict(freed));
        self.has_unwanted = are_seen_left || are_others_left;
        self.count_slots();
    }

    /// Whether the ring has more events that no cursor wants than could be let go at once: then
    /// [`Feed::free_unwanted`] has to follow.
    pub(crate) const fn has_unwanted(&self) -> bool {
        self.has_unwanted
    }

    /// Removes events at the front that no cursor has still to see. Returns whether some are left.
    fn remove_seen(&mut self, freed: &mut Freed<P>) -> bool {
        let mut removed = 0;
        while self.ring.front().is_some_and(|slot| slot.cursors == 0) {
            if removed == FREED_AT_ONCE {
                self.count_slots();
                return true;
            }
            removed += 1;
            self.pop_front(freed);
            // A cursor that was overtaken is counted at the front. None is, so nobody will ask what was evicted.
            self.evicted.clear();
        }
        // At an eighth and not at once: a ring whose length goes up and down does not allocate each time.
        if self.ring.capacity() > SMALL_RING && self.ring.len() < self.ring.capacity() / 8 {
            self.ring.shrink_to(SMALL_RING);
        }
        self.count_slots();
        false
    }

    /// Counts the slots of the ring. Those that are free count too, or a ring that was long once would keep memory
    /// that nobody knows of.
    fn count_slots(&mut self) {
        let slots = if self.ring.capacity() > SMALL_RING {
            self.ring.capacity()
        } else {
            self.ring.len()
        };
        let bytes = |slots: usize| (slots * size_of::<Slot<P>>()) as u64;
        match slots.checked_sub(self.counted) {
            Some(0) => {}
            Some(more) => self.retained.add(bytes(more)),
            None => self.retained.subtract(bytes(self.counted - slots)),
        }
        self.counted = slots;
    }

    /// Removes events at the front that are beyond the limits of every cursor. The newest event stays. Returns whether
    /// some are left.
    fn evict(&mut self, freed: &mut Freed<P>) -> bool {
        let mut removed = 0;
        while self.ring.len() > 1
            && !self
                .bounds
                .fits(self.ring.len(), self.backlog(self.first, self.end()).bytes)
        {
            if removed == FREED_AT_ONCE {
                return true;
            }
            removed += 1;
            // Cursors that stood there are overtaken: they are counted at the new front.
            let cursors = self.pop_front(freed);
            self.ring[0].cursors += cursors;
        }
        false
    }

    /// Evicts events up to a sequence, the newest too, for the memory budget. Notes them, so that their gap has
    /// that reason.
    pub(crate) fn evict_through(&mut self, sequence: u64, freed: &mut Freed<P>) {
        let (from, first_sequence) = (
            self.first,
            self.ring.front().map_or(0, |slot| slot.sequence),
        );
        while self
            .ring
            .front()
            .is_some_and(|slot| slot.sequence <= sequence)
        {
            // The ring may be empty now: then they count as caught up, though they have not seen everything.
            // `has_overtaken` tells by their numbers.
            let cursors = self.pop_front(freed);
            *self.standing_at(self.first) += cursors;
        }
        // Sooner than otherwise: the budget needs the memory, and whoever is stalled may never append or read again.
        if self.ring.capacity() > SMALL_RING && self.ring.len() < self.ring.capacity() / 2 {
            self.ring.shrink_to(SMALL_RING);
        }
        self.count_slots();
        if self.first > from {
            self.evicted
                .note(from, self.first, first_sequence, self.removed_sequence);
        }
        if let Some(latest) = &mut self.latest {
            latest.evict_through(sequence, freed);
        }
    }

    /// The sequence of the oldest event that is kept, for any cursor.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let ring = self.ring.front().map(|slot| slot.sequence);
        let latest = self.latest.as_ref().and_then(|latest| latest.oldest());
        ring.into_iter().chain(latest).min()
    }

    /// The events evicted for the memory budget before every cursor had seen them.
    pub(crate) const fn evicted(&self) -> &Evicted {
        &self.evicted
    }

    /// The sequence of the newest event.
    pub(crate) const fn newest(&self) -> u64 {
        self.newest
    }

    /// Removes the front and returns how many cursors stood there.
    fn pop_front(&mut self, freed: &mut Freed<P>) -> u32 {
        let slot = self.ring.pop_front().expect("the ring is not empty");
        self.first += 1;
        self.removed_sequence = slot.sequence;
        self.removed_bytes = slot.bytes_through;
        freed.event(slot.event);
        slot.cursors
    }
}

// ===== impl FeedState: cursors =====

impl<P: Payload> FeedState<P> {
    /// The number of the next event to be appended.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.ring.len() as u64
    }

    /// Counts a subscription that is about to begin as a user: the feed is kept for it.
    pub(crate) const fn add_user(&mut self) {
        self.users += 1;
    }

    /// Counts a user out. Returns whether it was the last.
    pub(crate) const fn remove_user(&mut self) -> bool {
        self.users -= 1;
        self.users == 0
    }

    /// Counts a user as a subscription that events match from here on, before it has a cursor.
    pub(crate) const fn join(&mut self) {
        self.subscribers += 1;
    }

    /// Counts a subscription out, as a user too. Returns whether it was the last.
    pub(crate) const fn leave(&mut self) -> bool {
        self.subscribers -= 1;
        self.remove_user()
    }

    /// Whether no subscription uses the feed.
    pub(crate) const fn is_unused(&self) -> bool {
        self.users == 0
    }

    /// Where the hub's list of feeds that hold events has this one.
    pub(crate) const fn listed_at(&mut self) -> &mut Option<u32> {
        &mut self.listed_at
    }

    /// Puts a cursor at the end and parks it. Returns its number and the key of the registration.
    /// `max_limits` is the most that a view may keep.
    pub(crate) fn attach(
        &mut self,
        limits: &Limits,
        max_limits: &Limits,
        signal: &Arc<Signal>,
        cursor: u32,
    ) -> (u64, ParkKey) {
        let end = self.end();
        if limits.overflow == Overflow::Conflate {
            self.latest
                .get_or_insert_with(|| Box::new(Latest::new(*max_limits, self.retained.clone())))
                .enter(end);
        } else {
            self.bounds.add(limits);
            self.caught_up += 1;
        }
        (end, self.park(signal, cursor))
    }

    /// Removes the cursor at `next` with its registration, and the events that only it had still to see, as far as
    /// [`Feed::free_unwanted`] does not have to go on. Returns the view if this was its last cursor: the
    /// caller drops it without the lock.
    pub(crate) fn detach(
        &mut self,
        limits: &Limits,
        next: u64,
        parked: Option<ParkKey>,
        freed: &mut Freed<P>,
    ) -> Option<Box<Latest<P>>> {
        if let Some(ParkKey { key, round }) = parked
            && round == self.parked_round
        {
            self.parked.remove(key);
        }
        if limits.overflow == Overflow::Conflate {
            self.latest_mut().leave(next, freed);
            self.latest.take_if(|latest| latest.is_unused())
        } else {
            // Both may free events: nobody stands before them, or its limits were the largest.
            *self.standing_at(next) -= 1;
            self.bounds.remove(limits);
            self.remove_unwanted(freed);
            None
        }
    }

    /// The view of conflating cursors. The caller has one.
    pub(crate) fn latest(&self) -> &Latest<P> {
        self.latest
            .as_ref()
            .expect("a conflating cursor keeps the view")
    }

    /// As [`latest`](Self::latest).
    fn latest_mut(&mut self) -> &mut Latest<P> {
        self.latest
            .as_mut()
            .expect("a conflating cursor keeps the view")
    }

    /// Lets go of some events that no cursor has still to see. Returns whether more are left.
    pub(crate) fn free_unwanted(&mut self, freed: &mut Freed<P>) -> bool {
        self.remove_unwanted(freed);
        let latest = self.latest.as_mut();
        self.has_unwanted | latest.is_some_and(|latest| latest.free_unwanted(freed))
    }

    /// Moves a conflating cursor from `from` to `to`, and parks it if no survivor is there or behind.
    pub(crate) fn advance_conflating(
        &mut self,
        from: u64,
        to: u64,
        signal: &Arc<Signal>,
        cursor: u32,
        freed: &mut Freed<P>,
    ) -> (Ahead, Option<ParkKey>) {
        let latest = self.latest_mut();
        // In this order: leaving removes the survivors below the lowest cursor, and this may be the last.
        latest.enter(to);
        latest.leave(from, freed);
        match latest.from(to) {
            Some(survivor) => (Ahead::Event(survivor.event.sequence()), None),
            None => (Ahead::Nothing, Some(self.park(signal, cursor))),
        }
    }

    /// Registers a cursor that has seen everything for the next event.
    fn park(&mut self, signal: &Arc<Signal>, cursor: u32) -> ParkKey {
        if self.parked.capacity() == 0 {
            // Exactly one: most feeds have one, and a list would make room for four.
            self.parked = Slab::with_capacity(1);
        }
        let key = self.parked.insert((Arc::clone(signal), cursor));
        ParkKey {
            key,
            round: self.parked_round,
        }
    }

    /// Moves a cursor from `from` to `to`, and parks it if no event is there yet. Removes events that none has
    /// still to see.
    pub(crate) fn advance(
        &mut self,
        from: u64,
        to: u64,
        signal: &Arc<Signal>,
        cursor: u32,
        freed: &mut Freed<P>,
    ) -> (Ahead, Option<ParkKey>) {
        // Offsets shift when events are removed, so both counts change and the head is read before.
        *self.standing_at(from) -= 1;
        *self.standing_at(to) += 1;
        let ahead = self
            .ring
            .get(self.offset(to))
            .map_or(Ahead::Nothing, |slot| Ahead::Event(slot.sequence));
        // Nothing has come, so nothing is beyond the limits, unless it was left.
        if self.has_unwanted {
            self.remove_unwanted(freed);
        } else {
            self.has_unwanted = self.remove_seen(freed);
        }
        let parked = (ahead == Ahead::Nothing).then(|| self.park(signal, cursor));
        (ahead, parked)
    }

    /// How many cursors stand at `number`. One that was overtaken is counted at the front.
    fn standing_at(&mut self, number: u64) -> &mut u32 {
        let offset = self.offset(number);
        match self.ring.get_mut(offset) {
            Some(slot) => &mut slot.cursors,
            None => &mut self.caught_up,
        }
    }

    /// The place of an event in the ring; of one that is gone, the front.
    fn offset(&self, number: u64) -> usize {
        usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX)
    }

    /// Whether events were evicted that the cursor at `next` had still to see.
    pub(crate) const fn has_overtaken(&self, next: u64) -> bool {
        next < self.first
    }

    /// The sequence of the event before the front, where the loss of an overtaken cursor ends.
    pub(crate) const fn removed_sequence(&self) -> u64 {
        self.removed_sequence
    }

    /// The sequence of the last event evicted before the cursor at `next` had seen it; none if it has not missed any.
    pub(crate) fn evicted_before(&self, next: u64) -> Option<u64> {
        self.has_overtaken(next).then_some(self.removed_sequence)
    }

    /// The number of the first event with a sequence above `sequence`, at least that of the front.
    pub(crate) fn number_after(&self, sequence: u64) -> u64 {
        if self.newest <= sequence {
            return self.end();
        }
        self.first + self.ring.partition_point(|slot| slot.sequence <= sequence) as u64
    }

    /// The sequence of the event before `number`, which is not below the front.
    pub(crate) fn sequence_before(&self, number: u64) -> u64 {
        match self.offset(number).checked_sub(1) {
            Some(offset) => self.ring[offset].sequence,
            None => self.removed_sequence,
        }
    }

    /// Counts the events kept from number `from`, or the front, to before number `to`.
    pub(crate) fn backlog(&self, from: u64, to: u64) -> Backlog {
        let from = from.max(self.first);
        Backlog {
            events: to - from,
            bytes: self.bytes_before(to) - self.bytes_before(from),
        }
    }

    /// The running total of bytes before `number`, which is not below the front.
    fn bytes_before(&self, number: u64) -> u64 {
        match self.offset(number).checked_sub(1) {
            Some(offset) => self.ring[offset].bytes_through,
            None => self.removed_bytes,
        }
    }

    /// The first number from `from`, or the front, such that the events from there to before `end` fit `limits`.
    pub(crate) fn first_that_fits(&self, from: u64, end: u64, limits: &Limits) -> u64 {
        let from = from.max(self.first);
        let Backlog { events, bytes } = self.backlog(from, end);
        if limits.fits(events, bytes) {
            return from;
        }
        let from = from.max(end.saturating_sub(limits.max_events.get()));
        // The running total that has to be before the start for the rest to fit in bytes.
        let surplus = self
            .bytes_before(end)
            .saturating_sub(limits.max_bytes.get());
        if self.bytes_before(from) >= surplus {
            return from;
        }
        let enough = self.first
            + self
                .ring
                .partition_point(|slot| slot.bytes_through < surplus) as u64
            + 1;
        // The newest event fits, whatever its size.
        enough.min(end - 1)
    }

    /// The number behind the last event, from `from` to before `to`, that a room takes. The slots have all that it takes to
    /// know, so no event is touched.
    pub(crate) fn number_that_fits(&self, from: u64, to: u64, room: &Room) -> u64 {
        let fits = |to: u64| {
            let Backlog { events, bytes } = self.backlog(from, to);
            room.holds(events, bytes)
        };
        if fits(to) {
            return to;
        }
        // None at all fit, whatever the room.
        first_without(from, to, fits) - 1
    }

    /// The events from `from`, which is not below the front, to before `to`.
    pub(crate) fn events(&self, from: u64, to: u64) -> impl Iterator<Item = &Arc<Event<P>>> {
        self.ring
            .range(self.offset(from)..self.offset(to))
            .map(|slot| &slot.event)
    }
}

// ===== impl FeedKind =====

impl<P> FeedKind<P> {
    /// The mark that the hub tells feeds apart by: the filters, and the identity of the predicate.
    fn key(&self) -> (&FilterGroup, Option<u64>) {
        (&self.filters, self.predicate.as_ref().map(Predicate::id))
    }
}

impl<P> PartialEq for FeedKind<P> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<P> Eq for FeedKind<P> {}

impl<P> Hash for FeedKind<P> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

#[cfg(all(test, not(tidegate_loom)))]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::{FREED_AT_ONCE, Feed, FeedKind};
    use crate::{
        event::NewEvent, filter::Filter, freed::Freed, limits::Limits, retained::Retained,
        signal::Signal, topic::Topic,
    };

    /// A feed with one cursor, before this many events.
    fn feed(limits: &Limits, events: u64, retained: &Retained) -> (Feed<Bytes>, Arc<Signal>) {
        let kind = FeedKind {
            filters: [Filter::everything()].into(),
            predicate: None,
        };
        let feed = Feed::new(kind, retained.clone());
        let signal = Arc::new(Signal::new(false, None));
        feed.lock().attach(limits, limits, &signal, 0);
        for sequence in 1..=events {
            append(&feed, sequence, 1, retained);
        }
        (feed, signal)
    }

    fn append(feed: &Feed<Bytes>, sequence: u64, size: usize, retained: &Retained) {
        let event = NewEvent::new(Topic::new("a").unwrap(), Bytes::from(vec![0; size]));
        let mut event = event.into_shared(retained);
        Arc::get_mut(&mut event).unwrap().sequence = sequence;
        feed.lock()
            .append(&event, &mut Vec::new(), &mut Freed::new());
    }

    fn limits(max_events: u64, max_bytes: u64) -> Limits {
        Limits {
            max_events: max_events.try_into().unwrap(),
            max_bytes: max_bytes.try_into().unwrap(),
            ..Limits::default()
        }
    }

    #[test]
    fn events_go_a_few_under_one_hold_of_the_lock() {
        let at_once = FREED_AT_ONCE as u64;
        let retained = Retained::default();
        for (max_bytes, is_detached) in [(u64::MAX, true), (10 * at_once, false)] {
            let limits = limits(10 * at_once, max_bytes);
            let (feed, _signal) = feed(&limits, 5 * at_once, &retained);
            if is_detached {
                // The only one who has still to see them goes.
                drop(feed.lock().detach(&limits, 0, None, &mut Freed::new()));
            } else {
                // One large event takes the room of all.
                append(&feed, 5 * at_once + 1, 10 * FREED_AT_ONCE, &retained);
            }
            let mut freed = Freed::new();
            let mut left = vec![feed.lock().ring.len()];
            while feed.lock().has_unwanted() {
                feed.lock().free_unwanted(&mut freed);
                left.push(feed.lock().ring.len());
            }
            let steps = left.windows(2).map(|pair| pair[0] - pair[1]);
            assert!(steps.max() <= Some(2 * FREED_AT_ONCE), "{left:?}");
            assert!(left[0] >= 3 * FREED_AT_ONCE, "{left:?}");
            assert_eq!(left.last(), Some(&usize::from(!is_detached)));
            drop(freed);
            assert!(!is_detached || retained.bytes() == 0);
        }
    }
}

//! The second view of a feed: the latest event of each topic and key, in sequence order.
//!
//! It is made when the first conflating subscription arrives and shared by all of them. It keeps the events that
//! some conflating cursor has still to see, so its size is in keys, and nothing when all are caught up.
//! An event that a newer one of its topic and key replaces is removed at once; a cursor that had still to see it
//! finds by subtraction that its number is missing.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::{
    event::{Event, Payload},
    evicted::Evicted,
    limits::Limits,
    retained::Retained,
};

/// The bytes of a survivor in the view: an entry by number (16 of content) and one by key (16), twice over for the room
/// that trees and tables leave free. An estimate.
const SURVIVOR_BYTES: u64 = 64;

/// A view that once had room for more keys than this gives its memory back when it has none. 64 entries are about
/// 1 KiB. Chosen, not measured.
const MANY_KEYS: usize = 64;

/// The latest event of each topic and key of a feed.
#[derive(Debug)]
pub(crate) struct Latest<P> {
    /// The survivors, by number. Events that were replaced are not here.
    survivors: BTreeMap<u64, Arc<Event<P>>>,
    /// The number of the survivor of each topic and key.
    by_key: HashMap<Subject<P>, u64>,
    /// The sizes of the survivors, summed.
    bytes: u64,
    /// How many conflating cursors stand at each number.
    cursors: BTreeMap<u64, u32>,
    /// The number below which survivors were evicted, because there were too many.
    first: u64,
    /// The sequence of the last survivor that was evicted; 0 if none was.
    evicted_sequence: u64,
    /// The evictions among those that were for the memory budget.
    evicted: Evicted,
    /// The most survivors and bytes that are kept.
    limits: Limits,
    /// The hub's count of bytes, which the survivors' entries add to, besides the events.
    retained: Retained,
}

/// An event as its subject, which is its topic and key. An event without a key has its topic as key.
///
/// The event itself, so that the map shares its names instead of copying them.
#[derive(Debug)]
struct Subject<P>(Arc<Event<P>>);

impl<P: Payload> Latest<P> {
    /// An empty view that keeps what fits `limits`.
    pub(crate) fn new(limits: Limits, retained: Retained) -> Self {
        Self {
            survivors: BTreeMap::new(),
            by_key: HashMap::new(),
            bytes: 0,
            cursors: BTreeMap::new(),
            first: 0,
            evicted_sequence: 0,
            evicted: Evicted::default(),
            limits,
            retained,
        }
    }

    /// Adds the event with the given number, and removes the one that it replaces.
    pub(crate) fn append(&mut self, number: u64, event: &Arc<Event<P>>) {
        if let Some(subject) = Subject::of(event) {
            // The key in the map must be the new event, or the old one would stay in memory.
            if let Some((_, replaced)) = self.by_key.remove_entry(&subject) {
                self.remove(replaced);
            }
            self.by_key.insert(subject, number);
        }
        self.survivors.insert(number, Arc::clone(event));
        self.bytes += event.size();
        self.retained.add(SURVIVOR_BYTES);
        while !self.limits.fits(self.survivors.len() as u64, self.bytes) {
            self.evict_oldest();
        }
    }

    /// Evicts survivors up to a sequence, for the memory budget. Notes them, so that their gap has that reason.
    pub(crate) fn evict_through(&mut self, sequence: u64) {
        while self
            .survivors
            .first_key_value()
            .is_some_and(|(_, oldest)| oldest.sequence() <= sequence)
        {
            // From the last eviction on: events replaced in between belong to this run, since which they were is gone.
            let (from, first_sequence) = (self.first, self.evicted_sequence + 1);
            self.evict_oldest();
            self.evicted
                .note(from, self.first, first_sequence, self.evicted_sequence);
        }
    }

    /// The sequence of the oldest survivor.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.survivors
            .first_key_value()
            .map(|(_, event)| event.sequence())
    }

    /// The events evicted for the memory budget before every conflating cursor had seen them.
    pub(crate) const fn evicted(&self) -> &Evicted {
        &self.evicted
    }

    /// Evicts the oldest survivor.
    fn evict_oldest(&mut self) {
        let (number, event) = self.survivors.pop_first().expect("more than one is kept");
        self.forget(&event);
        self.first = number + 1;
        self.evicted_sequence = event.sequence();
    }

    /// Removes the survivor `number`, whose key is in use by the event that replaces it.
    fn remove(&mut self, number: u64) {
        let event = self
            .survivors
            .remove(&number)
            .expect("every key has a survivor");
        self.bytes -= event.size();
        self.retained.subtract(SURVIVOR_BYTES);
    }

    /// Takes an event that is no survivor any more out of the counts and the keys.
    fn forget(&mut self, event: &Arc<Event<P>>) {
        self.bytes -= event.size();
        self.retained.subtract(SURVIVOR_BYTES);
        if let Some(subject) = Subject::of(event) {
            self.by_key.remove(&subject);
        }
    }

    /// Puts a cursor at `number`.
    pub(crate) fn enter(&mut self, number: u64) {
        *self.cursors.entry(number).or_default() += 1;
    }

    /// Removes a cursor from `number`, and the survivors that no cursor has still to see.
    pub(crate) fn leave(&mut self, number: u64) {
        let standing = self
            .cursors
            .get_mut(&number)
            .expect("the cursor stands there");
        *standing -= 1;
        if *standing == 0 {
            self.cursors.remove(&number);
        }
        let wanted_from = self.cursors.keys().next().copied().unwrap_or(u64::MAX);
        while self
            .survivors
            .first_key_value()
            .is_some_and(|(number, _)| *number < wanted_from)
        {
            let (_, event) = self.survivors.pop_first().expect("there is a first");
            self.forget(&event);
        }
        if wanted_from >= self.first {
            self.evicted.clear();
        }
        if self.survivors.is_empty() && self.by_key.capacity() > MANY_KEYS {
            self.by_key = HashMap::new();
        }
    }

    /// Whether no cursor is left.
    pub(crate) fn is_unused(&self) -> bool {
        self.cursors.is_empty()
    }

    /// Whether survivors were evicted that the cursor at `next` had still to see.
    pub(crate) const fn has_overtaken(&self, next: u64) -> bool {
        next < self.first
    }

    /// The sequence of the last survivor that was evicted.
    pub(crate) const fn evicted_sequence(&self) -> u64 {
        self.evicted_sequence
    }

    /// The number below which everything was evicted.
    pub(crate) const fn first(&self) -> u64 {
        self.first
    }

    /// The survivors from `next` on, oldest first, with their numbers.
    pub(crate) fn from(&self, next: u64) -> impl DoubleEndedIterator<Item = (u64, &Arc<Event<P>>)> {
        self.survivors
            .range(next..)
            .map(|(number, event)| (*number, event))
    }
}

impl<P> Subject<P> {
    /// The subject of `event`; none if it stands for itself, as one without a key to a single client does.
    fn of(event: &Arc<Event<P>>) -> Option<Self> {
        let stands_for_itself = event.topic().is_reserved() && event.key().is_none();
        (!stands_for_itself).then(|| Self(Arc::clone(event)))
    }

    /// The topic and the key.
    fn parts(&self) -> (&str, &str) {
        let topic = self.0.topic().as_str();
        (topic, self.0.key().unwrap_or(topic))
    }
}

impl<P> PartialEq for Subject<P> {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl<P> Eq for Subject<P> {}

impl<P> Hash for Subject<P> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

//! The second view of a feed: the latest event of each topic and key, in sequence order.
//!
//! It is made when the first conflating subscription arrives and shared by all of them. It keeps the events that
//! some conflating cursor has still to see, so its size is in keys, and nothing when all are caught up.
//! An event that a newer one of its topic and key replaces is removed at once; a cursor that had still to see it
//! finds by subtraction that its number is missing. Topic and key are never looked at: the event brings a hash of
//! them, made before any lock was taken ([`subject`](crate::subject)).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    backlog::Backlog,
    event::{Event, Payload},
    evicted::Evicted,
    freed::Freed,
    limits::Limits,
    retained::Retained,
    subject::{BySubject, Subject},
    survivors::{Stretch, Survivor, Survivors},
};

/// A table that once had room for more subjects than this gives memory back when it is next to empty. 64 entries are
/// about 2 KiB. Chosen, not measured.
const MANY_SUBJECTS: usize = 64;

/// The most survivors that are let go under one hold of the feed's lock, for which publishers wait. A poll passes about
/// as many. Chosen, not measured.
const FREED_AT_ONCE: usize = 1_024;

/// The latest event of each topic and key of a feed.
#[derive(Debug)]
pub(crate) struct Latest<P> {
    /// The survivors, by number. Events that were replaced are not here.
    survivors: Survivors<P>,
    /// The number of the survivor of each topic and key.
    by_subject: HashMap<Subject, u64, BySubject>,
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
}

impl<P: Payload> Latest<P> {
    /// An empty view that keeps what fits `limits`.
    pub(crate) fn new(limits: Limits, retained: Retained) -> Self {
        Self {
            survivors: Survivors::new(retained),
            by_subject: HashMap::default(),
            cursors: BTreeMap::new(),
            first: 0,
            evicted_sequence: 0,
            evicted: Evicted::default(),
            limits,
        }
    }

    /// Adds the event with the given number, and removes the one that it replaces.
    pub(crate) fn append(&mut self, number: u64, event: &Arc<Event<P>>, freed: &mut Freed<P>) {
        if let Some(subject) = event.subject()
            && let Some(replaced) = self.by_subject.insert(subject, number)
        {
            freed.event(self.survivors.remove(replaced));
        }
        self.survivors.push(number, event);
        while let Backlog { events, bytes } = self.survivors.total()
            && !self.limits.fits(events, bytes)
        {
            self.evict_oldest(freed);
        }
    }

    /// Evicts survivors up to a sequence, for the memory budget. Notes them, so that their gap has that reason.
    pub(crate) fn evict_through(&mut self, sequence: u64, freed: &mut Freed<P>) {
        while self.oldest().is_some_and(|oldest| oldest <= sequence) {
            // From the last eviction on: events replaced in between belong to this run, since which they were is gone.
            let (from, first_sequence) = (self.first, self.evicted_sequence + 1);
            self.evict_oldest(freed);
            self.evicted
                .note(from, self.first, first_sequence, self.evicted_sequence);
        }
    }

    /// The sequence of the oldest survivor.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let oldest = self.survivors.first();
        oldest.map(|oldest| oldest.event.sequence())
    }

    /// The events evicted for the memory budget before every conflating cursor had seen them.
    pub(crate) const fn evicted(&self) -> &Evicted {
        &self.evicted
    }

    /// Evicts the oldest survivor.
    fn evict_oldest(&mut self, freed: &mut Freed<P>) {
        if let Some((number, event)) = self.pop_front() {
            self.first = number + 1;
            self.evicted_sequence = event.sequence();
            freed.event(event);
        }
    }

    /// Takes the oldest survivor out.
    fn pop_front(&mut self) -> Option<(u64, Arc<Event<P>>)> {
        let (number, event) = self.survivors.pop_front()?;
        if let Some(subject) = event.subject() {
            self.by_subject.remove(&subject);
        }
        let room = self.by_subject.capacity();
        if room > MANY_SUBJECTS && self.by_subject.len() < room / 8 {
            self.by_subject.shrink_to(2 * self.by_subject.len());
        }
        Some((number, event))
    }

    /// Puts a cursor at `number`.
    pub(crate) fn enter(&mut self, number: u64) {
        *self.cursors.entry(number).or_default() += 1;
    }

    /// Removes a cursor from `number`, and survivors that no cursor has still to see. Of those, many may be left, for
    /// [`free_unwanted`](Self::free_unwanted); and all of them if no cursor is left, because the view then goes as a whole.
    pub(crate) fn leave(&mut self, number: u64, freed: &mut Freed<P>) {
        let standing = self
            .cursors
            .get_mut(&number)
            .expect("the cursor stands there");
        *standing -= 1;
        if *standing == 0 {
            self.cursors.remove(&number);
        }
        if !self.is_unused() {
            self.free_unwanted(freed);
        }
    }

    /// Lets go of survivors that no cursor has still to see, but not of all at once where there are many. Returns
    /// whether some are left.
    pub(crate) fn free_unwanted(&mut self, freed: &mut Freed<P>) -> bool {
        for _ in 0..FREED_AT_ONCE {
            if !self.has_unwanted() {
                break;
            }
            if let Some((_, event)) = self.pop_front() {
                freed.event(event);
            }
        }
        if self.wanted_from() >= self.first {
            self.evicted.clear();
        }
        self.has_unwanted()
    }

    /// Whether survivors are here that no cursor has still to see.
    pub(crate) fn has_unwanted(&self) -> bool {
        let oldest = self.survivors.first();
        oldest.is_some_and(|oldest| oldest.number < self.wanted_from())
    }

    /// The number of the lowest cursor.
    fn wanted_from(&self) -> u64 {
        self.cursors.keys().next().copied().unwrap_or(u64::MAX)
    }

    /// Whether no cursor is left.
    pub(crate) fn is_unused(&self) -> bool {
        self.cursors.is_empty()
    }

    /// Whether survivors were evicted that the cursor at `next` had still to see.
    pub(crate) const fn has_overtaken(&self, next: u64) -> bool {
        next < self.first
    }

    /// The sequence of the last survivor evicted before the cursor at `next` had seen it; none if it has not missed any.
    pub(crate) fn evicted_before(&self, next: u64) -> Option<u64> {
        self.has_overtaken(next).then_some(self.evicted_sequence)
    }

    /// The sequence of the last survivor that was evicted.
    pub(crate) const fn evicted_sequence(&self) -> u64 {
        self.evicted_sequence
    }

    /// The number below which everything was evicted.
    pub(crate) const fn first(&self) -> u64 {
        self.first
    }

    /// The first survivor from number `next` on.
    pub(crate) fn from(&self, next: u64) -> Option<Survivor<'_, P>> {
        self.survivors.from(next)
    }

    /// The first survivor from number `next` on with a sequence above `sequence`.
    pub(crate) fn after_sequence(&self, next: u64, sequence: u64) -> Option<Survivor<'_, P>> {
        self.survivors.after_sequence(next, sequence)
    }

    /// The survivor after `survivor`.
    pub(crate) fn after(&self, survivor: &Survivor<'_, P>) -> Option<Survivor<'_, P>> {
        self.survivors.after(survivor)
    }

    /// The survivors from number `next` on with a sequence up to `sequence`.
    pub(crate) fn stretch(&self, next: u64, sequence: u64) -> Stretch {
        self.survivors.stretch(next, sequence)
    }

    /// Counts the survivors from number `next` on with a sequence after `after` and up to `up_to`.
    pub(crate) fn backlog(&self, next: u64, after: u64, up_to: u64) -> Backlog {
        self.survivors.backlog(next, after, up_to)
    }
}

#[cfg(all(test, not(tidegate_loom)))]
mod tests {
    use bytes::Bytes;

    use super::{FREED_AT_ONCE, Latest};
    use crate::{event::NewEvent, freed::Freed, limits::Limits, retained::Retained, topic::Topic};

    #[test]
    fn survivors_go_a_few_under_one_hold_of_the_lock() {
        let retained = Retained::default();
        let limits = Limits {
            max_events: u64::MAX.try_into().unwrap(),
            max_bytes: u64::MAX.try_into().unwrap(),
            ..Limits::default()
        };
        let mut latest = Latest::<Bytes>::new(limits, retained.clone());
        let freed = &mut Freed::new();
        let survivors = 3 * FREED_AT_ONCE as u64;
        latest.enter(0);
        for number in 0..survivors {
            let topic = Topic::new(&format!("k.{number}")).unwrap();
            let event = NewEvent::new(topic, Bytes::new()).into_shared(&retained);
            latest.append(number, &event, freed);
        }
        latest.enter(survivors);
        latest.leave(0, freed);
        let mut left = vec![latest.survivors.total().events];
        while latest.free_unwanted(freed) {
            left.push(latest.survivors.total().events);
        }
        assert_eq!(left, [survivors * 2 / 3, survivors / 3]);
        drop(latest);
        assert_eq!(retained.bytes(), 0);
    }
}

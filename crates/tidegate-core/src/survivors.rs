//! The survivors of a feed: the events that no newer one of their topic and key has replaced, in order, with their
//! numbers and sizes summed.
//!
//! # Sums
//! A conflating subscription asks how many survivors, and how many bytes, lie between two places; that has to be
//! cheap however many there are, because the lock of the feed is held. So the log is also a Fenwick tree: the slot at
//! place `i`, counted from 1, has the sums of as many places up to and with its own as the lowest bit of `i` says.
//! A sum up to a place, and the search for a place by its sum, take one step for each bit of the place.
//!
//! # Dead slots
//! An event that is replaced leaves its slot dead, and its sums shrink. Slots that go at the front stay in the sums,
//! which are only ever looked at in differences. Once more slots are dead than alive, the log is written anew; so
//! each event pays for one more move at most.

use std::sync::Arc;

use crate::{
    backlog::Backlog,
    event::{Event, Payload},
    retained::Retained,
};

/// The bytes of a survivor in the view: a slot (40) and an entry by subject (25), twice over for the room that the log
/// and the table leave free. An estimate.
const SURVIVOR_BYTES: u64 = 128;

/// Dead slots that are left alone, and room that an empty log keeps. 32 slots are 1,280 bytes. Chosen, not measured.
const SMALL_LOG: usize = 32;

/// The events that were not replaced, oldest first.
#[derive(Debug)]
pub(crate) struct Survivors<P> {
    /// The survivors, and dead slots in between.
    slots: Vec<Slot<P>>,
    /// The place of the oldest survivor, or the end: all slots before it are gone, though still in the sums.
    front: usize,
    /// The survivors and their bytes.
    total: Backlog,
    /// The hub's count of bytes, which the survivors' entries add to, besides the events.
    retained: Retained,
}

/// A place in the log.
#[derive(Debug)]
struct Slot<P> {
    /// The number of the event in the feed.
    number: u64,
    /// Its sequence, here so that a search finds its way past dead slots.
    sequence: u64,
    /// The event, unless it was replaced or has gone.
    event: Option<Arc<Event<P>>>,
    /// The survivors among the places whose sums are here, and those that went at the front.
    events: u32,
    /// Their bytes.
    bytes: u64,
}

/// A survivor, as it stands in the log.
#[derive(Debug)]
pub(crate) struct Survivor<'a, P> {
    /// Its number in the feed.
    pub(crate) number: u64,
    /// The event.
    pub(crate) event: &'a Arc<Event<P>>,
    /// Its place in the log, until the log changes.
    place: usize,
}

/// Survivors that follow one another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// How many.
    pub(crate) count: u64,
    /// The sequence of the first; means something only if the count is not 0.
    pub(crate) first: u64,
    /// The sequence of the last.
    pub(crate) last: u64,
}

impl<P: Payload> Survivors<P> {
    /// An empty log.
    pub(crate) const fn new(retained: Retained) -> Self {
        Self {
            slots: Vec::new(),
            front: 0,
            total: Backlog {
                events: 0,
                bytes: 0,
            },
            retained,
        }
    }

    /// How many survivors there are, and their bytes.
    pub(crate) const fn total(&self) -> Backlog {
        self.total
    }

    /// Appends a survivor, with a number and a sequence above all before it.
    pub(crate) fn push(&mut self, number: u64, event: &Arc<Event<P>>) {
        let (mut events, mut bytes) = (1, event.size());
        // The places whose sums the new one takes in: each ends where the next one begins, back to the power of two.
        let place = self.slots.len() + 1;
        let mut below = place - 1;
        while below > place - lowest_bit(place) {
            work::count(1);
            events += self.slots[below - 1].events;
            bytes += self.slots[below - 1].bytes;
            below -= lowest_bit(below);
        }
        self.slots.push(Slot {
            number,
            sequence: event.sequence(),
            event: Some(Arc::clone(event)),
            events,
            bytes,
        });
        self.total.events += 1;
        self.total.bytes += event.size();
        self.retained.add(SURVIVOR_BYTES);
    }

    /// Removes the survivor `number`, which is there. Returns it.
    pub(crate) fn remove(&mut self, number: u64) -> Arc<Event<P>> {
        let at = self.place_of(number);
        let event = self.slots[at].event.take().expect("it survives");
        let mut place = at + 1;
        while place <= self.slots.len() {
            work::count(1);
            let slot = &mut self.slots[place - 1];
            slot.events -= 1;
            slot.bytes -= event.size();
            place += lowest_bit(place);
        }
        self.take_out(&event);
        if at == self.front {
            self.front = self.survivor_at(at).unwrap_or(self.slots.len());
        }
        self.compact();
        event
    }

    /// Removes the oldest survivor, if there is one.
    pub(crate) fn pop_front(&mut self) -> Option<(u64, Arc<Event<P>>)> {
        let slot = self.slots.get_mut(self.front)?;
        let (number, event) = (slot.number, slot.event.take().expect("it survives"));
        self.take_out(&event);
        // The sums keep it: a place before the front is never where a difference begins.
        self.front = self.survivor_at(self.front + 1).unwrap_or(self.slots.len());
        self.compact();
        Some((number, event))
    }

    /// The oldest survivor.
    pub(crate) fn first(&self) -> Option<Survivor<'_, P>> {
        self.at(self.front)
    }

    /// The first survivor with this number or a higher one.
    pub(crate) fn from(&self, number: u64) -> Option<Survivor<'_, P>> {
        self.at(self.survivor_at(self.place_of(number))?)
    }

    /// The first survivor numbered `number` or higher with a sequence above `sequence`.
    pub(crate) fn after_sequence(&self, number: u64, sequence: u64) -> Option<Survivor<'_, P>> {
        let place = self.place_of(number).max(self.place_after(sequence));
        self.at(self.survivor_at(place)?)
    }

    /// The survivor after `survivor`.
    pub(crate) fn after(&self, survivor: &Survivor<'_, P>) -> Option<Survivor<'_, P>> {
        self.at(self.survivor_at(survivor.place + 1)?)
    }

    /// The survivors numbered `number` and higher with a sequence up to `sequence`.
    pub(crate) fn stretch(&self, number: u64, sequence: u64) -> Stretch {
        let from = self.place_of(number);
        let to = self.place_after(sequence).max(from);
        let (before, through) = (self.sum(from).events, self.sum(to).events);
        if before == through {
            return Stretch::default();
        }
        let sequence = |place: usize| self.slots[place].sequence;
        Stretch {
            count: through - before,
            first: sequence(self.place_by_rank(before)),
            last: sequence(self.place_by_rank(through - 1)),
        }
    }

    /// Counts the survivors numbered `number` and higher with a sequence after `after` and up to `up_to`.
    pub(crate) fn backlog(&self, number: u64, after: u64, up_to: u64) -> Backlog {
        let from = self.place_of(number).max(self.place_after(after));
        let to = self.place_after(up_to).max(from);
        let (before, through) = (self.sum(from), self.sum(to));
        Backlog {
            events: through.events - before.events,
            bytes: through.bytes - before.bytes,
        }
    }

    /// The survivor at `place`, which is one or the end.
    fn at(&self, place: usize) -> Option<Survivor<'_, P>> {
        let slot = self.slots.get(place)?;
        Some(Survivor {
            number: slot.number,
            event: slot.event.as_ref()?,
            place,
        })
    }

    /// The place of the first slot with this number or a higher one, not before the front.
    fn place_of(&self, number: u64) -> usize {
        self.search(|slot| slot.number < number)
    }

    /// The place behind the last slot with a sequence up to `sequence`, not before the front.
    fn place_after(&self, sequence: u64) -> usize {
        self.search(|slot| slot.sequence <= sequence)
    }

    /// The first place from the front on that is not `before`.
    fn search(&self, before: impl Fn(&Slot<P>) -> bool) -> usize {
        self.front
            + self.slots[self.front..].partition_point(|slot| {
                work::count(1);
                before(slot)
            })
    }

    /// The first place from `place` on, which is not before the front, where an event survives.
    fn survivor_at(&self, place: usize) -> Option<usize> {
        // Most often it is the very next.
        if self.slots.get(place)?.event.is_some() {
            return Some(place);
        }
        let place = self.place_by_rank(self.sum(place).events);
        (place < self.slots.len()).then_some(place)
    }

    /// The sums of the places before `place`.
    fn sum(&self, place: usize) -> Backlog {
        let mut sum = Backlog::default();
        let mut place = place;
        while place > 0 {
            work::count(1);
            let slot = &self.slots[place - 1];
            sum.events += u64::from(slot.events);
            sum.bytes += slot.bytes;
            place -= lowest_bit(place);
        }
        sum
    }

    /// The first place with more than `rank` events up to and with its own; the end if there is none.
    fn place_by_rank(&self, rank: u64) -> usize {
        let (mut place, mut left) = (0, rank);
        let mut step = (self.slots.len() + 1).next_power_of_two() / 2;
        while step > 0 {
            work::count(1);
            if let Some(slot) = self.slots.get(place + step - 1)
                && u64::from(slot.events) <= left
            {
                place += step;
                left -= u64::from(slot.events);
            }
            step /= 2;
        }
        place
    }

    /// Takes an event that survives no more out of the totals.
    fn take_out(&mut self, event: &Arc<Event<P>>) {
        self.total.events -= 1;
        self.total.bytes -= event.size();
        self.retained.subtract(SURVIVOR_BYTES);
    }

    /// Writes the log anew once more slots are dead than alive, and gives memory back. An empty log keeps next to none.
    fn compact(&mut self) {
        let alive = usize::try_from(self.total.events).unwrap_or(usize::MAX);
        if alive == 0 {
            work::count(self.slots.len() as u64);
            self.slots.clear();
            self.front = 0;
            if self.slots.capacity() > SMALL_LOG {
                self.slots = Vec::new();
            }
            return;
        }
        if self.slots.len() - alive <= alive + SMALL_LOG {
            return;
        }
        work::count(self.slots.len() as u64);
        self.slots.retain(|slot| slot.event.is_some());
        self.front = 0;
        if self.slots.capacity() > 4 * (alive + SMALL_LOG) {
            self.slots.shrink_to(2 * (alive + SMALL_LOG));
        }
        for i in 0..self.slots.len() {
            let size = self.slots[i].event.as_ref().map_or(0, |event| event.size());
            (self.slots[i].events, self.slots[i].bytes) = (1, size);
        }
        // Each place adds its sums to the one place that takes them in directly.
        for place in 1..=self.slots.len() {
            let above = place + lowest_bit(place);
            if above <= self.slots.len() {
                let (events, bytes) = (self.slots[place - 1].events, self.slots[place - 1].bytes);
                self.slots[above - 1].events += events;
                self.slots[above - 1].bytes += bytes;
            }
        }
    }
}

impl<P> Drop for Survivors<P> {
    fn drop(&mut self) {
        self.retained.subtract(self.total.events * SURVIVOR_BYTES);
    }
}

/// The lowest bit that is set in `place`.
const fn lowest_bit(place: usize) -> usize {
    place & place.wrapping_neg()
}

/// Work in steps, counted in tests only: slots looked at, and slots moved.
pub(crate) mod work {
    #[cfg(test)]
    thread_local! {
        static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    /// Counts steps.
    #[inline]
    pub(crate) fn count(steps: u64) {
        #[cfg(test)]
        STEPS.set(STEPS.get() + steps);
        #[cfg(not(test))]
        let _ = steps;
    }

    /// The steps of this thread since the last call.
    #[cfg(all(test, not(tidegate_loom)))]
    pub(crate) fn take() -> u64 {
        STEPS.replace(0)
    }
}

#[cfg(all(test, not(tidegate_loom)))]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{SMALL_LOG, Stretch, Survivors};
    use crate::{
        backlog::Backlog,
        event::{Event, NewEvent},
        retained::Retained,
        topic::Topic,
    };

    #[derive(Debug, Clone)]
    enum Action {
        /// An event of this size.
        Push(usize),
        /// The survivor at this rank, if there is one.
        Remove(prop::sample::Index),
        PopFront,
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            5 => (0..50usize).prop_map(Action::Push),
            3 => any::<prop::sample::Index>().prop_map(Action::Remove),
            2 => Just(Action::PopFront),
        ]
    }

    fn event(sequence: u64, size: usize) -> Arc<Event<Bytes>> {
        let event = NewEvent::new(Topic::new("a").unwrap(), Bytes::from(vec![0; size]));
        let mut event = event.into_shared(&Retained::default());
        Arc::get_mut(&mut event).unwrap().sequence = sequence;
        event
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

        /// Against a plain list of number, sequence and size, in every question that can be asked.
        #[test]
        fn sums_equal_those_of_a_plain_list(
            actions in prop::collection::vec(action(), 1..300),
            number in 0..300u64,
            from in 0..600u64,
            to in 0..600u64,
        ) {
            let retained = Retained::default();
            let mut log = Survivors::new(retained.clone());
            let mut list: Vec<(u64, u64, u64)> = Vec::new();
            let mut pushed = 0;
            for action in actions {
                match action {
                    Action::Push(size) => {
                        pushed += 1;
                        log.push(pushed, &event(2 * pushed, size));
                        list.push((pushed, 2 * pushed, size as u64));
                    }
                    Action::Remove(rank) if !list.is_empty() => {
                        let (number, ..) = list.remove(rank.index(list.len()));
                        log.remove(number);
                    }
                    Action::Remove(_) => {}
                    Action::PopFront => {
                        let expected = (!list.is_empty()).then(|| list.remove(0).0);
                        prop_assert_eq!(log.pop_front().map(|(number, _)| number), expected);
                    }
                }
                prop_assert!(log.slots.len() <= 2 * list.len() + SMALL_LOG);
                let sum = |list: &[(u64, u64, u64)]| Backlog {
                    events: list.len() as u64,
                    bytes: list.iter().map(|(.., size)| size).sum(),
                };
                prop_assert_eq!(log.total(), sum(&list));
                let some = |after: u64, up_to: u64| -> Vec<_> {
                    list.iter()
                        .filter(|(n, s, _)| *n >= number && *s > after && *s <= up_to)
                        .copied()
                        .collect()
                };
                prop_assert_eq!(log.backlog(number, from, to), sum(&some(from, to)));
                let stretch = some(0, to);
                prop_assert_eq!(log.stretch(number, to), Stretch {
                    count: stretch.len() as u64,
                    first: stretch.first().map_or(0, |(_, sequence, _)| *sequence),
                    last: stretch.last().map_or(0, |(_, sequence, _)| *sequence),
                });
                prop_assert_eq!(
                    log.after_sequence(number, from).map(|survivor| survivor.number),
                    some(from, u64::MAX).first().map(|(number, ..)| *number)
                );
                let mut walked = Vec::new();
                let mut next = log.from(number);
                while let Some(survivor) = next {
                    walked.push(survivor.number);
                    next = log.after(&survivor);
                }
                let all = some(0, u64::MAX);
                prop_assert!(walked.into_iter().eq(all.iter().map(|(number, ..)| *number)));
                prop_assert_eq!(
                    log.first().map(|survivor| survivor.number),
                    list.first().map(|(number, ..)| *number)
                );
            }
            drop(log);
            prop_assert_eq!(retained.bytes(), 0);
        }
    }
}

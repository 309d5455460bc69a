//! History: recent events, kept for replay, and the ranges that the hub was never handed.

use std::{
    collections::VecDeque,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    event::{Event, Payload},
    freed::Freed,
    retained::Retained,
};

/// The most ranges that are remembered as lost. It happens rarely: a node was cut off for longer than its log keeps
/// events, or the log has lost some. Beyond it the oldest two become one.
const MAX_LOST: usize = 64;

/// The most events that expire under one hold of the lock, for which publishers wait. Chosen, not measured.
const EXPIRED_AT_ONCE: usize = if cfg!(test) { 2 } else { 2_048 };

/// The limits of history. An event that is beyond any one of them is dropped, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// The most events. Default: 10,000. 0 turns history off.
    pub max_events: usize,
    /// The most bytes, as [`Payload::size`] counts them. Default: 64 MiB. 0 turns history off.
    pub max_bytes: u64,
    /// The greatest age, measured from the time that came with the event. Default: 5 minutes. 0 turns
    /// history off.
    pub max_age: Duration,
}

/// Recent events, oldest first.
#[derive(Debug)]
pub(crate) struct History<P> {
    /// The limits in force.
    limits: HistoryLimits,
    /// The hub's count of bytes, which the entries add to, besides the events.
    retained: Retained,
    /// The events that are kept, in sequence order.
    entries: VecDeque<Entry<P>>,
    /// The sizes of the events that are kept, summed.
    bytes: u64,
    /// The sequence of the newest event that was dropped; 0 if none was.
    evicted_through: u64,
    /// The sequence of the newest event that was evicted for the memory budget; 0 if none was.
    evicted_for_budget: u64,
    /// First and last sequence of the ranges that the hub was never handed, oldest first, none touching the next. Those
    /// that history has evicted past are still to be told to subscriptions that are behind.
    lost: VecDeque<(u64, u64)>,
    /// The epoch of the sequences.
    epoch: u64,
}

/// An event in history.
#[derive(Debug)]
struct Entry<P> {
    /// The event, which feeds share.
    event: Arc<Event<P>>,
    /// The time that came with it, or that of an event before it if that is later.
    at: Instant,
}

/// Entries of history, copied to be looked at without its lock.
#[derive(Debug)]
pub(crate) struct Stretch<P> {
    /// References to the events, in the order in which they were asked for.
    pub(crate) events: Vec<Arc<Event<P>>>,
    /// Whether these are all that were asked for.
    pub(crate) is_all: bool,
}

impl HistoryLimits {
    /// No history: whoever resumes is told that the position has expired, unless it is that of the newest event.
    pub const OFF: Self = Self {
        max_events: 0,
        max_bytes: 0,
        max_age: Duration::ZERO,
    };

    /// Whether nothing can be kept.
    const fn is_off(&self) -> bool {
        self.max_events == 0 || self.max_bytes == 0 || self.max_age.is_zero()
    }
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self {
            max_events: 10_000,
            max_bytes: 64 << 20,
            max_age: Duration::from_secs(300),
        }
    }
}

impl<P: Payload> History<P> {
    /// A history without events, of a sequence space that begins after `after`.
    pub(crate) const fn new(
        limits: HistoryLimits,
        retained: Retained,
        epoch: u64,
        after: u64,
    ) -> Self {
        Self {
            limits,
            retained,
            entries: VecDeque::new(),
            bytes: 0,
            evicted_through: after,
            evicted_for_budget: 0,
            lost: VecDeque::new(),
            epoch,
        }
    }

    /// Begins anew in `epoch`, after `after`. Returns the events that it has kept, for the caller to free.
    pub(crate) fn begin_epoch(&mut self, epoch: u64, after: u64) -> impl Sized + use<P> {
        let entries = mem::take(&mut self.entries);
        self.retained
            .subtract((entries.len() * size_of::<Entry<P>>()) as u64);
        self.bytes = 0;
        (self.evicted_through, self.evicted_for_budget) = (after, 0);
        self.lost.clear();
        self.epoch = epoch;
        entries
    }

    /// The epoch of the sequences.
    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Notes that nothing is known of the sequences up to `sequence`.
    pub(crate) fn begin_after(&mut self, sequence: u64) {
        self.evicted_through = self.evicted_through.max(sequence);
    }

    /// Appends `event`, which came at `now`, and drops what is beyond the limits on number and bytes.
    pub(crate) fn append(&mut self, event: &Arc<Event<P>>, now: Instant, freed: &mut Freed<P>) {
        if self.limits.is_off() {
            // Dropped all the same: a position before it cannot be resumed whole.
            self.evicted_through = event.sequence;
            return;
        }
        self.bytes += event.size();
        self.retained.add(size_of::<Entry<P>>() as u64);
        // A log may hand over times that go back a little. Events grow too old in their order.
        let at = self.entries.back().map_or(now, |newest| newest.at.max(now));
        self.entries.push_back(Entry {
            event: Arc::clone(event),
            at,
        });
        self.keep_within_limits(freed);
    }

    /// Puts new `limits` in force, and drops what is beyond those on number and bytes.
    pub(crate) fn set_limits(&mut self, limits: HistoryLimits, freed: &mut Freed<P>) {
        self.limits = limits;
        self.keep_within_limits(freed);
    }

    /// Drops the oldest events beyond the limits on number and bytes.
    fn keep_within_limits(&mut self, freed: &mut Freed<P>) {
        while self.entries.len() > self.limits.max_events || self.bytes > self.limits.max_bytes {
            self.evict_oldest(freed);
        }
    }

    /// Drops events that have reached the greatest age, but not all at once where there are many. Returns whether some are
    /// left.
    pub(crate) fn expire(&mut self, now: Instant, freed: &mut Freed<P>) -> bool {
        for _ in 0..EXPIRED_AT_ONCE {
            if !self.has_expired(now) {
                // A hub that was busy once and is quiet now keeps no memory for it.
                if self.entries.is_empty() {
                    self.entries.shrink_to_fit();
                }
                return false;
            }
            self.evict_oldest(freed);
        }
        self.has_expired(now)
    }

    /// Whether an event has reached the greatest age.
    fn has_expired(&self, now: Instant) -> bool {
        let oldest = self.entries.front();
        oldest.is_some_and(|e| now.saturating_duration_since(e.at) >= self.limits.max_age)
    }

    /// Drops the oldest event.
    fn evict_oldest(&mut self, freed: &mut Freed<P>) {
        let entry = self.entries.pop_front().expect("history is not empty");
        self.bytes -= entry.event.size();
        self.retained.subtract(size_of::<Entry<P>>() as u64);
        self.evicted_through = entry.event.sequence;
        freed.event(entry.event);
    }

    /// Evicts events up to a sequence, for the memory budget.
    pub(crate) fn evict_through(&mut self, sequence: u64, freed: &mut Freed<P>) {
        while self.oldest().is_some_and(|oldest| oldest <= sequence) {
            self.evict_oldest(freed);
            self.evicted_for_budget = self.evicted_through;
        }
    }

    /// Notes that the sequences from `first` to `last` were lost. They are behind all that came before.
    ///
    /// If that makes too many ranges, the oldest two become one, and the events between them are evicted: none ever lies
    /// within a range. Returns the sequence up to which the hub has to evict then, everywhere.
    pub(crate) fn lose(&mut self, first: u64, last: u64, freed: &mut Freed<P>) -> Option<u64> {
        match self.lost.back_mut() {
            Some((_, end)) if *end + 1 == first => *end = last,
            _ => self.lost.push_back((first, last)),
        }
        if self.lost.len() <= MAX_LOST {
            return None;
        }
        let (begin, _) = self.lost.pop_front()?;
        let (oldest, through) = self.lost.front_mut()?;
        *oldest = begin;
        let through = *through;
        self.evict_through(through, freed);
        Some(through)
    }

    /// First and last sequence of what was lost after `after` and begins at `up_to` or before: of the first range, or
    /// of `all` of them with what lies between.
    pub(crate) fn lost_after(&self, after: u64, up_to: u64, all: bool) -> Option<(u64, u64)> {
        let begin = self.lost.partition_point(|(_, last)| *last <= after);
        let end = self.lost.partition_point(|(first, _)| *first <= up_to);
        let (first, last) = *self.lost.get(begin).filter(|_| begin < end)?;
        let first = first.max(after + 1);
        let last = if all { self.lost[end - 1].1 } else { last };
        // One that has grown since its beginning was told may go on behind `up_to`.
        (first <= up_to).then_some((first, last))
    }

    /// The last sequence of what was lost; 0 if nothing was.
    pub(crate) fn lost_through(&self) -> u64 {
        self.lost.back().map_or(0, |(_, last)| *last)
    }

    /// The sequence of the newest event that was evicted for the memory budget; 0 if none was.
    pub(crate) const fn evicted_for_budget(&self) -> u64 {
        self.evicted_for_budget
    }

    /// The sequence of the oldest event that is kept.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.entries.front().map(|oldest| oldest.event.sequence)
    }

    /// How many events are kept.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The sizes of the events that are kept, summed.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The sequence of the newest event that is kept.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.entries.back().map(|newest| newest.event.sequence)
    }

    /// The sequence of the newest event that was dropped. A position before it cannot be resumed whole.
    pub(crate) const fn evicted_through(&self) -> u64 {
        self.evicted_through
    }

    /// The sequence before the oldest event that is kept, given the `head` of the hub.
    pub(crate) fn before_oldest(&self, head: u64) -> u64 {
        self.oldest().map_or(head, |oldest| oldest - 1)
    }

    /// The number of entries with a sequence up to `sequence`.
    fn count_up_to(&self, sequence: u64) -> usize {
        self.entries
            .partition_point(|entry| entry.event.sequence <= sequence)
    }

    /// Whether no event after `sequence` was dropped, and those there are no more than `max_events`, and no more than
    /// `max_bytes` if there are several.
    pub(crate) fn is_short_after(
        &self,
        sequence: u64,
        (max_events, max_bytes): (usize, u64),
    ) -> bool {
        let newer = self.entries.range(self.count_up_to(sequence)..);
        self.evicted_through <= sequence
            && newer.len() <= max_events
            && (newer.len() <= 1 || newer.map(|entry| entry.event.size()).sum::<u64>() <= max_bytes)
    }

    /// Copies up to `max_entries` entries after `after` and up to `up_to`, oldest first.
    pub(crate) fn forward(&self, after: u64, up_to: u64, max_entries: usize) -> Stretch<P> {
        let begin = self.count_up_to(after);
        let end = self.count_up_to(up_to).max(begin);
        Stretch::of(self.entries.range(begin..end), max_entries)
    }

    /// Copies up to `max_entries` entries before `before` and after `after`, newest first.
    pub(crate) fn backward(&self, before: u64, after: u64, max_entries: usize) -> Stretch<P> {
        let end = self.count_up_to(before.saturating_sub(1));
        let begin = self.count_up_to(after).min(end);
        Stretch::of(self.entries.range(begin..end).rev(), max_entries)
    }
}

impl<P> Stretch<P> {
    /// The first of `entries`, up to `max_entries`.
    fn of<'a>(entries: impl ExactSizeIterator<Item = &'a Entry<P>>, max_entries: usize) -> Self
    where
        P: 'a,
    {
        let is_all = entries.len() <= max_entries;
        let events = entries
            .take(max_entries)
            .map(|entry| Arc::clone(&entry.event))
            .collect();
        Self { events, is_all }
    }
}

#[cfg(all(test, not(tidegate_loom)))]
mod tests {
    use std::time::{Duration, Instant};

    use bytes::Bytes;

    use super::{EXPIRED_AT_ONCE, History, HistoryLimits};
    use crate::{event::NewEvent, freed::Freed, retained::Retained, topic::Topic};

    #[test]
    fn events_expire_a_few_under_one_hold_of_the_lock() {
        let retained = Retained::default();
        let mut history = History::<Bytes>::new(HistoryLimits::default(), retained.clone(), 1, 0);
        let (now, freed) = (Instant::now(), &mut Freed::new());
        for _ in 0..3 * EXPIRED_AT_ONCE {
            let event = NewEvent::new(Topic::new("a").unwrap(), Bytes::new());
            history.append(&event.into_shared(&retained), now, freed);
        }
        let later = now + Duration::from_secs(1_000);
        let mut left = Vec::new();
        while history.expire(later, freed) {
            left.push(history.len());
        }
        assert_eq!(left, [2 * EXPIRED_AT_ONCE, EXPIRED_AT_ONCE]);
        assert_eq!(retained.bytes(), 0);
    }
}

//! History: recent events, kept for replay.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    event::{Event, Payload},
    retained::Retained,
};

/// How much history is kept. An event goes when any one limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// The most events. Default: 10,000. 0 turns history off.
    pub max_events: usize,
    /// The most bytes, as [`Payload::size`] counts them. Default: 64 MiB. 0 turns history off.
    pub max_bytes: u64,
    /// The greatest age, measured from when the hub was handed the event. Default: 5 minutes. 0 turns
    /// history off.
    pub max_age: Duration,
}

#[derive(Debug)]
pub(crate) struct History<P> {
    limits: HistoryLimits,
    /// Where the entries are counted, besides the events.
    retained: Retained,
    entries: VecDeque<Entry<P>>,
    bytes: u64,
    /// The sequence of the newest event that is gone; 0 if none is.
    evicted_through: u64,
    /// The sequence of the newest event that the memory budget took; 0 if it took none.
    evicted_for_budget: u64,
}

#[derive(Debug)]
struct Entry<P> {
    event: Arc<Event<P>>,
    at: Instant,
}

/// What a walk over a stretch of history did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Walk {
    /// The sequence of the last entry looked at, if there was one. A refused one does not count.
    pub(crate) last: Option<u64>,
    pub(crate) end: WalkEnd,
}

/// How a walk over a stretch of history ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WalkEnd {
    /// The stretch is done.
    Done,
    /// As many entries as allowed were looked at.
    MaxEntries,
    /// The visitor refused an entry.
    Refused,
}

impl HistoryLimits {
    /// No history: every resumption is told that it has expired, unless nothing happened meanwhile.
    pub const OFF: Self = Self {
        max_events: 0,
        max_bytes: 0,
        max_age: Duration::ZERO,
    };

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
    pub(crate) const fn new(limits: HistoryLimits, retained: Retained) -> Self {
        Self {
            limits,
            retained,
            entries: VecDeque::new(),
            bytes: 0,
            evicted_through: 0,
            evicted_for_budget: 0,
        }
    }

    pub(crate) fn append(&mut self, event: &Arc<Event<P>>, now: Instant) {
        if self.limits.is_off() {
            self.evicted_through = event.sequence;
            return;
        }
        self.bytes += event.size();
        self.retained.add(size_of::<Entry<P>>() as u64);
        self.entries.push_back(Entry {
            event: Arc::clone(event),
            at: now,
        });
        self.keep_within_limits();
        self.expire(now);
    }

    /// Keeps as much as `limits` allow from here on, and lets go of the rest.
    pub(crate) fn set_limits(&mut self, limits: HistoryLimits, now: Instant) {
        self.limits = limits;
        self.keep_within_limits();
        self.expire(now);
    }

    fn keep_within_limits(&mut self) {
        while self.entries.len() > self.limits.max_events || self.bytes > self.limits.max_bytes {
            self.evict_oldest();
        }
    }

    /// Lets go of what is older than the limit.
    pub(crate) fn expire(&mut self, now: Instant) {
        while self
            .entries
            .front()
            .is_some_and(|e| now.saturating_duration_since(e.at) >= self.limits.max_age)
        {
            self.evict_oldest();
        }
        if self.entries.is_empty() {
            self.entries.shrink_to_fit();
        }
    }

    fn evict_oldest(&mut self) {
        let entry = self.entries.pop_front().expect("history is not empty");
        self.bytes -= entry.event.size();
        self.retained.subtract(size_of::<Entry<P>>() as u64);
        self.evicted_through = entry.event.sequence;
    }

    /// Evicts events up to a sequence, for the memory budget.
    pub(crate) fn evict_through(&mut self, sequence: u64) {
        while self.oldest().is_some_and(|oldest| oldest <= sequence) {
            self.evict_oldest();
            self.evicted_for_budget = self.evicted_through;
        }
    }

    /// The sequence of the newest event that the memory budget took; 0 if it took none.
    pub(crate) const fn evicted_for_budget(&self) -> u64 {
        self.evicted_for_budget
    }

    /// The sequence of the oldest event that is kept.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.entries.front().map(|oldest| oldest.event.sequence)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The sequence of the newest event that is kept.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.entries.back().map(|newest| newest.event.sequence)
    }

    /// The sequence of the newest event that is gone. A position before it cannot be resumed whole.
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

    /// Walks over up to `max_entries` entries after `after` and up to `up_to`, oldest first. `visit` returns
    /// false to refuse an entry.
    pub(crate) fn forward(
        &self,
        after: u64,
        up_to: u64,
        max_entries: usize,
        visit: impl FnMut(&Arc<Event<P>>) -> bool,
    ) -> Walk {
        walk(
            self.entries
                .range(self.count_up_to(after)..self.count_up_to(up_to)),
            max_entries,
            visit,
        )
    }

    /// Walks over up to `max_entries` entries before `before` and after `after`, newest first.
    pub(crate) fn backward(
        &self,
        before: u64,
        after: u64,
        max_entries: usize,
        visit: impl FnMut(&Arc<Event<P>>) -> bool,
    ) -> Walk {
        let end = self.count_up_to(before.saturating_sub(1));
        walk(
            self.entries
                .range(self.count_up_to(after).min(end)..end)
                .rev(),
            max_entries,
            visit,
        )
    }
}

fn walk<'a, P: 'a>(
    mut entries: impl Iterator<Item = &'a Entry<P>>,
    max_entries: usize,
    mut visit: impl FnMut(&'a Arc<Event<P>>) -> bool,
) -> Walk {
    let mut last = None;
    for _ in 0..max_entries {
        let Some(entry) = entries.next() else {
            return Walk {
                last,
                end: WalkEnd::Done,
            };
        };
        if !visit(&entry.event) {
            return Walk {
                last,
                end: WalkEnd::Refused,
            };
        }
        last = Some(entry.event.sequence);
    }
    let end = if entries.next().is_some() {
        WalkEnd::MaxEntries
    } else {
        WalkEnd::Done
    };
    Walk { last, end }
}

//! The counters of a hub, as plain numbers. Their names in a metrics system are the server's business.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::gap::{Gap, GapReason};

/// The state of a hub in numbers, at one moment.
///
/// When nobody publishes, drains, subscribes or leaves:
/// `matched + replayed = handed_off + overflowed + conflated + evicted + abandoned + all backlogs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Events published since the hub was made.
    pub published: u64,
    /// Subscriptions that matched, summed over the events published.
    pub matched: u64,
    /// Events of history that subscriptions were promised when they began.
    pub replayed: u64,
    /// Events given to subscribers.
    pub handed_off: u64,
    /// Events counted by gaps of [`GapReason::Overflow`].
    pub overflowed: u64,
    /// Events counted by gaps of [`GapReason::Conflated`].
    pub conflated: u64,
    /// Events counted by gaps of [`GapReason::Evicted`].
    pub evicted: u64,
    /// Events that a subscription had still to see when it was dropped, or that it passed over.
    pub abandoned: u64,
    /// Subscriptions now.
    pub subscriptions: u64,
    /// Subscriptions that the last sweep found stalled and left as they are.
    pub stalled: u64,
    /// Subscriptions that were ended because they were stalled, or for the memory of what they were sending.
    pub ended_stalled: u64,
    /// Subscriptions whose transport was told to give up: they took no notice of their end, or their memory was needed.
    pub reset: u64,
    /// Gaps given to subscribers.
    pub gaps: GapStats,
    /// Client ids in use now.
    pub clients: usize,
    /// Feeds now: the distinct filters in use, `$client.<id>` included.
    pub feeds: usize,
    /// Bytes that filters hold now, as [`FilterCost::bytes`](crate::FilterCost::bytes) estimates them; filters that share a feed
    /// count once.
    pub filter_bytes: u64,
    /// Events in history now.
    pub history_events: usize,
    /// Bytes that events hold now, in history, in feeds and on their way: what the memory budget bounds.
    pub retained_bytes: u64,
    /// Bytes of [events that are being sent](crate::Sending) now, part of `retained_bytes`. They may have half of the
    /// memory budget.
    pub sending_bytes: u64,
    /// Bytes in history now, as [`Payload::size`](crate::Payload::size) counts them.
    pub history_bytes: u64,
}

/// How many gaps subscribers were given, by reason. A gap may count many events, or an unknown number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GapStats {
    /// Gaps of [`GapReason::Overflow`].
    pub overflow: u64,
    /// Gaps of [`GapReason::Conflated`].
    pub conflated: u64,
    /// Gaps of [`GapReason::Evicted`].
    pub evicted: u64,
    /// Gaps of [`GapReason::Expired`].
    pub expired: u64,
    /// Gaps of [`GapReason::EpochChanged`].
    pub epoch_changed: u64,
    /// Gaps of [`GapReason::Backplane`].
    pub backplane: u64,
}

/// The counters of a hub, with the meanings that [`Stats`] and [`GapStats`] give them. They order nothing: each is
/// right by itself, at the end of each call.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) published: AtomicU64,
    pub(crate) matched: AtomicU64,
    pub(crate) replayed: AtomicU64,
    pub(crate) handed_off: AtomicU64,
    pub(crate) overflowed: AtomicU64,
    pub(crate) conflated: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) abandoned: AtomicU64,
    pub(crate) subscriptions: AtomicU64,
    pub(crate) stalled: AtomicU64,
    pub(crate) ended_stalled: AtomicU64,
    pub(crate) reset: AtomicU64,
    pub(crate) overflow_gaps: AtomicU64,
    pub(crate) conflated_gaps: AtomicU64,
    pub(crate) evicted_gaps: AtomicU64,
    pub(crate) expired_gaps: AtomicU64,
    pub(crate) epoch_gaps: AtomicU64,
    pub(crate) backplane_gaps: AtomicU64,
}

impl Counters {
    /// The counters as they are now. The fields of [`Stats`] that are not counted here are 0.
    pub(crate) fn snapshot(&self) -> Stats {
        Stats {
            published: self.published.load(Relaxed),
            matched: self.matched.load(Relaxed),
            replayed: self.replayed.load(Relaxed),
            handed_off: self.handed_off.load(Relaxed),
            overflowed: self.overflowed.load(Relaxed),
            conflated: self.conflated.load(Relaxed),
            evicted: self.evicted.load(Relaxed),
            abandoned: self.abandoned.load(Relaxed),
            subscriptions: self.subscriptions.load(Relaxed),
            stalled: self.stalled.load(Relaxed),
            ended_stalled: self.ended_stalled.load(Relaxed),
            reset: self.reset.load(Relaxed),
            gaps: self.gaps(),
            ..Stats::default()
        }
    }

    /// The counters of gaps.
    fn gaps(&self) -> GapStats {
        GapStats {
            overflow: self.overflow_gaps.load(Relaxed),
            conflated: self.conflated_gaps.load(Relaxed),
            evicted: self.evicted_gaps.load(Relaxed),
            expired: self.expired_gaps.load(Relaxed),
            epoch_changed: self.epoch_gaps.load(Relaxed),
            backplane: self.backplane_gaps.load(Relaxed),
        }
    }

    /// Counts a gap, and the events in it where their number is known.
    pub(crate) fn count_gap(&self, gap: &Gap) {
        let (gaps, events) = match gap.reason {
            GapReason::Overflow => (&self.overflow_gaps, Some(&self.overflowed)),
            GapReason::Conflated => (&self.conflated_gaps, Some(&self.conflated)),
            GapReason::Evicted => (&self.evicted_gaps, Some(&self.evicted)),
            GapReason::Expired => (&self.expired_gaps, None),
            GapReason::EpochChanged => (&self.epoch_gaps, None),
            GapReason::Backplane => (&self.backplane_gaps, None),
        };
        add(gaps, 1);
        if let Some(events) = events {
            add(events, gap.count);
        }
    }
}

/// Adds `n` to `counter`. Leaves it alone for 0, as most polls lose nothing and all share its cache line.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    if n != 0 {
        counter.fetch_add(n, Relaxed);
    }
}

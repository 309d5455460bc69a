//! The losses that a poll finds, by reason, until they become gaps.

use std::mem;

use crate::{
    event::Payload,
    evicted::EvictedWithin,
    feed::FeedState,
    gap::{Gap, GapReason},
};

/// Losses of one poll, summed over feeds, one of each reason.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Beyond the limits of the subscription.
    pub(super) overflow: Loss,
    /// Evicted for the memory budget.
    pub(super) evicted: Loss,
    /// Replaced by newer events of their topic and key.
    pub(super) conflated: Loss,
}

/// Events lost for one reason.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Loss {
    /// How many; the sequences mean something only if it is not 0.
    pub(super) count: u64,
    /// No event of the loss has a lower sequence.
    first: u64,
    /// No event of the loss has a higher sequence.
    last: u64,
}

impl Losses {
    /// Adds the events that a cursor skips on its way from number `from`, at sequence `head`, to number `to`.
    pub(super) fn skip<P: Payload>(&mut self, feed: &FeedState<P>, from: u64, to: u64, head: u64) {
        if to == from {
            return;
        }
        let evicted = feed.evicted().within(from, to);
        self.evicted.merge(evicted, head);
        let (mut first, mut last) = (head, feed.sequence_before(to));
        // The rest overflowed. It lies before the evicted run, or behind it, or around it; in the last case, and
        // where there are several runs, the bounds stay those of the whole and `settle_interleaved` decides.
        if evicted.is_one_run() && evicted.count > 0 {
            if evicted.to == to {
                last = evicted.first - 1;
            } else if evicted.from == from {
                first = evicted.last + 1;
            }
        }
        self.overflow.add(to - from - evicted.count, first, last);
    }

    /// Whether nothing was lost but what was replaced.
    pub(super) const fn is_only_conflated(&self) -> bool {
        self.overflow.count == 0 && self.evicted.count == 0
    }

    /// The sequence of the last event lost to overflow or eviction; 0 if none was.
    pub(super) fn last(&self) -> u64 {
        self.overflow.last.max(self.evicted.last)
    }

    /// Adds the losses to `gaps`, in the order of where they begin, but the conflated first: the position moves
    /// behind each of the others, and events that were replaced before it must have been counted by then.
    /// Losses of one reason are one gap.
    ///
    /// With these goes what the hub was never handed, `lost`, if they reach beyond its beginning. How many of them lay
    /// before it is not known where a feed has evicted them. So its gap begins where they begin, and goes before theirs:
    /// whoever breaks off between the two is told of all up to there.
    pub(super) fn into_gaps(mut self, lost: Option<(u64, u64)>, gaps: &mut Vec<Gap>) {
        self.settle_interleaved();
        if let Some((first, last)) = lost {
            merge_conflated(gaps, mem::take(&mut self.conflated));
            let counted = self
                .overflow
                .first()
                .into_iter()
                .chain(self.evicted.first());
            let first = counted.fold(first, u64::min);
            merge_gap(gaps, GapReason::Backplane, Loss::new(0, first, last));
        }
        let overflow = (GapReason::Overflow, self.overflow);
        let evicted = (GapReason::Evicted, self.evicted);
        let (earlier, later) = if self.overflow.first <= self.evicted.first {
            (overflow, evicted)
        } else {
            (evicted, overflow)
        };
        merge_conflated(gaps, self.conflated);
        for (reason, loss) in [earlier, later] {
            if loss.count > 0 {
                merge_gap(gaps, reason, loss);
            }
        }
    }

    /// Counts overflow in between evicted events as evicted. Both would stand before the same event, and a
    /// consumer that breaks off between their gaps would resume after what the second counts.
    fn settle_interleaved(&mut self) {
        let Self {
            overflow, evicted, ..
        } = self;
        let overlap = overflow.first <= evicted.last && evicted.first <= overflow.last;
        if overflow.count > 0 && evicted.count > 0 && overlap {
            evicted.add(overflow.count, overflow.first, overflow.last);
            *overflow = Loss::default();
        }
    }
}

impl Loss {
    /// A lower bound of the sequences of the loss, if there is one.
    pub(super) fn first(&self) -> Option<u64> {
        (self.count > 0).then_some(self.first)
    }

    /// A loss of `count` events between these sequences, both included.
    pub(super) const fn new(count: u64, first: u64, last: u64) -> Self {
        Self { count, first, last }
    }

    /// Adds events evicted ahead of a cursor whose next event does not come before `not_before`. A run is
    /// evicted for all cursors at once, so it may begin with events that this one has seen.
    pub(super) fn merge(&mut self, evicted: EvictedWithin, not_before: u64) {
        let EvictedWithin {
            count, first, last, ..
        } = evicted;
        self.add(count, first.max(not_before), last);
    }

    /// Adds `count` events between these sequences, both included.
    pub(super) fn add(&mut self, count: u64, first: u64, last: u64) {
        if count > 0 {
            self.first = if self.count == 0 {
                first
            } else {
                self.first.min(first)
            };
            self.last = self.last.max(last);
            self.count += count;
        }
    }
}

/// Adds what was replaced to the gaps, if anything was.
fn merge_conflated(gaps: &mut Vec<Gap>, conflated: Loss) {
    if conflated.count > 0 {
        merge_gap(gaps, GapReason::Conflated, conflated);
    }
}

/// Adds a loss to the gap of its reason, or as a new gap. A gap has no index yet.
pub(super) fn merge_gap(gaps: &mut Vec<Gap>, reason: GapReason, Loss { count, first, last }: Loss) {
    match gaps.iter_mut().find(|gap| gap.reason == reason) {
        Some(gap) => {
            gap.count += count;
            gap.last_sequence = gap.last_sequence.max(last);
        }
        None => gaps.push(Gap {
            first_sequence: first,
            last_sequence: last,
            count,
            reason,
            first_index: 0,
        }),
    }
}

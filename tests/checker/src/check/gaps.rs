//! Checks that each gap stands where its events are missing, counts them, and is allowed.

use tidegate_proto::v1::{Gap, GapReason, Overflow};

use super::walk::Walk;
use crate::violation::{Fault, Violation};

impl Walk<'_> {
    /// Checks a gap. `head` was the newest sequence of the server after it had arrived.
    pub(super) fn gap(&mut self, gap: &Gap, head: u64, number: usize) -> Result<(), Violation> {
        let reason = gap.reason();
        if self.client.is_healthy && gap.count > 0 {
            return Err(Violation::Isolation(Fault::new(
                self.location(),
                "events are missing although the client read all the time",
                0,
                gap.count,
            )));
        }
        if gap.count > 0 {
            self.index(gap.first_index, gap.count)?;
        } else if !matches!(reason, GapReason::Expired | GapReason::EpochChanged) {
            return Err(self.loss("a gap is not counted", 1, 0));
        }
        if gap.last_sequence < gap.first_sequence {
            return Err(self.disorder(
                "a gap ends before it begins",
                gap.first_sequence,
                gap.last_sequence,
            ));
        }
        if gap.first_sequence <= self.last && self.last > 0 && reason != GapReason::Conflated {
            return Err(self.disorder(
                "a gap begins before the event that came last",
                self.last + 1,
                gap.first_sequence,
            ));
        }
        match reason {
            GapReason::EpochChanged | GapReason::Expired => {
                return self.opening_gap(gap, head, number);
            }
            GapReason::Evicted if !self.context.rules.may_evict => {
                return Err(self.loss(
                    "events were evicted within the memory budget",
                    0,
                    gap.count,
                ));
            }
            GapReason::Conflated if self.conflated.is_none() => {
                return Err(self.loss(
                    "events are called conflated where none may be",
                    0,
                    gap.count,
                ));
            }
            _ => {}
        }
        if reason == GapReason::Overflow {
            self.overflow(gap, head)?;
        }
        if let Some(conflated) = &mut self.conflated {
            conflated.settled += gap.count;
            conflated.counted_through = conflated.counted_through.max(gap.last_sequence);
            if reason != GapReason::Conflated {
                conflated.lost.push((gap.first_sequence, gap.last_sequence));
                self.next = Some(self.next.unwrap_or(1).max(gap.last_sequence + 1));
                let problem =
                    "a position behind a gap is stated before what was replaced there is counted";
                return self.settled_to(gap.last_sequence, problem);
            }
            let settled = conflated.settled;
            let matching = self.matching_since_live(head);
            if settled > matching {
                return Err(self.loss("more is counted than was published", matching, settled));
            }
            return Ok(());
        }
        self.counted(gap)
    }

    /// Checks that a gap stands where its events are missing, and counts them.
    fn counted(&mut self, gap: &Gap) -> Result<(), Violation> {
        if self.next.is_none() {
            self.begin_at(gap.first_sequence)?;
        }
        self.nothing_before(gap.first_sequence, "an event is missing before a gap")?;
        self.counts(gap, self.matching_to(gap.last_sequence))?;
        self.next = Some(gap.last_sequence + 1);
        Ok(())
    }

    fn counts(&self, gap: &Gap, matching: u64) -> Result<(), Violation> {
        if gap.count == matching {
            return Ok(());
        }
        let problem = "a gap counts another number than match in its span";
        Err(self.loss(problem, matching, gap.count))
    }

    fn opening_gap(&mut self, gap: &Gap, head: u64, number: usize) -> Result<(), Violation> {
        let Some(asked) = self.stream.request.resume_after.filter(|_| number == 0) else {
            return Err(self.resume(
                "a gap of this reason stands only before the first event of a stream that resumes",
                0,
                number as u64,
            ));
        };
        let changed = gap.reason() == GapReason::EpochChanged;
        if changed == (asked.epoch == self.head.epoch) {
            return Err(self.resume(
                "the epoch changed, and the gap is of another reason, or the reverse",
                self.head.epoch,
                asked.epoch,
            ));
        }
        let first = if changed { 0 } else { asked.sequence + 1 };
        if gap.first_sequence != first {
            return Err(self.resume(
                "the gap does not begin where the position ends",
                first,
                gap.first_sequence,
            ));
        }
        self.left_history(gap, head)?;
        if gap.count > 0 {
            self.counts(gap, self.matching(gap.first_sequence, gap.last_sequence))?;
        }
        self.next = Some(gap.last_sequence + 1);
        Ok(())
    }

    /// Checks that events that are said to have left history have.
    fn left_history(&self, gap: &Gap, head: u64) -> Result<(), Violation> {
        match self.context.rules.history_events {
            Some(kept) if gap.last_sequence > head.saturating_sub(kept) => Err(self.resume(
                "events that history still has are said to be gone",
                head.saturating_sub(kept),
                gap.last_sequence,
            )),
            _ => Ok(()),
        }
    }

    /// Checks that overflow dropped the oldest events, and no more than it had to.
    fn overflow(&self, gap: &Gap, head: u64) -> Result<(), Violation> {
        if self.is_replaying {
            return self.left_history(gap, head);
        }
        let stale = |problem| {
            Violation::Freshness(Fault::new(
                self.location(),
                problem,
                gap.last_sequence,
                head,
            ))
        };
        if self.overflow == Overflow::Disconnect {
            return Err(stale(
                "events were dropped although the client had asked to be disconnected instead",
            ));
        }
        // Conflated, the limits count survivors, of which only the server knows how many there were.
        if self.context.rules.may_evict || self.conflated.is_some() {
            return Ok(());
        }
        let (mut events, mut bytes) = (0, 0);
        for sequence in (gap.last_sequence..=head).rev() {
            if self.wants(sequence) {
                events += 1;
                bytes += self
                    .context
                    .log
                    .get(sequence)
                    .map_or(0, |event| u64::from(event.size));
            }
            if events > self.max_events || bytes > self.max_bytes {
                return Ok(());
            }
        }
        Err(stale("an event was dropped that was within the limits"))
    }
}

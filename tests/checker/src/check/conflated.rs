//! The rules for a conflating stream once it is live.
//!
//! Its gaps count ahead of the survivors, so they have no place of their own: the checker compares how much is
//! settled, and which events survived.
//!
//! This module and [`walk`](super::walk) import each other on purpose. A walk owns the account of its conflating part,
//! and the rules here read the whole walk (log, position, index) beside that account; passing both in pieces would
//! hide that they are one state.

use tidegate_proto::v1::Overflow;

use super::walk::Walk;
use crate::{
    record::Delivered,
    violation::{Fault, Violation},
};

/// The account of a conflating stream since it is live.
#[derive(Debug, Default)]
pub(super) struct Conflated {
    /// The first live sequence.
    pub(super) begin: u64,
    /// Events delivered or counted.
    pub(super) settled: u64,
    /// Number of matching events from `begin` until before `scanned`.
    pub(super) matching: u64,
    pub(super) scanned: u64,
    /// The first live event, as an index into the stream's events.
    pub(super) first_event: usize,
    /// The ranges of sequences that were lost, not replaced.
    pub(super) lost: Vec<(u64, u64)>,
    /// The last sequence that a gap names.
    pub(super) counted_through: u64,
}

impl Walk<'_> {
    /// Checks a batch of survivors.
    pub(super) fn survivors(&mut self, events: &[Delivered], last: u64) -> Result<(), Violation> {
        for event in events {
            let next = self.context.successors[event.sequence as usize - 1];
            if next > 0 && next <= last {
                return Err(Violation::Freshness(Fault::new(
                    self.location(),
                    "an event came although a newer one of its topic and key had been published",
                    event.sequence,
                    next,
                )));
            }
        }
        if let Some(conflated) = &mut self.conflated {
            conflated.settled += events.len() as u64;
        }
        self.settled_to(last, "an event was replaced and not counted")?;
        self.next = Some(last + 1);
        Ok(())
    }

    /// Checks that at least the matching events up to `sequence` are delivered or counted.
    pub(super) fn settled_to(
        &mut self,
        sequence: u64,
        problem: &'static str,
    ) -> Result<(), Violation> {
        let matching = self.matching_since_live(sequence);
        let Some(conflated) = &mut self.conflated else {
            return Ok(());
        };
        if conflated.scanned <= sequence {
            (conflated.scanned, conflated.matching) = (sequence + 1, matching);
        }
        let settled = conflated.settled;
        if settled < matching {
            return Err(self.loss(problem, matching, settled));
        }
        Ok(())
    }

    /// Checks that no more is delivered or counted than the matching events up to `sequence`, if nothing that came goes
    /// beyond it.
    pub(super) fn no_more_settled_than(&self, sequence: u64) -> Result<(), Violation> {
        let Some(conflated) = &self.conflated else {
            return Ok(());
        };
        let matching = self.matching_since_live(sequence);
        if self.last.max(conflated.counted_through) <= sequence && conflated.settled > matching {
            let problem = "more is settled up to a position than matches";
            return Err(self.loss(problem, matching, conflated.settled));
        }
        Ok(())
    }

    pub(super) fn go_live(&mut self, first_event: usize) {
        if self.overflow == Overflow::Conflate {
            let begin = self.next.unwrap_or(1);
            self.conflated = Some(Conflated {
                begin,
                scanned: begin,
                first_event,
                ..Conflated::default()
            });
        }
    }

    /// Checks that every event that was not delivered has a newer one of its topic and key, or was lost with a gap.
    pub(super) fn newest_survived(&self) -> Result<(), Violation> {
        let Some(conflated) = &self.conflated else {
            return Ok(());
        };
        let mut delivered = self.stream.events[conflated.first_event..]
            .iter()
            .peekable();
        let end = self.next.unwrap_or(conflated.begin);
        for sequence in conflated.begin..end {
            if delivered
                .next_if(|event| event.sequence == sequence)
                .is_some()
                || !self.wants(sequence)
                || self.context.successors[sequence as usize - 1] > 0
                || conflated
                    .lost
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&sequence))
            {
                continue;
            }
            return Err(Violation::Freshness(Fault::new(
                self.location(),
                "the newest event of its topic and key never came",
                sequence,
                end - 1,
            )));
        }
        Ok(())
    }

    /// Checks, at the end of the stream, that exactly the matching events up to `sequence` are delivered or counted.
    pub(super) fn all_settled(&self, sequence: u64) -> Result<(), Violation> {
        let Some(conflated) = &self.conflated else {
            return Ok(());
        };
        let matching = self.matching_since_live(sequence);
        if conflated.settled != matching {
            let problem = "not as much is settled in the end as matches";
            return Err(self.loss(problem, matching, conflated.settled));
        }
        Ok(())
    }

    /// Counts the matching events from the first live sequence up to `last`.
    pub(super) fn matching_since_live(&self, last: u64) -> u64 {
        match &self.conflated {
            Some(conflated) if last + 1 < conflated.scanned => self.matching(conflated.begin, last),
            Some(conflated) => conflated.matching + self.matching(conflated.scanned, last),
            None => 0,
        }
    }
}

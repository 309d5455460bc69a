//! The events that were evicted for the memory budget, so that their gap has that reason.

use std::collections::VecDeque;

/// The most runs that are remembered; events of forgotten ones count as overflow. 64 runs are 2 KiB in a feed. There is
/// more than one only where a feed was over its own limits between two evictions.
const MAX_RUNS: usize = 64;

/// Runs of events of a feed, by number, that were evicted for the memory budget.
#[derive(Debug, Default)]
pub(crate) struct Evicted {
    /// Oldest first, none touching the next.
    runs: VecDeque<Run>,
}

/// Events evicted together.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// The number of the first.
    from: u64,
    /// The number after the last.
    to: u64,
    /// The sequence of the first.
    first_sequence: u64,
    /// The sequence of the last.
    last_sequence: u64,
}

/// How many events were evicted, between which numbers, and between which sequences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EvictedWithin {
    /// How many.
    pub(crate) count: u64,
    /// The number of the first.
    pub(crate) from: u64,
    /// The number after the last.
    pub(crate) to: u64,
    /// A lower bound of their sequences: that of the first run, which may begin before `from`.
    pub(crate) first: u64,
    /// An upper bound of their sequences: that of the last run, which may end behind `to`.
    pub(crate) last: u64,
}

impl Evicted {
    /// Notes that the events numbered `from` to before `to`, which have these sequences, were evicted. Later than all
    /// noted before.
    pub(crate) fn note(&mut self, from: u64, to: u64, first_sequence: u64, last_sequence: u64) {
        match self.runs.back_mut() {
            Some(run) if run.to == from => {
                run.to = to;
                run.last_sequence = last_sequence;
            }
            _ => {
                if self.runs.len() == MAX_RUNS {
                    self.runs.pop_front();
                }
                self.runs.push_back(Run {
                    from,
                    to,
                    first_sequence,
                    last_sequence,
                });
            }
        }
    }

    /// The evicted events among those numbered `from` to before `to`.
    pub(crate) fn within(&self, from: u64, to: u64) -> EvictedWithin {
        let mut within = EvictedWithin::default();
        for run in self
            .runs
            .iter()
            .filter(|run| run.from < to && from < run.to)
        {
            if within.count == 0 {
                within.from = run.from.max(from);
                within.first = run.first_sequence;
            }
            within.to = run.to.min(to);
            within.last = run.last_sequence;
            within.count += run.to.min(to) - run.from.max(from);
        }
        within
    }

    /// Forgets all runs: every cursor has passed them.
    pub(crate) fn clear(&mut self) {
        if !self.runs.is_empty() {
            self.runs = VecDeque::new();
        }
    }
}

impl EvictedWithin {
    /// Whether nothing in between was lost for another reason.
    pub(crate) const fn is_one_run(&self) -> bool {
        self.to - self.from == self.count
    }
}

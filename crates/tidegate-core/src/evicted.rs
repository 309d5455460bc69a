//! Which events the memory budget took, so that whoever missed them can be told that reason.

use std::collections::VecDeque;

/// The most runs that are remembered. What is forgotten counts as overflow.
const MAX_RUNS: usize = 64;

/// Runs of events of a feed, by number, that were evicted for the memory budget.
#[derive(Debug, Default)]
pub(crate) struct Evicted {
    runs: VecDeque<Run>,
}

/// Events evicted together.
#[derive(Debug, Clone, Copy)]
struct Run {
    from: u64,
    /// The number after the last.
    to: u64,
    first_sequence: u64,
    last_sequence: u64,
}

/// How many events were evicted, between which numbers, and between which sequences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EvictedWithin {
    pub(crate) count: u64,
    pub(crate) from: u64,
    /// The number after the last.
    pub(crate) to: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Evicted {
    /// Notes that the events numbered `from` to before `to`, which have these sequences, were evicted.
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

    /// What was evicted of the events numbered `from` to before `to`.
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

    /// Forgets all: every cursor has passed.
    pub(crate) fn clear(&mut self) {
        if !self.runs.is_empty() {
            self.runs = VecDeque::new();
        }
    }
}

impl EvictedWithin {
    /// Whether nothing in between was lost otherwise.
    pub(crate) const fn is_one_run(&self) -> bool {
        self.to - self.from == self.count
    }
}

//! Replay: giving a subscription what history has, exactly counted, and joining it to live.
//!
//! # Rounds
//! A replay goes in rounds. A round fixes the head of the hub, looks back once over the stretch of
//! history that it is about to read, and then reads it forward, at the subscriber's pace. When a round
//! is done and little has come since, that little is read under the publish lock and the cursors are
//! put at the end of their feeds in the same moment: nothing is missed or repeated at the seam. When
//! more has come, another round begins. So a replay is bounded by history alone, and the limits of the
//! subscription begin where live begins.
//!
//! # When history overtakes it
//! Events that history let go of before they were read are lost to the replay. How many is exact: the
//! look back wrote down how many matches there are from each of some places to the head, so what is
//! left can be counted, and the rest is lost. During the first round nothing was promised yet, so what
//! is gone then is [`GapReason::Expired`] (or, after a replay of the last so many, nothing).
//!
//! No step holds the lock of history for more than [`STRIDE`] entries.

use std::sync::Arc;

use crate::{
    event::{Event, Payload},
    filter::Filter,
    gap::GapReason,
    history::{History, WalkEnd},
    trie::Trie,
};

/// How many entries of history are looked at under one lock.
pub(crate) const STRIDE: usize = 256;

/// The reading of history by one subscription.
#[derive(Debug)]
pub(crate) struct Replay {
    /// What is wanted.
    filters: Trie<()>,
    /// Everything up to here was given or counted.
    after: u64,
    /// Where this round ends.
    head: u64,
    /// How many matches lie after `after` and up to `head`. In the first round known after the look back.
    remaining: u64,
    /// What the look back wrote down.
    ledger: Ledger,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Looking back over the first round, which began as asked.
    Opening(Opening),
    /// Looking back over a later round.
    LookingBack,
    /// Reading forward.
    Reading,
}

/// How a replay was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Opening {
    /// From a sequence of this epoch.
    After(u64),
    /// From a position of another epoch: all of history.
    OtherEpoch,
    /// The newest so many.
    Last(u64),
}

/// How many matches there are from some places in history to the head of the round.
#[derive(Debug)]
struct Ledger {
    /// Where the look back goes on: entries before this sequence.
    before: u64,
    /// Matches from there to the head.
    matches: u64,
    /// Sequence of an entry, and the matches from it to the head; sequences descend, at most
    /// [`STRIDE`] entries of history lie between two.
    marks: Vec<(u64, u64)>,
}

/// What one step of a replay came to.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing to give yet: go on.
    Continue,
    /// The look back over the first round is done; so many matches are to come, after `position`.
    Opened {
        matches: u64,
        position: u64,
        gap: Option<(GapReason, u64, u64)>,
    },
    /// So many events were lost, between these sequences and for this reason, and then some may have been
    /// given.
    Lost {
        reason: GapReason,
        count: u64,
        first: u64,
        last: u64,
    },
    /// The round is done.
    RoundDone,
}

impl Replay {
    pub(crate) fn new(
        opening: Opening,
        head: u64,
        wanted: impl IntoIterator<Item = Filter>,
    ) -> Self {
        let mut filters = Trie::new();
        wanted
            .into_iter()
            .for_each(|filter| filters.insert(&filter, ()));
        let after = if let Opening::After(sequence) = opening {
            sequence
        } else {
            0
        };
        let stage = Stage::Opening(opening);
        Self {
            filters,
            after,
            head,
            remaining: 0,
            ledger: Ledger::new(head),
            stage,
        }
    }

    /// How many events are still to come in this round, once that is known.
    pub(crate) const fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Begins another round, in which `matches` are to come.
    pub(crate) fn begin_round(&mut self, head: u64, matches: u64) {
        self.head = head;
        self.remaining = matches;
        self.ledger = Ledger::new(head);
        self.stage = Stage::LookingBack;
    }

    /// Does one bounded step. `take` is offered matching events in order and returns false to refuse
    /// one, which then is offered again by the next step.
    pub(crate) fn step<P: Payload>(
        &mut self,
        history: &History<P>,
        mut take: impl FnMut(&Arc<Event<P>>) -> bool,
    ) -> Step {
        match self.stage {
            Stage::Opening(opening) => self.open(history, opening),
            Stage::LookingBack => {
                if self.look_back(history, u64::MAX) {
                    self.stage = Stage::Reading;
                }
                Step::Continue
            }
            Stage::Reading => self.read(history, &mut take),
        }
    }

    /// Reads what came after the round, up to `head`, if `take` takes all of it and it is little.
    /// Returns whether it did; else nothing of what was taken counts.
    pub(crate) fn read_the_rest<P: Payload>(
        &self,
        history: &History<P>,
        head: u64,
        mut take: impl FnMut(&Arc<Event<P>>) -> bool,
    ) -> bool {
        let walk = history.forward(self.head, head, STRIDE, |event| {
            !matches(&self.filters, event) || take(event)
        });
        history.evicted_through() <= self.head && walk.end == WalkEnd::Done
    }

    fn open<P: Payload>(&mut self, history: &History<P>, opening: Opening) -> Step {
        let enough = if let Opening::Last(events) = opening {
            events
        } else {
            u64::MAX
        };
        if !self.look_back(history, enough) {
            return Step::Continue;
        }
        // Nothing before this is to be had, all after it is.
        let available_after = history.before_oldest(self.head).min(self.head);
        let incomplete = history.evicted_through() > self.after;
        let gap = match opening {
            Opening::OtherEpoch => Some((GapReason::EpochChanged, 0, available_after)),
            Opening::After(asked) if incomplete => {
                Some((GapReason::Expired, asked + 1, available_after))
            }
            Opening::After(_) | Opening::Last(_) => None,
        };
        self.after = match opening {
            Opening::Last(_) if self.ledger.matches == enough => self.ledger.before - 1,
            Opening::After(asked) if !incomplete => asked,
            _ => available_after,
        };
        self.remaining = self.ledger.matches;
        self.stage = Stage::Reading;
        Step::Opened {
            matches: self.remaining,
            position: self.after,
            gap,
        }
    }

    /// Looks back a stride further. Returns whether the look back is done: at the start of the round,
    /// at the oldest event of history, or at `enough` matches.
    fn look_back<P: Payload>(&mut self, history: &History<P>, enough: u64) -> bool {
        let Ledger {
            before,
            matches: counted,
            marks,
        } = &mut self.ledger;
        let walk = history.backward(*before, self.after, STRIDE, |event| {
            let more = *counted < enough;
            *counted += u64::from(more && matches(&self.filters, event));
            more
        });
        if let Some(last) = walk.last {
            *before = last;
            marks.push((last, *counted));
        }
        walk.end != WalkEnd::Most
    }

    fn read<P: Payload>(
        &mut self,
        history: &History<P>,
        take: &mut impl FnMut(&Arc<Event<P>>) -> bool,
    ) -> Step {
        let lost = self.settle_loss(history);
        let remaining = &mut self.remaining;
        let walk = history.forward(self.after, self.head, STRIDE, |event| {
            if !matches(&self.filters, event) {
                return true;
            }
            let taken = take(event);
            *remaining -= u64::from(taken);
            taken
        });
        self.after = match walk.end {
            WalkEnd::Done => self.head,
            WalkEnd::Most | WalkEnd::Refused => walk.last.unwrap_or(self.after),
        };
        match lost {
            Some(lost) => lost,
            None if walk.end == WalkEnd::Done => Step::RoundDone,
            None => Step::Continue,
        }
    }

    /// If history overtook the replay, goes on behind what is gone and says how much that was.
    fn settle_loss<P: Payload>(&mut self, history: &History<P>) -> Option<Step> {
        if history.evicted_through() <= self.after {
            return None;
        }
        let reason = if history.budget_took() > self.after {
            GapReason::Evicted
        } else {
            GapReason::Overflow
        };
        let first = self.after + 1;
        self.after = history.evicted_through().min(self.head);
        let left = self.matches_after(history, self.after);
        let count = self.remaining - left;
        self.remaining = left;
        (count > 0).then_some(Step::Lost {
            reason,
            count,
            first,
            last: self.after,
        })
    }

    /// How many matches history has after `sequence`, nothing of which is gone, and up to the head.
    fn matches_after<P: Payload>(&self, history: &History<P>, sequence: u64) -> u64 {
        let above = self
            .ledger
            .marks
            .partition_point(|(mark, _)| *mark > sequence);
        let (mark, mut count) = match above.checked_sub(1) {
            Some(nearest) => self.ledger.marks[nearest],
            None => (self.head + 1, 0),
        };
        history.forward(sequence, mark - 1, usize::MAX, |event| {
            count += u64::from(matches(&self.filters, event));
            true
        });
        count
    }
}

impl Ledger {
    const fn new(head: u64) -> Self {
        Self {
            before: head + 1,
            matches: 0,
            marks: Vec::new(),
        }
    }
}

fn matches<P>(filters: &Trie<()>, event: &Event<P>) -> bool {
    let mut found = false;
    filters.matching(event.topic().as_str(), &mut |()| found = true);
    found
}

//! Replay: giving a subscription the events of history, exactly counted, and joining it to live.
//!
//! # Rounds
//! A replay goes in rounds. A round fixes the head of the hub, looks back once over the stretch of
//! history that it is about to read, and then reads it forward, at the subscriber's pace. When a round
//! is done and little has come since, that little is read under the publish lock and the cursors are
//! put at the end of their feeds in the same moment: nothing is missed or repeated at the seam. When
//! more has come, another round begins. So only history bounds a replay, and the limits of the subscription
//! begin where live begins.
//!
//! # When history overtakes it
//! Events that history dropped before they were read are lost to the replay. How many is exact: at some
//! places the look back wrote down how many matches there are from there to the head, so the matches that
//! are left can be counted, and the rest is lost. During the look back over the first round nothing was
//! promised yet: events that are dropped before its end are [`GapReason::Expired`], or, for
//! [`Start::Last`](crate::Start::Last), nothing.
//!
//! # Locks
//! The lock of history is held while references to some entries are copied. They are matched after it, because
//! how long that takes is up to the filters.

use std::sync::Arc;

use crate::{
    event::{Event, Payload},
    feed::FeedKind,
    gap::GapReason,
    history::{History, WalkEnd},
    predicate::Predicate,
    sync::Mutex,
    trie::Trie,
};

/// How many entries of history are copied under one lock, and matched outside of it. 256 references are 2 KiB and as
/// many increments of a count, a few microseconds in which publishers wait. An estimate, not a measurement. Tests use
/// 2, so that every seam between strides is met.
const STRIDE: usize = if cfg!(test) { 2 } else { 256 };

/// How many entries may be read and matched under the publish lock, to join live. Less than a stride, because they are
/// matched there too, and all publishers wait. An estimate, not a measurement.
const JOIN_STRIDE: usize = if cfg!(test) { 2 } else { 64 };

/// The reading of history by one subscription.
#[derive(Debug)]
pub(crate) struct Replay<P> {
    /// The filters and the predicate of the subscription.
    wanted: Wanted<P>,
    /// Everything up to this sequence was given or counted.
    after: u64,
    /// The sequence at which this round ends.
    head: u64,
    /// How many matches lie after `after` and up to `head`. In the first round known after the look back.
    remaining: u64,
    /// The counts of the look back.
    ledger: Ledger,
    /// How far this round is.
    stage: Stage,
}

/// The start that a subscriber asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Opening {
    /// From a sequence of this epoch.
    After(u64),
    /// From a position of another epoch: all of history.
    OtherEpoch,
    /// With this many of the newest matches.
    Last(u64),
}

/// The result of one step of a replay.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing to give yet: go on.
    Continue,
    /// The look back over the first round is done.
    Opened {
        /// How many matches are to come.
        matches: u64,
        /// The sequence that they come after.
        position: u64,
        /// The gap before them, if something is missing: its reason, first and last sequence.
        gap: Option<(GapReason, u64, u64)>,
    },
    /// Events were lost, and then some may have been given.
    Lost {
        /// Why.
        reason: GapReason,
        /// How many.
        count: u64,
        /// None of them has a lower sequence.
        first: u64,
        /// None of them has a higher sequence.
        last: u64,
    },
    /// The round is done.
    RoundDone,
}

/// The stage of a round.
#[derive(Debug)]
enum Stage {
    /// Looking back over the first round, which began as asked.
    Opening(Opening),
    /// Looking back over a later round.
    LookingBack,
    /// Reading forward.
    Reading,
}

/// The events of history that belong to the subscription.
#[derive(Debug)]
struct Wanted<P> {
    /// All filters of its feeds, each with whether the predicate applies to it.
    filters: Trie<bool>,
    /// The predicate, if it has one.
    predicate: Option<Predicate<P>>,
}

/// The matches from some places in history to the head of the round.
#[derive(Debug)]
struct Ledger {
    /// The look back goes on with entries before this sequence.
    before: u64,
    /// Matches from there to the head.
    matches: u64,
    /// The sequence of an entry, and the matches from it to the head. Sequences descend, and at most
    /// [`STRIDE`] entries of history lie between two: that is what has to be matched anew to count from any place.
    marks: Vec<(u64, u64)>,
}

/// The state of history when it was found to have overtaken a replay.
struct Overtaken<P> {
    /// Everything up to this sequence is gone.
    gone_through: u64,
    /// Whether the memory budget evicted some of it.
    by_budget: bool,
    /// The entries from there to the nearest mark.
    to_mark: Vec<Arc<Event<P>>>,
}

// ===== impl Replay =====

impl<P: Payload> Replay<P> {
    /// A replay of the events that belong to `feeds`, up to `head`. The feeds that have a predicate have the same one.
    pub(crate) fn new<'a>(
        opening: Opening,
        head: u64,
        feeds: impl IntoIterator<Item = &'a FeedKind<P>>,
    ) -> Self
    where
        P: 'a,
    {
        let mut wanted = Wanted {
            filters: Trie::new(),
            predicate: None,
        };
        for FeedKind { filters, predicate } in feeds {
            for filter in filters.iter() {
                wanted.filters.insert(filter, predicate.is_some());
            }
            if predicate.is_some() {
                wanted.predicate.clone_from(predicate);
            }
        }
        let after = if let Opening::After(sequence) = opening {
            sequence
        } else {
            0
        };
        let stage = Stage::Opening(opening);
        Self {
            wanted,
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
    pub(crate) fn step(
        &mut self,
        history: &Mutex<History<P>>,
        take: impl FnMut(&Arc<Event<P>>) -> bool,
    ) -> Step {
        match self.stage {
            Stage::Opening(opening) => self.open(history, opening),
            Stage::LookingBack => {
                if self.look_back(history, u64::MAX) {
                    self.stage = Stage::Reading;
                }
                Step::Continue
            }
            Stage::Reading => self.read(history, take),
        }
    }

    /// Whether the look back over the first round is not done: nothing has been promised yet.
    pub(crate) const fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening(_))
    }

    /// Reads the entries after the round, up to `head`, if they are few and `take` takes all that match. Returns
    /// whether it did; if not, nothing that was taken counts.
    pub(crate) fn read_the_rest(
        &self,
        history: &History<P>,
        head: u64,
        mut take: impl FnMut(&Arc<Event<P>>) -> bool,
    ) -> bool {
        let walk = history.forward(self.head, head, JOIN_STRIDE, |event| {
            !self.wanted.matches(event) || take(event)
        });
        // Nothing after the round was dropped, and the walk came to the end.
        history.evicted_through() <= self.head && walk.end == WalkEnd::Done
    }

    /// Looks back over the first round; when that is done, decides where the replay begins.
    fn open(&mut self, history: &Mutex<History<P>>, opening: Opening) -> Step {
        let enough = if let Opening::Last(events) = opening {
            events
        } else {
            u64::MAX
        };
        if !self.look_back(history, enough) {
            return Step::Continue;
        }
        // Nothing has been promised yet, so history as it is at this moment decides. Under one lock: where the replay
        // begins, and the entries to count from there.
        let history = history.lock();
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
            Opening::Last(_) if self.ledger.matches == enough => {
                available_after.max(self.ledger.before - 1)
            }
            Opening::After(asked) if !incomplete => asked,
            _ => available_after,
        };
        let to_mark = self.stretch_to_mark(&history, self.after);
        drop(history);
        self.remaining = self.matches_after(&to_mark, self.after);
        self.stage = Stage::Reading;
        Step::Opened {
            matches: self.remaining,
            position: self.after,
            gap,
        }
    }

    /// Looks back a stride further. Returns whether the look back is done: at the start of the round, at
    /// the oldest event of history, or at `enough` matches.
    fn look_back(&mut self, history: &Mutex<History<P>>, enough: u64) -> bool {
        let mut stretch = Vec::with_capacity(STRIDE);
        let walk = history
            .lock()
            .backward(self.ledger.before, self.after, STRIDE, |event| {
                stretch.push(Arc::clone(event));
                true
            });
        for event in stretch {
            if self.ledger.matches == enough {
                break;
            }
            self.ledger.matches += u64::from(self.wanted.matches(&event));
            self.ledger.before = event.sequence();
        }
        self.ledger
            .marks
            .push((self.ledger.before, self.ledger.matches));
        walk.end != WalkEnd::MaxEntries || self.ledger.matches == enough
    }

    /// Reads a stride forward and offers its matches to `take`; first counts a loss, if history overtook the replay.
    fn read(
        &mut self,
        history: &Mutex<History<P>>,
        mut take: impl FnMut(&Arc<Event<P>>) -> bool,
    ) -> Step {
        let mut stretch = Vec::with_capacity(STRIDE);
        let (loss, end) = {
            let history = history.lock();
            let loss = self.overtaken(&history);
            let after = loss.as_ref().map_or(self.after, |loss| loss.gone_through);
            let walk = history.forward(after, self.head, STRIDE, |event| {
                stretch.push(Arc::clone(event));
                true
            });
            (loss, walk.end)
        };
        // Before the events of the stride: the gap stands before them, and `remaining` is right when they are taken.
        let lost = loss.and_then(|loss| self.settle(loss));
        let mut is_refused = false;
        for event in stretch {
            if self.wanted.matches(&event) {
                is_refused = !take(&event);
                if is_refused {
                    break;
                }
                self.remaining -= 1;
            }
            self.after = event.sequence();
        }
        let is_done = end == WalkEnd::Done && !is_refused;
        if is_done {
            self.after = self.head;
        }
        match lost {
            Some(lost) => lost,
            None if is_done => Step::RoundDone,
            None => Step::Continue,
        }
    }

    /// If history overtook the replay, the entries that are needed to count the loss.
    fn overtaken(&self, history: &History<P>) -> Option<Overtaken<P>> {
        if history.evicted_through() <= self.after {
            return None;
        }
        let gone_through = history.evicted_through().min(self.head);
        Some(Overtaken {
            gone_through,
            by_budget: history.evicted_for_budget() > self.after,
            to_mark: self.stretch_to_mark(history, gone_through),
        })
    }

    /// Goes on behind the events that are gone, and returns how many of them matched.
    fn settle(&mut self, overtaken: Overtaken<P>) -> Option<Step> {
        let Overtaken {
            gone_through: last,
            by_budget,
            to_mark,
        } = overtaken;
        let reason = if by_budget {
            GapReason::Evicted
        } else {
            GapReason::Overflow
        };
        let first = self.after + 1;
        // The matches that were to come, less those that are left. The ones that are gone need not be looked at.
        let left = self.matches_after(&to_mark, last);
        let count = self.remaining - left;
        (self.after, self.remaining) = (last, left);
        (count > 0).then_some(Step::Lost {
            reason,
            count,
            first,
            last,
        })
    }

    /// The nearest mark above `sequence`, and the matches from there to the head.
    fn mark_above(&self, sequence: u64) -> (u64, u64) {
        let above = self
            .ledger
            .marks
            .partition_point(|(mark, _)| *mark > sequence);
        above
            .checked_sub(1)
            .map_or((self.head + 1, 0), |nearest| self.ledger.marks[nearest])
    }

    /// The entries after `sequence` and before the nearest mark: a stride at most.
    fn stretch_to_mark(&self, history: &History<P>, sequence: u64) -> Vec<Arc<Event<P>>> {
        let (mark, _) = self.mark_above(sequence);
        let mut stretch = Vec::new();
        history.forward(sequence, mark - 1, usize::MAX, |event| {
            stretch.push(Arc::clone(event));
            true
        });
        stretch
    }

    /// How many matches there are after `sequence` and up to the head, given the entries up to the nearest
    /// mark: those are matched here, and the mark has the rest.
    fn matches_after(&self, to_mark: &[Arc<Event<P>>], sequence: u64) -> u64 {
        let (_, from_mark) = self.mark_above(sequence);
        to_mark
            .iter()
            .filter(|event| self.wanted.matches(event))
            .count() as u64
            + from_mark
    }
}

// ===== impl Wanted =====

impl<P: Payload> Wanted<P> {
    /// Whether `event` belongs to the subscription.
    // The events since the subscription began carry the answer of the predicate. Under the publish lock only those are
    // looked at, so none of its code runs there.
    fn matches(&self, event: &Event<P>) -> bool {
        let (mut found, mut is_conditional) = (false, false);
        self.filters
            .matching(event.topic().as_str(), &mut |conditional| {
                (found, is_conditional) = (true, *conditional);
            });
        found
            && (!is_conditional
                || self
                    .predicate
                    .as_ref()
                    .is_none_or(|predicate| predicate.accepts(event)))
    }
}

// ===== impl Ledger =====

impl Ledger {
    /// A ledger of a round up to `head`, before the look back.
    const fn new(head: u64) -> Self {
        Self {
            before: head + 1,
            matches: 0,
            marks: Vec::new(),
        }
    }
}

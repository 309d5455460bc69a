//! Replay: giving a subscription the events of history, exactly counted, and joining it to live.
//!
//! # Rounds
//! A replay goes in rounds. A round fixes the head of the hub, looks back once over the stretch of
//! history that it is about to read, and then reads it forward, at the subscriber's pace. When a round
//! is done and more has come since, another round begins. When little has come, it is the last: the cursors
//! are put at the end of their feeds in the moment that fixes its head, under the publish lock, so nothing is missed
//! or repeated at the seam, and live events gather in the feeds while the little is read. Only history bounds what
//! a replay reads, and the limits of the subscription begin at the head of the last round, where live begins.
//!
//! # When history overtakes it
//! Events that history dropped before they were read are lost to the replay. How many is exact: at some
//! places the look back wrote down how many matches there are from there to the head, so the matches that
//! are left can be counted, and the rest is lost. During the look back over the first round nothing was
//! promised yet: events that are dropped before its end are [`GapReason::Expired`], or, for
//! [`Start::Last`](crate::Start::Last), nothing.
//!
//! # Work
//! How long it takes to match an entry is up to the filters, and to the predicate. So every match is charged to the
//! [`Work`] of the poll, and each step ends when that is used up, wherever it is: in looking back, in reading, in
//! counting to a mark. The next poll goes on there. A step matches one entry in any case, so that all of it ends.
//!
//! # Locks
//! The lock of history is held while references to some entries are copied. They are matched after it. No predicate
//! runs under any lock.

use std::sync::Arc;

use crate::{
    event::{Event, Payload, Position},
    feed::FeedKind,
    gap::GapReason,
    history::{History, Stretch},
    predicate::Predicate,
    sync::Mutex,
    trie::Trie,
};

/// The most entries of history that are copied under one lock, and matched outside of it. 256 references are 2 KiB and
/// as many increments of a count, a few microseconds in which publishers wait. An estimate, not a measurement. Tests use
/// 4, so that every seam between strides is met.
const STRIDE: usize = if cfg!(test) { 4 } else { 256 };

/// How much work one poll of a replay does before it lets other tasks run. The unit is a place in the trie of the
/// filters, some 20 ns: 4,096 take 0.1 ms. One entry more than that may be matched, because an entry is matched whole.
pub(crate) const WORK_PER_POLL: u64 = if cfg!(test) { 6 } else { 4_096 };

/// The work that a run of a predicate counts for. It is code of the application, and how long it takes is not known:
/// reading some fields of a message takes about as long as 16 places in a trie. Chosen, not measured.
const PREDICATE_WORK: u64 = if cfg!(test) { 1 } else { 16 };

/// The most entries, and the most bytes if there is more than one, that may be left for the last round. Live events
/// gather in the feeds while they are read, within the limits of the subscription, so they should soon be. Chosen, not
/// measured.
pub(crate) const LAST_ROUND: (usize, u64) = (if cfg!(test) { 2 } else { 64 }, 64 << 10);

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
    /// The epoch of the sequences.
    epoch: u64,
    /// Whether live begins at the head of this round: the cursors stand there.
    is_last: bool,
    /// The work for one entry, on average over those that were matched last; at least 1.
    entry_work: u64,
}

/// The work of one poll: what it may do, and what it did.
#[derive(Debug)]
pub(crate) struct Work {
    /// How much it may do.
    most: u64,
    /// How much was done.
    done: u64,
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
    /// Nothing but events, if any: go on.
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
    Lost(Lost),
    /// The hub has begun another epoch, so the subscription has ended.
    EpochEnded,
    /// The round is done.
    RoundDone,
}

/// The losses before the events of a step, in this order.
#[derive(Debug)]
pub(crate) struct Lost {
    /// The first and last sequence of what the hub was never handed.
    pub(crate) backplane: Option<(u64, u64)>,
    /// The events that history has dropped: the reason, how many, and their bounds.
    pub(crate) dropped: Option<(GapReason, u64, u64, u64)>,
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
    /// The sequence after the head of the round.
    end: u64,
    /// The look back goes on with entries before this sequence.
    before: u64,
    /// Matches from there to the head.
    matches: u64,
    /// Whether the look back is done.
    is_complete: bool,
    /// The sequence of an entry, and the matches from it to the head. Sequences descend, and at most
    /// [`STRIDE`] entries of history lie between two: that is what has to be matched anew to count from any place.
    marks: Vec<(u64, u64)>,
    /// How many entries were looked at since the last mark.
    since_mark: usize,
    /// The entries before one of the marks, matched anew.
    fine: Fine,
}

/// The matches right before a mark, one by one. Kept while counting takes several polls.
#[derive(Debug, Default)]
struct Fine {
    /// The mark; 0 if there is none yet.
    mark: u64,
    /// Counting goes on with entries before this sequence.
    before: u64,
    /// The sequences of the matches from there to the mark, at most [`STRIDE`].
    matches: Vec<u64>,
}

/// The state of history when it was found to have overtaken a replay.
#[derive(Debug, Clone, Copy)]
struct Overtaken {
    /// Everything up to this sequence is gone.
    gone_through: u64,
    /// Whether the memory budget evicted some of it.
    by_budget: bool,
    /// The range in between that the hub was never handed: its first and last sequence.
    lost: Option<(u64, u64)>,
}

// ===== impl Replay =====

impl<P: Payload> Replay<P> {
    /// A replay of the events that belong to `feeds`, up to `head`. The feeds that have a predicate have the same one.
    pub(crate) fn new<'a>(
        opening: Opening,
        Position {
            epoch,
            sequence: head,
        }: Position,
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
        Self {
            wanted,
            after,
            head,
            remaining: 0,
            ledger: Ledger::new(head),
            stage: Stage::Opening(opening),
            epoch,
            is_last: false,
            entry_work: 1,
        }
    }

    /// How many events are still to come in this round, once that is known.
    pub(crate) const fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The sequence at which this round ends.
    pub(crate) const fn head(&self) -> u64 {
        self.head
    }

    /// Whether this round is the last.
    pub(crate) const fn is_last(&self) -> bool {
        self.is_last
    }

    /// Whether the look back over the first round is not done: nothing has been promised yet.
    pub(crate) const fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening(_))
    }

    /// Begins another round, in which `matches` are to come. If it `is_last`, the cursors stand at its head.
    pub(crate) fn begin_round(&mut self, head: u64, matches: u64, is_last: bool) {
        self.head = head;
        self.remaining = matches;
        self.ledger = Ledger::new(head);
        self.stage = Stage::LookingBack;
        self.is_last = is_last;
    }

    /// Does one step, within a stride and as far as there is `work` left. `take` is offered matching events in order
    /// and returns false to refuse one, which then is offered again by the next step.
    pub(crate) fn step(
        &mut self,
        history: &Mutex<History<P>>,
        work: &mut Work,
        take: impl FnMut(&Arc<Event<P>>) -> bool,
    ) -> Step {
        // The step itself, its lock and its searches.
        work.add(1);
        match self.stage {
            Stage::Opening(opening) => self.open(history, work, opening),
            Stage::LookingBack => {
                if self.look_back(history, work, u64::MAX) {
                    self.stage = Stage::Reading;
                }
                Step::Continue
            }
            // The rest of the round need not be looked at. A predicate that changes its mind may bring this about too
            // early, and the loss is its own.
            Stage::Reading if self.remaining == 0 => {
                let history = history.lock();
                if history.epoch() != self.epoch {
                    return Step::EpochEnded;
                }
                let lost = history.lost_after(self.after, self.head, false);
                drop(history);
                self.after = lost.map_or(self.head, |(_, last)| last.min(self.head));
                lost.map_or(Step::RoundDone, |lost| self.never_handed(lost))
            }
            Stage::Reading => self.read(history, work, take),
        }
    }

    /// A loss of what the hub was never handed. A range that reaches beyond the round, because it has become one with a
    /// later one, is told with the next round as well.
    fn never_handed(&self, (first, last): (u64, u64)) -> Step {
        Step::Lost(Lost {
            backplane: Some((first, last.min(self.head))),
            dropped: None,
        })
    }

    /// How many entries to copy for the work that is left.
    fn stride(&self, work: &Work) -> usize {
        // Tests always copy too many, so that stretches are cut wherever work can end.
        let entry_work = if cfg!(test) { 1 } else { self.entry_work };
        let affordable = usize::try_from(work.left() / entry_work).unwrap_or(usize::MAX);
        affordable.clamp(1, STRIDE)
    }

    /// Looks back over the first round; when that is done, decides where the replay begins.
    fn open(&mut self, history: &Mutex<History<P>>, work: &mut Work, opening: Opening) -> Step {
        let enough = if let Opening::Last(events) = opening {
            events
        } else {
            u64::MAX
        };
        if !self.ledger.is_complete && !self.look_back(history, work, enough) {
            return Step::Continue;
        }
        // Nothing has been promised yet, so history as it is at this moment decides. Under one lock: where the replay
        // begins, and the entries to count from there. If those are too many for this poll, the next decides anew.
        let stride = self.stride(work);
        let (after, gap, to_count) = {
            let history = history.lock();
            if history.epoch() != self.epoch {
                return Step::EpochEnded;
            }
            let (after, gap) = self.beginning(&history, opening, enough);
            (after, gap, self.ledger.uncounted(&history, after, stride))
        };
        if !self.count(to_count, work) {
            return Step::Continue;
        }
        self.after = after;
        self.remaining = self.ledger.matches_after(after);
        self.stage = Stage::Reading;
        Step::Opened {
            matches: self.remaining,
            position: after,
            gap,
        }
    }

    /// The sequence after which the replay begins, given that `history` stays as it is, and the gap before it.
    fn beginning(
        &self,
        history: &History<P>,
        opening: Opening,
        enough: u64,
    ) -> (u64, Option<(GapReason, u64, u64)>) {
        let available_after = history.before_oldest(self.head).min(self.head);
        let incomplete = history.evicted_through() > self.after;
        let gap = match opening {
            Opening::OtherEpoch => Some((GapReason::EpochChanged, 0, available_after)),
            Opening::After(asked) if incomplete => {
                Some((GapReason::Expired, asked + 1, available_after))
            }
            Opening::After(_) | Opening::Last(_) => None,
        };
        let after = match opening {
            Opening::Last(_) if self.ledger.matches == enough => {
                available_after.max(self.ledger.before - 1)
            }
            Opening::After(asked) if !incomplete => asked,
            _ => available_after,
        };
        (after, gap)
    }

    /// Looks back further. Returns whether the look back is done: at the start of the round, at the oldest event of
    /// history, or at `enough` matches.
    fn look_back(&mut self, history: &Mutex<History<P>>, work: &mut Work, enough: u64) -> bool {
        let stride = self.stride(work);
        let stretch = {
            let history = history.lock();
            // Of another epoch: the next step says so.
            if history.epoch() != self.epoch {
                return true;
            }
            history.backward(self.ledger.before, self.after, stride)
        };
        let (mut looked_at, begun) = (0, work.done);
        let total = stretch.events.len();
        for event in stretch.events {
            if self.ledger.matches == enough {
                break;
            }
            let is_match = self.wanted.matches(&event, work);
            self.ledger.count(event.sequence(), is_match);
            looked_at += 1;
            if work.is_used_up() {
                break;
            }
        }
        self.note_work(looked_at, work.done - begun);
        let is_done = stretch.is_all && looked_at == total;
        self.ledger.is_complete = is_done || self.ledger.matches == enough;
        if self.ledger.is_complete {
            self.ledger.mark();
        }
        self.ledger.is_complete
    }

    /// Reads forward and offers the matches to `take`; first counts a loss, if history overtook the replay.
    fn read(
        &mut self,
        history: &Mutex<History<P>>,
        work: &mut Work,
        mut take: impl FnMut(&Arc<Event<P>>) -> bool,
    ) -> Step {
        let stride = self.stride(work);
        let (overtaken, lost_next, stretch) = {
            let history = history.lock();
            if history.epoch() != self.epoch {
                return Step::EpochEnded;
            }
            let overtaken = self.overtaken(&history);
            let to_count = overtaken.map(|overtaken| {
                let gone = overtaken.gone_through;
                (overtaken, self.ledger.uncounted(&history, gone, stride))
            });
            // In the same moment as the last entries to count: if history went on in between, each step could find
            // itself overtaken once more and never give an event.
            let after = overtaken.map_or(self.after, |overtaken| overtaken.gone_through);
            // What lies before the next range that was never handed over; then the range is told; then the rest.
            let lost_next = history.lost_after(after, self.head, false);
            let up_to = lost_next.map_or(self.head, |(first, _)| first - 1);
            (to_count, lost_next, history.forward(after, up_to, stride))
        };
        if let Some(lost) = lost_next
            && overtaken.is_none()
            && stretch.events.is_empty()
        {
            self.after = lost.1.min(self.head);
            return self.never_handed(lost);
        }
        let mut lost = None;
        // Before the events of the stretch: the gap stands before them, and `remaining` is right when they are taken.
        if let Some((overtaken, to_count)) = overtaken {
            if !self.count(to_count, work) {
                return Step::Continue;
            }
            lost = self.settle(overtaken);
        }
        let (mut looked_at, begun) = (0, work.done);
        let total = stretch.events.len();
        for event in stretch.events {
            if self.wanted.matches(&event, work) {
                if !take(&event) {
                    break;
                }
                // Saturating, for a predicate that changes its mind.
                self.remaining = self.remaining.saturating_sub(1);
            }
            self.after = event.sequence();
            looked_at += 1;
            if work.is_used_up() {
                break;
            }
        }
        self.note_work(looked_at, work.done - begun);
        let is_done = stretch.is_all && looked_at == total && lost_next.is_none();
        if is_done {
            (self.after, self.remaining) = (self.head, 0);
        }
        match lost {
            Some(lost) => Step::Lost(lost),
            None if is_done => Step::RoundDone,
            None => Step::Continue,
        }
    }

    /// Whether history overtook the replay, and how far.
    fn overtaken(&self, history: &History<P>) -> Option<Overtaken> {
        (history.evicted_through() > self.after).then(|| {
            let evicted_through = history.evicted_through();
            // A range that begins before the last of what is gone may end behind it, where two have become one.
            let lost = history.lost_after(self.after, evicted_through.min(self.head), true);
            let through = lost.map_or(0, |(_, last)| last).max(evicted_through);
            Overtaken {
                gone_through: through.min(self.head),
                by_budget: history.evicted_for_budget() > self.after,
                lost: lost.map(|(first, last)| (first, last.min(self.head))),
            }
        })
    }

    /// Goes on behind the events that are gone, and returns how many of them matched. What is left was counted.
    fn settle(&mut self, overtaken: Overtaken) -> Option<Lost> {
        let Overtaken {
            gone_through: last,
            by_budget,
            lost,
        } = overtaken;
        let reason = if by_budget {
            GapReason::Evicted
        } else {
            GapReason::Overflow
        };
        let first = self.after + 1;
        // The matches that were to come, less those that are left. The ones that are gone need not be looked at. There
        // are never more left, unless a predicate changes its mind.
        let left = self.ledger.matches_after(last).min(self.remaining);
        let count = self.remaining - left;
        (self.after, self.remaining) = (last, left);
        // How many of them lay before a range that was never handed over is not known any more. So that begins where
        // they begin: whoever breaks off between the two is told of all up to there.
        let backplane = lost.map(|(begin, end)| (if count > 0 { first } else { begin }, end));
        let dropped = (count > 0).then_some((reason, count, first, last));
        (backplane.is_some() || dropped.is_some()).then_some(Lost { backplane, dropped })
    }

    /// Counts the matches of `stretch` in the ledger, as far as there is work. Returns whether all are counted.
    fn count(&mut self, stretch: Stretch<P>, work: &mut Work) -> bool {
        let (mut looked_at, begun) = (0, work.done);
        let total = stretch.events.len();
        for event in stretch.events {
            let is_match = self.wanted.matches(&event, work);
            self.ledger.fine.count(event.sequence(), is_match);
            looked_at += 1;
            if work.is_used_up() {
                break;
            }
        }
        self.note_work(looked_at, work.done - begun);
        stretch.is_all && looked_at == total
    }

    /// Notes the `work` that matching some `entries` took.
    fn note_work(&mut self, entries: usize, work: u64) {
        if entries > 0 {
            self.entry_work = (work / entries as u64).max(1);
        }
    }
}

// ===== impl Work =====

impl Work {
    /// The work of one poll.
    pub(crate) const fn of_a_poll() -> Self {
        Self {
            most: WORK_PER_POLL,
            done: 0,
        }
    }

    /// How much was done.
    pub(crate) const fn done(&self) -> u64 {
        self.done
    }

    /// Whether all of it was done, or more.
    pub(crate) const fn is_used_up(&self) -> bool {
        self.done >= self.most
    }

    /// How much may still be done.
    const fn left(&self) -> u64 {
        self.most.saturating_sub(self.done)
    }

    /// Adds work that was done.
    const fn add(&mut self, work: u64) {
        self.done += work;
    }
}

// ===== impl Wanted =====

impl<P: Payload> Wanted<P> {
    /// Whether `event` belongs to the subscription. Adds what it took to `work`. Not under a lock: the predicate is
    /// code of the application.
    fn matches(&self, event: &Event<P>, work: &mut Work) -> bool {
        let (mut found, mut is_conditional) = (false, false);
        let visited = self
            .filters
            .matching(event.topic().as_str(), &mut |conditional| {
                (found, is_conditional) = (true, *conditional);
            });
        work.add(visited);
        let predicate = self.predicate.as_ref().filter(|_| found && is_conditional);
        predicate.map_or(found, |predicate| {
            work.add(PREDICATE_WORK);
            predicate.accepts(event)
        })
    }
}

// ===== impl Ledger =====

impl Ledger {
    /// A ledger of a round up to `head`, before the look back.
    fn new(head: u64) -> Self {
        Self {
            end: head + 1,
            before: head + 1,
            matches: 0,
            is_complete: false,
            marks: Vec::new(),
            since_mark: 0,
            fine: Fine::default(),
        }
    }

    /// Counts the next entry of the look back.
    fn count(&mut self, sequence: u64, is_match: bool) {
        self.matches += u64::from(is_match);
        self.before = sequence;
        self.since_mark += 1;
        if self.since_mark == STRIDE {
            self.mark();
        }
    }

    /// Makes a mark at the entry that was looked at last.
    fn mark(&mut self) {
        self.marks.push((self.before, self.matches));
        self.since_mark = 0;
    }

    /// The nearest mark above `sequence`, and the matches from there to the head.
    fn mark_above(&self, sequence: u64) -> (u64, u64) {
        let above = self.marks.partition_point(|(mark, _)| *mark > sequence);
        above
            .checked_sub(1)
            .map_or((self.end, 0), |nearest| self.marks[nearest])
    }

    /// The next entries to be counted, at most `max_entries`, so that [`matches_after`](Self::matches_after) knows
    /// the matches after `sequence`.
    fn uncounted<P: Payload>(
        &mut self,
        history: &History<P>,
        sequence: u64,
        max_entries: usize,
    ) -> Stretch<P> {
        let (mark, _) = self.mark_above(sequence);
        if self.fine.mark != mark {
            self.fine = Fine {
                mark,
                before: mark,
                matches: Vec::new(),
            };
        }
        history.backward(self.fine.before, sequence, max_entries)
    }

    /// How many matches there are after `sequence` and up to the head. Everything from there to the nearest mark was
    /// counted.
    fn matches_after(&self, sequence: u64) -> u64 {
        let (_, from_mark) = self.mark_above(sequence);
        let before_mark = self.fine.matches.iter();
        before_mark.filter(|match_| **match_ > sequence).count() as u64 + from_mark
    }
}

impl Fine {
    /// Counts the next entry before the mark.
    fn count(&mut self, sequence: u64, is_match: bool) {
        self.before = sequence;
        if is_match {
            self.matches.push(sequence);
        }
    }
}

//! Live: taking events from the ready feeds.
//!
//! With one ready feed, everything happens under that feed's lock. With several, each is looked at in turn, so
//! publishers may append and evict in between; where that matters, the poll goes on under the publish lock.
//!
//! # The prefix rule
//! If a feed evicted events before the subscription saw them, everything up to the last of these is lost in
//! all its feeds. Otherwise an older event of another feed would follow the gap.

use std::{cmp::Reverse, mem, sync::Arc};

use super::{Batch, CursorState, EventRange, Room, Subscription, losses::Losses, room::Filling};
use crate::{
    backlog::Backlog,
    bisect::first_without,
    close::CloseReason,
    counters::add,
    event::Payload,
    feed::{Ahead, ParkKey},
    freed::Freed,
    limits::Overflow,
};

/// The backlog of a subscription, summed over its ready feeds.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Events that the feeds still keep for it.
    events: u64,
    /// Their bytes.
    bytes: u64,
    /// The highest sequence that any feed evicted before it was seen; 0 if none did.
    pub(super) evicted_through: u64,
}

/// The ready feed to take from next, which [`Subscription::pop_run`] took off the heap. Whoever pops it puts it
/// back, or lets the cursor park.
pub(super) struct Run {
    /// The sequence of the first event there.
    pub(super) head: u64,
    /// The number of the cursor in it.
    pub(super) cursor: u32,
    /// Events up to this sequence are next: the other feeds have nothing before it.
    pub(super) up_to: u64,
}

/// The reason why a run over the ready feeds ended.
pub(super) enum RunEnd {
    /// The room is full, or nothing up to the watermark is left.
    Done,
    /// A feed has evicted events that the subscription had still to see, and nothing was taken yet.
    Overtaken,
}

impl RunEnd {
    /// The end of a run at a feed that has evicted events ahead of the cursor. If something was taken, that is
    /// handed out first: it is complete, and the next poll settles the loss.
    pub(super) const fn overtaken<P>(filling: &Filling<'_, P>) -> Self {
        if filling.events.is_empty() {
            Self::Overtaken
        } else {
            Self::Done
        }
    }
}

impl<P: Payload> Subscription<P> {
    /// Takes ready events up to `watermark` into `batch`, as far as there is room, with the gaps before them. Returns
    /// whether it has any.
    ///
    /// The limits hold for all that is committed, also for what the room leaves for later: what is handed out would
    /// depend on the limits of others otherwise, for a feed keeps what the largest among them admit. Those of a
    /// subscription that conflates hold for the survivors that the room lets through.
    pub(super) fn take_live(
        &mut self,
        watermark: u64,
        room: Room,
        kept: Option<&EventRange>,
        batch: &mut Batch<P>,
    ) -> Result<bool, CloseReason> {
        match self.ready.peek() {
            Some(Reverse((head, _))) if *head <= watermark.min(room.up_to) => {}
            _ => return Ok(false),
        }
        let mut filling = Filling {
            room,
            bytes: 0,
            events: &mut batch.events,
            freed: Freed::new(),
        };
        let losses = match self.parts.limits.overflow {
            Overflow::Conflate => self.take_conflated(watermark.min(room.up_to), &mut filling),
            _ if self.ready.len() == 1 => {
                self.take_from_one(watermark, kept, &mut filling, &mut batch.range)
            }
            _ => self.take_merged(watermark, &mut filling),
        };
        filling.freed.clear();
        if self.parts.limits.overflow == Overflow::Disconnect && losses.overflow.count > 0 {
            // The caller clears the batch, so nothing of this poll is seen: all of it is abandoned, and stays to be
            // resumed.
            let passed = losses.overflow.count + losses.evicted.count + batch.count();
            self.behind_when_ended = passed + self.backlog();
            add(&self.shared.counters.abandoned, passed);
            return Err(CloseReason::TooSlow);
        }
        // Then no event of this batch comes before the range, for those that did are lost as well.
        let lost = self.lost_up_to(losses.last());
        losses.into_gaps(lost, &mut batch.gaps);
        Ok(!batch.is_empty())
    }

    /// The common case: one feed has something. Its own lock is enough, because no other feed has anything up to
    /// the watermark to lose or to give first.
    ///
    /// Notes in `range` what is taken, and takes no reference to it if that is the range that was kept.
    fn take_from_one(
        &mut self,
        watermark: u64,
        kept: Option<&EventRange>,
        filling: &mut Filling<'_, P>,
        range: &mut Option<EventRange>,
    ) -> Losses {
        let Some(&Reverse((head, i))) = self.ready.peek() else {
            return Losses::default();
        };
        let cursor = &mut self.cursors[i as usize];
        let mut feed = cursor.feed.lock();
        if feed.has_overtaken(cursor.next) && feed.removed_sequence() > watermark {
            // The loss reaches beyond the watermark, where other feeds may have appended too: by the prefix rule
            // they must lose it as well.
            drop(feed);
            return self.take_merged(watermark, filling);
        }
        self.ready.pop();
        let end = feed.number_after(watermark);
        let start = feed.first_that_fits(cursor.next, end, &self.parts.limits);
        let mut losses = Losses::default();
        // From `next` and not from the front: events that are evicted already count as well.
        losses.skip(&feed, cursor.next, start, head);
        let end = feed.number_after(watermark.min(filling.room.up_to));
        let to = feed.number_that_fits(start, end.max(start), &filling.room);
        if to > start && start == cursor.next {
            *range = Some(EventRange {
                feed: cursor.feed.id(),
                first: start,
                count: to - start,
                last_sequence: feed.sequence_before(to),
            });
        }
        if kept.is_none() || range.as_ref() != kept {
            // References are cloned under the lock; no event is copied.
            filling.events.extend(feed.events(start, to).cloned());
        }
        let moved = feed.advance(cursor.next, to, &self.parts.signal, i, &mut filling.freed);
        if feed.has_unwanted() {
            filling.freed.crowded(Arc::clone(&cursor.feed) as _);
        }
        self.standing.put(i as usize, to);
        drop(feed);
        cursor.next = to;
        self.note_moved(i, moved);
        losses
    }

    /// Several feeds have something: they are merged by sequence.
    ///
    /// Where nothing is lost, which is the rule, no lock but the feeds' own is taken. Where something is, the
    /// poll ends under the publish lock: a publisher that is always faster could otherwise evict between any
    /// two looks, and turn every poll into a gap and nothing else.
    fn take_merged(&mut self, watermark: u64, filling: &mut Filling<'_, P>) -> Losses {
        // The look and the run see the feeds at different moments. `None` says that nothing was lost at the
        // look; if a feed evicts before the run has taken anything, the run says so, and only what is evicted
        // goes (floor 0). Events appended meanwhile are above the watermark and wait.
        let up_to = filling.room.up_to;
        let floor = match self.overflow_floor(watermark) {
            None if matches!(self.run(up_to.min(watermark), filling), RunEnd::Done) => {
                return Losses::default();
            }
            floor => floor.unwrap_or(0),
        };
        // Without the publish lock, because most of what goes is freed here, and freeing must not hold up
        // publishers.
        let mut losses = Losses::default();
        self.skip_through(floor, &mut losses, &mut filling.freed);
        // The losses of all feeds are settled against one another: no publisher may evict meanwhile.
        let shared = Arc::clone(&self.shared);
        let state = shared.publish.lock();
        // Nobody may lose any either: what was lost since the poll began holds this run back too.
        let Some(barrier) = self.barrier() else {
            return losses;
        };
        // In this order: feeds that became ready since the poll began are part of the prefix too, and the head
        // is the watermark, for under this lock all that was appended is complete.
        self.absorb_while_locked(&state);
        let evicted_through = self.survey(0, state.head).evicted_through;
        // Behind the last loss of any feed: the gap stands before all events of this batch.
        let floor = evicted_through.max(losses.last());
        self.skip_through(floor, &mut losses, &mut filling.freed);
        // Nothing is evicted under this lock, so this run is never overtaken: the poll gives events, too.
        self.run(up_to.min(state.head).min(barrier), filling);
        losses
    }

    /// The sequence up to which everything has to go, so that the rest, up to `watermark`, is complete and
    /// within the limits; `None` if all of it is.
    pub(super) fn overflow_floor(&self, watermark: u64) -> Option<u64> {
        let limits = &self.parts.limits;
        let all = self.survey(0, watermark);
        if limits.fits(all.events, all.bytes) {
            return (all.evicted_through > 0).then_some(all.evicted_through);
        }
        // The lowest floor whose rest fits, by bisection over sequences: the rest above `too_low` does not fit,
        // that above `high_enough` does. Everything is above what was settled before. The newest event always fits,
        // so just below the watermark is high enough. There are at most 64 looks, and each costs a search in each
        // ready feed.
        let lowest = self.ready.peek().map_or(0, |Reverse((head, _))| head - 1);
        Some(first_without(lowest, watermark - 1, |floor| {
            let rest = self.survey(floor, watermark);
            !limits.fits(rest.events, rest.bytes)
        }))
    }

    /// Counts the events, or survivors, that the ready feeds keep for this subscription after `floor` and up to
    /// `watermark`, and finds the last one that they evicted before it was seen.
    pub(super) fn survey(&self, floor: u64, watermark: u64) -> Survey {
        let mut survey = Survey::default();
        let conflates = self.parts.limits.overflow == Overflow::Conflate;
        for Reverse((_, i)) in &self.ready {
            let cursor = &self.cursors[*i as usize];
            let feed = cursor.feed.lock();
            let (Backlog { events, bytes }, evicted_through) = if conflates {
                let latest = feed.latest();
                let backlog = latest.backlog(cursor.next, floor, watermark);
                (backlog, latest.evicted_before(cursor.next))
            } else {
                // `number_after` is at least the front, so evicted events do not count here.
                let from = cursor.next.max(feed.number_after(floor));
                let backlog = feed.backlog(from, feed.number_after(watermark).max(from));
                (backlog, feed.evicted_before(cursor.next))
            };
            survey.events += events;
            survey.bytes += bytes;
            survey.evicted_through = survey.evicted_through.max(evicted_through.unwrap_or(0));
        }
        survey
    }

    /// Moves all ready cursors behind the sequence `floor`, and behind the events that their feeds have evicted.
    pub(super) fn skip_through(&mut self, floor: u64, losses: &mut Losses, freed: &mut Freed<P>) {
        // The heap is rebuilt: `note_moved` puts each cursor back with its new head, unless it has parked.
        for Reverse((head, i)) in mem::take(&mut self.ready) {
            let cursor = &mut self.cursors[i as usize];
            let mut feed = cursor.feed.lock();
            let to = cursor.next.max(feed.number_after(floor));
            losses.skip(&feed, cursor.next, to, head);
            let moved = feed.advance(cursor.next, to, &self.parts.signal, i, freed);
            if feed.has_unwanted() {
                freed.crowded(Arc::clone(&cursor.feed) as _);
            }
            self.standing.put(i as usize, to);
            drop(feed);
            cursor.next = to;
            self.note_moved(i, moved);
        }
    }

    /// Moves all cursors but the client's own behind `sequence`, except past losses that reach beyond it. Returns
    /// how many events that skips.
    pub(super) fn leave_out_through(&mut self, sequence: u64) -> u64 {
        let shared = Arc::clone(&self.shared);
        let mut freed = Freed::new();
        // Nothing is committed or evicted meanwhile: all feeds are skipped to the same place.
        let state = shared.publish.lock();
        if state.epoch != self.epoch {
            return 0;
        }
        self.absorb_while_locked(&state);
        let own = self.cursors.len() - 1;
        let mut skipped = 0;
        for Reverse((head, i)) in mem::take(&mut self.ready) {
            let cursor = &mut self.cursors[i as usize];
            let mut feed = cursor.feed.lock();
            let is_lost_beyond =
                feed.has_overtaken(cursor.next) && feed.removed_sequence() > sequence;
            if i as usize == own || is_lost_beyond {
                self.ready.push(Reverse((head, i)));
                continue;
            }
            let to = cursor.next.max(feed.number_after(sequence));
            skipped += to - cursor.next;
            let moved = feed.advance(cursor.next, to, &self.parts.signal, i, &mut freed);
            if feed.has_unwanted() {
                freed.crowded(Arc::clone(&cursor.feed) as _);
            }
            self.standing.put(i as usize, to);
            drop(feed);
            cursor.next = to;
            self.note_moved(i, moved);
        }
        drop(state);
        freed.clear();
        skipped
    }

    /// Takes events from the ready feeds, lowest sequence first, a run of one feed at a time.
    fn run(&mut self, watermark: u64, filling: &mut Filling<'_, P>) -> RunEnd {
        loop {
            let Some(Run {
                head,
                cursor: i,
                up_to,
            }) = self.pop_run(watermark)
            else {
                return RunEnd::Done;
            };
            let cursor = &mut self.cursors[i as usize];
            let mut feed = cursor.feed.lock();
            if feed.has_overtaken(cursor.next) {
                // Under its old head: where the loss begins is known only there.
                drop(feed);
                self.ready.push(Reverse((head, i)));
                return RunEnd::overtaken(filling);
            }
            let end = feed.number_after(up_to);
            // References are cloned under the lock; no event is copied.
            let taken = feed
                .events(cursor.next, end)
                .take_while(|event| filling.take(event))
                .count();
            let to = cursor.next + taken as u64;
            let moved = feed.advance(cursor.next, to, &self.parts.signal, i, &mut filling.freed);
            if feed.has_unwanted() {
                filling.freed.crowded(Arc::clone(&cursor.feed) as _);
            }
            self.standing.put(i as usize, to);
            drop(feed);
            cursor.next = to;
            self.note_moved(i, moved);
            // The room is full. Another feed must not go on: its events come after the ones left here.
            if to < end {
                return RunEnd::Done;
            }
        }
    }

    /// Takes the ready feed with the lowest head off the heap, if that head is not above `watermark`.
    pub(super) fn pop_run(&mut self, watermark: u64) -> Option<Run> {
        let Reverse((head, cursor)) = *self.ready.peek()?;
        if head > watermark {
            return None;
        }
        self.ready.pop();
        let next_head = self
            .ready
            .peek()
            .map_or(u64::MAX, |Reverse((head, _))| *head);
        // Each event is in one feed of a subscription, so no two heads are equal and `up_to` is not below `head`.
        Some(Run {
            head,
            cursor,
            up_to: watermark.min(next_head - 1),
        })
    }

    /// Notes the state of a cursor after it has moved, and makes it ready if an event is there.
    pub(super) fn note_moved(&mut self, i: u32, (ahead, parked): (Ahead, Option<ParkKey>)) {
        self.cursors[i as usize].state = parked.map_or(CursorState::Ready, CursorState::Parked);
        if let Ahead::Event(head) = ahead {
            self.ready.push(Reverse((head, i)));
        }
    }
}

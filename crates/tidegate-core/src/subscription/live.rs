//! Live: taking what is ready from the feeds.

use std::{cmp::Reverse, mem, sync::Arc};

use super::{Batch, CursorState, Room, Subscription, losses::Losses, room::Filling};
use crate::{
    close::CloseReason,
    counters::add,
    event::Payload,
    feed::{Ahead, Backlog, ParkKey},
    limits::Overflow,
};

/// What lies before a subscription, summed over its ready feeds.
#[derive(Debug, Default)]
struct Survey {
    events: u64,
    bytes: u64,
    /// The highest sequence that any feed evicted before it was seen; 0 if none did.
    evicted_through: u64,
}

/// The ready feed to take from next, which [`Subscription::pop_run`] took off the heap.
pub(super) struct Run {
    /// The sequence of the first event there.
    pub(super) head: u64,
    /// Which of the cursors.
    pub(super) cursor: u32,
    /// Events up to this sequence may be taken: no other feed has anything before it.
    pub(super) up_to: u64,
}

/// Why a run over the ready feeds ended.
pub(super) enum RunEnd {
    /// The room is full, or nothing up to the watermark is left.
    Done,
    /// A feed evicted what the subscription had still to see, before anything was taken.
    Overtaken,
}

impl RunEnd {
    /// The end of a run at a feed that evicted what was to come. What was taken before is complete without it.
    pub(super) const fn overtaken<P>(filling: &Filling<'_, P>) -> Self {
        if filling.events.is_empty() {
            Self::Overtaken
        } else {
            Self::Done
        }
    }
}

impl<P: Payload> Subscription<P> {
    /// Takes what is ready up to `watermark`. Returns whether that is anything.
    pub(super) fn take_live(
        &mut self,
        watermark: u64,
        room: Room,
        batch: &mut Batch<P>,
    ) -> Result<bool, CloseReason> {
        match self.ready.peek() {
            Some(Reverse((head, _))) if *head <= watermark => {}
            _ => return Ok(false),
        }
        let mut filling = Filling {
            room,
            bytes: 0,
            events: &mut batch.events,
        };
        let losses = match self.parts.limits.overflow {
            Overflow::Conflate => self.take_conflated(watermark, &mut filling),
            _ if self.ready.len() == 1 => self.take_from_one(watermark, &mut filling),
            _ => self.take_merged(watermark, &mut filling),
        };
        if self.parts.limits.overflow == Overflow::Disconnect && losses.overflow.count > 0 {
            // Nothing of this poll will be seen: all of it is abandoned.
            let passed = losses.overflow.count + losses.evicted.count + batch.events.len() as u64;
            self.behind_when_ended = passed + self.backlog();
            add(&self.shared.counters.abandoned, passed);
            return Err(CloseReason::TooSlow);
        }
        losses.into_gaps(&mut batch.gaps);
        Ok(!batch.is_empty())
    }

    /// The common case: one feed has something. Everything happens under its lock.
    fn take_from_one(&mut self, watermark: u64, filling: &mut Filling<'_, P>) -> Losses {
        let Some(&Reverse((head, i))) = self.ready.peek() else {
            return Losses::default();
        };
        let cursor = &mut self.cursors[i as usize];
        let mut feed = cursor.feed.lock();
        if feed.has_overtaken(cursor.next) && feed.removed_sequence() > watermark {
            // What was lost goes beyond the watermark, where other feeds may have something too.
            drop(feed);
            return self.take_merged(watermark, filling);
        }
        self.ready.pop();
        let end = feed.number_after(watermark);
        let start = feed.first_that_fits(cursor.next, end, &self.parts.limits);
        let mut losses = Losses::default();
        losses.skip(&feed, cursor.next, start, head);
        let taken = feed
            .events(start, end)
            .take_while(|event| filling.take(event))
            .count();
        let moved = feed.advance(cursor.next, start + taken as u64, &self.parts.signal, i);
        drop(feed);
        cursor.next = start + taken as u64;
        self.note_moved(i, moved);
        losses
    }

    /// Several feeds have something: they are merged by sequence.
    fn take_merged(&mut self, watermark: u64, filling: &mut Filling<'_, P>) -> Losses {
        let floor = match self.overflow_floor(watermark) {
            None if matches!(self.run(watermark, filling), RunEnd::Done) => {
                return Losses::default();
            }
            floor => floor.unwrap_or(0),
        };
        // Most of what goes is freed here, where it holds up nobody.
        let mut losses = Losses::default();
        self.skip_through(floor, &mut losses);
        // The losses of all feeds must be settled against one another: no publisher may evict meanwhile.
        let shared = Arc::clone(&self.shared);
        let state = shared.publish.lock();
        self.absorb_while_locked(&state);
        let watermark = state.head.min(filling.room.up_to);
        let evicted_through = self.survey(0, watermark).evicted_through;
        self.skip_through(evicted_through.max(losses.last()), &mut losses);
        self.run(watermark, filling);
        losses
    }

    /// What has to go: everything up to the sequence returned, so that the rest, up to `watermark`, is
    /// within the limits and complete; nothing if all of it is.
    fn overflow_floor(&self, watermark: u64) -> Option<u64> {
        let limits = &self.parts.limits;
        let all = self.survey(0, watermark);
        if limits.fits(all.events, all.bytes) {
            return (all.evicted_through > 0).then_some(all.evicted_through);
        }
        // The newest event always fits, so a floor just below the watermark is high enough.
        let (mut too_low, mut high_enough) = (0, watermark - 1);
        while too_low + 1 < high_enough {
            let middle = too_low + (high_enough - too_low) / 2;
            let rest = self.survey(middle, watermark);
            if limits.fits(rest.events, rest.bytes) {
                high_enough = middle;
            } else {
                too_low = middle;
            }
        }
        Some(high_enough)
    }

    /// What the ready feeds keep for this subscription after `floor` and up to `watermark`, and what
    /// they evicted before it was seen.
    fn survey(&self, floor: u64, watermark: u64) -> Survey {
        let mut survey = Survey::default();
        for Reverse((_, i)) in &self.ready {
            let cursor = &self.cursors[*i as usize];
            let feed = cursor.feed.lock();
            let from = cursor.next.max(feed.number_after(floor));
            let Backlog { events, bytes } =
                feed.backlog(from, feed.number_after(watermark).max(from));
            survey.events += events;
            survey.bytes += bytes;
            if feed.has_overtaken(cursor.next) {
                survey.evicted_through = survey.evicted_through.max(feed.removed_sequence());
            }
        }
        survey
    }

    /// Moves all ready cursors behind `floor`, and behind what their feeds have evicted.
    fn skip_through(&mut self, floor: u64, losses: &mut Losses) {
        for Reverse((head, i)) in mem::take(&mut self.ready) {
            let cursor = &mut self.cursors[i as usize];
            let mut feed = cursor.feed.lock();
            let to = cursor.next.max(feed.number_after(floor));
            losses.skip(&feed, cursor.next, to, head);
            let moved = feed.advance(cursor.next, to, &self.parts.signal, i);
            drop(feed);
            cursor.next = to;
            self.note_moved(i, moved);
        }
    }

    /// Moves all cursors but the client's own behind `sequence`, as far as is known what they pass. Returns how
    /// many events that is.
    pub(super) fn leave_out_through(&mut self, sequence: u64) -> u64 {
        let shared = Arc::clone(&self.shared);
        // Nothing is committed or evicted meanwhile.
        let state = shared.publish.lock();
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
            let moved = feed.advance(cursor.next, to, &self.parts.signal, i);
            drop(feed);
            cursor.next = to;
            self.note_moved(i, moved);
        }
        skipped
    }

    /// Takes from the ready feeds, lowest sequence first, a run of one feed at a time.
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
                drop(feed);
                self.ready.push(Reverse((head, i)));
                return RunEnd::overtaken(filling);
            }
            let end = feed.number_after(up_to);
            let taken = feed
                .events(cursor.next, end)
                .take_while(|event| filling.take(event))
                .count();
            let to = cursor.next + taken as u64;
            let moved = feed.advance(cursor.next, to, &self.parts.signal, i);
            drop(feed);
            cursor.next = to;
            self.note_moved(i, moved);
            if to < end {
                return RunEnd::Done;
            }
        }
    }

    /// Takes the ready feed with the lowest sequence off the heap, if that is not above `watermark`.
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
        Some(Run {
            head,
            cursor,
            up_to: watermark.min(next_head - 1),
        })
    }

    /// Notes where a cursor is after it has moved.
    pub(super) fn note_moved(&mut self, i: u32, (ahead, parked): (Ahead, Option<ParkKey>)) {
        self.cursors[i as usize].state = parked.map_or(CursorState::Ready, CursorState::Parked);
        if let Ahead::Event(head) = ahead {
            self.ready.push(Reverse((head, i)));
        }
    }
}

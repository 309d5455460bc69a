//! Live, conflated: taking the latest event of each topic and key.
//!
//! A conflating subscription has still to see the feed's view of latest events, from its cursor on: the
//! **survivors**. Every other event from there on was replaced. Replaced events are counted when survivors are
//! handed out: each cursor then moves to its first survivor that was not, and events that it passed and that
//! were neither handed out nor lost for another reason are conflated. So nothing that was replaced is
//! uncounted when a later event is seen.
//!
//! # Numbers and sequences
//! A cursor is a number of its feed. Numbers are dense, so the count of a loss is a subtraction of numbers:
//! from one survivor to the next, less one, is how many were replaced between them. The sequences of replaced
//! events are gone with them, so a loss has bounds instead: `not_before` of the cursor, and one less than the
//! sequence of the next survivor.

use std::{cmp::Reverse, mem, sync::Arc};

use super::{
    Subscription,
    live::{Run, RunEnd},
    losses::Losses,
    room::Filling,
};
use crate::event::Payload;

impl<P: Payload> Subscription<P> {
    /// Takes survivors up to `watermark`, lowest sequence first.
    pub(super) fn take_conflated(
        &mut self,
        watermark: u64,
        filling: &mut Filling<'_, P>,
    ) -> Losses {
        let mut losses = Losses::default();
        let settled = self.survivors_floor(watermark) == 0
            && matches!(
                self.run_conflated(watermark, filling, &mut losses),
                RunEnd::Done
            );
        if !settled {
            // The losses of all feeds are settled against one another, as without conflation, and nothing is
            // evicted until the run is over.
            let shared = Arc::clone(&self.shared);
            let state = shared.publish.lock();
            let watermark = state.head.min(filling.room.up_to);
            self.absorb_while_locked(&state);
            // Anew, since survivors may have been replaced and appended after the first look.
            self.drop_survivors(self.survivors_floor(watermark), &mut losses);
            self.run_conflated(watermark, filling, &mut losses);
        }
        // Only with events: where none was handed out, the subscriber has seen nothing later than a replaced event,
        // and those are counted with the next survivor.
        if !filling.events.is_empty() {
            self.pass_replaced(&mut losses);
        }
        losses
    }

    /// The sequence up to which survivors have to go, because some were evicted before they were seen, or so
    /// that the rest, up to `watermark`, is within the limits. 0 if none has to.
    fn survivors_floor(&self, watermark: u64) -> u64 {
        let limits = &self.parts.limits;
        // Of each feed the newest that may stay, and one more, which tells that something has to go. More would
        // be beyond the limits in any case.
        let enough = usize::try_from(limits.max_events.get())
            .map_or(usize::MAX, |max| max.saturating_add(1));
        let mut newest_first = Vec::new();
        let mut floor = 0;
        for Reverse((_, i)) in &self.ready {
            let cursor = &self.cursors[*i as usize];
            let feed = cursor.feed.lock();
            let latest = feed.latest();
            if latest.has_overtaken(cursor.next) {
                floor = floor.max(latest.evicted_sequence());
            }
            let survivors = latest
                .from(cursor.next)
                .rev()
                .map(|(_, event)| (event.sequence(), event.size()));
            newest_first.extend(
                survivors
                    .skip_while(|(sequence, _)| *sequence > watermark)
                    .take(enough),
            );
        }
        newest_first.sort_unstable_by_key(|(sequence, _)| Reverse(*sequence));
        let mut bytes = 0u64;
        // The first that does not fit, newest first, goes with everything older.
        let surplus = newest_first.iter().zip(1..).find(|((_, size), events)| {
            bytes = bytes.saturating_add(*size);
            !limits.fits(*events, bytes)
        });
        surplus.map_or(floor, |((sequence, _), _)| floor.max(*sequence))
    }

    /// Moves all ready cursors to their first survivor behind the sequence `floor`, and counts the events that
    /// they pass, each once: evicted, dropped here, or replaced. The caller holds the publish lock, so all
    /// cursors stop at one moment.
    fn drop_survivors(&mut self, floor: u64, losses: &mut Losses) {
        for Reverse((_, i)) in mem::take(&mut self.ready) {
            let cursor = &mut self.cursors[i as usize];
            let mut feed = cursor.feed.lock();
            let latest = feed.latest();
            // Everything up to `resume_after` was handed out or counted, so the loss begins behind it, even where
            // this cursor's own bound is lower.
            let mut not_before = cursor.not_before.max(self.resume_after + 1);
            let mut from = cursor.next;
            // First, the events below the view's front. The budget's runs say which of them it took; the rest
            // overflowed. A run reaches from one evicted survivor to the next, so events replaced in between
            // count as the survivor does.
            if latest.has_overtaken(from) {
                let evicted = latest.evicted().within(from, latest.first());
                losses.evicted.merge(evicted, not_before);
                losses.overflow.add(
                    latest.first() - from - evicted.count,
                    not_before,
                    latest.evicted_sequence(),
                );
                from = latest.first();
                not_before = latest.evicted_sequence() + 1;
            }
            // Then the survivors up to the floor: each is one loss, at a sequence that is known.
            let mut dropped = 0;
            let survivors = latest
                .from(from)
                .map(|(number, event)| (number, event.sequence()));
            let mut kept = survivors.skip_while(|(_, sequence)| {
                let goes = *sequence <= floor;
                if goes {
                    losses.overflow.add(1, *sequence, *sequence);
                    dropped += 1;
                }
                goes
            });
            // The first survivor that stays, or the end: nothing between here and there is left to see.
            let (to, next_sequence) = kept.next().unwrap_or((feed.end(), feed.newest() + 1));
            drop(kept);
            // The numbers passed, less the survivors dropped, were replaced.
            losses
                .conflated
                .add(to - from - dropped, not_before, next_sequence - 1);
            let moved = feed.advance_conflating(cursor.next, to, &self.parts.signal, i);
            drop(feed);
            (cursor.next, cursor.not_before) = (to, next_sequence);
            self.note_moved(i, moved);
        }
    }

    /// Takes survivors from the ready feeds, lowest sequence first, a run of one feed at a time.
    fn run_conflated(
        &mut self,
        watermark: u64,
        filling: &mut Filling<'_, P>,
        losses: &mut Losses,
    ) -> RunEnd {
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
            if feed.latest().has_overtaken(cursor.next) {
                // Under its old head, as without conflation: the next look settles it.
                drop(feed);
                self.ready.push(Reverse((head, i)));
                return RunEnd::overtaken(filling);
            }
            // `to` is the number behind the last survivor taken, and `not_before` the sequence behind it.
            let (mut to, mut not_before) = (cursor.next, cursor.not_before);
            let mut is_full = false;
            for (number, event) in feed.latest().from(cursor.next) {
                if event.sequence() > up_to {
                    break;
                }
                is_full = !filling.take(event);
                if is_full {
                    break;
                }
                losses
                    .conflated
                    .add(number - to, not_before, event.sequence() - 1);
                (to, not_before) = (number + 1, event.sequence() + 1);
            }
            // `to` may be the number of a replaced event: the next survivor from there on is the new head. If there
            // is none, the feed keeps nothing more for this cursor, and it parks.
            let moved = feed.advance_conflating(cursor.next, to, &self.parts.signal, i);
            drop(feed);
            (cursor.next, cursor.not_before) = (to, not_before);
            self.note_moved(i, moved);
            if is_full {
                return RunEnd::Done;
            }
        }
    }

    /// Moves all ready cursors to their first survivors, and counts the events they pass, which were replaced.
    ///
    /// The events taken may be later than these. Without this, a subscriber would see an event before the count
    /// of one that came earlier.
    fn pass_replaced(&mut self, losses: &mut Losses) {
        for Reverse((head, i)) in mem::take(&mut self.ready) {
            let cursor = &mut self.cursors[i as usize];
            let mut feed = cursor.feed.lock();
            let latest = feed.latest();
            let survivor = latest
                .from(cursor.next)
                .next()
                .map(|(number, event)| (number, event.sequence()));
            if latest.has_overtaken(cursor.next)
                || survivor.is_some_and(|(number, _)| number == cursor.next)
            {
                // It stands right, or the next poll settles what was evicted.
                self.ready.push(Reverse((head, i)));
                continue;
            }
            let (to, not_before) = survivor.unwrap_or((feed.end(), feed.newest() + 1));
            losses
                .conflated
                .add(to - cursor.next, cursor.not_before, not_before - 1);
            let moved = feed.advance_conflating(cursor.next, to, &self.parts.signal, i);
            drop(feed);
            (cursor.next, cursor.not_before) = (to, not_before);
            self.note_moved(i, moved);
        }
    }
}

//! Live, conflated: taking the latest event of each topic and key.
//!
//! A conflating subscription has still to see the feed's view of latest events, from its cursor on: the
//! **survivors**. Every other event from there on was replaced. A cursor that looks at its feed moves to the first
//! survivor that was not handed out, and what it passes on the way was replaced: that is counted at once, and told
//! before the next event is. So nothing that was replaced is uncounted when a later event is seen.
//!
//! # Counted and told
//! A poll may pass replaced events and find no survivor that it may hand out, where those are beyond
//! [`Room::up_to`](super::Room::up_to). Then what it has counted waits in the subscription, and the position stays
//! before it: everything up to a position was handed out or told.
//!
//! # Numbers and sequences
//! A cursor is a number of its feed, and its head the sequence of the event with that number: the first that was
//! neither handed out nor counted. It survived when the cursor came to stand there, and may be replaced since.
//! Numbers are dense, so the count of a loss is a subtraction of numbers: from one survivor to the next, less one, is
//! how many were replaced between them. The sequences of replaced events are gone with them, so a loss has bounds
//! instead: the head, or one more than the sequence of the last survivor; and one less than that of the next.

use std::{cmp::Reverse, mem, sync::Arc};

use super::{
    Subscription,
    live::{Run, RunEnd},
    losses::Losses,
    room::Filling,
};
use crate::{event::Payload, freed::Freed};

impl<P: Payload> Subscription<P> {
    /// Takes survivors up to `watermark`, lowest sequence first. In the steps of `take_merged`, and for its reasons.
    pub(super) fn take_conflated(
        &mut self,
        watermark: u64,
        filling: &mut Filling<'_, P>,
    ) -> Losses {
        let mut losses = Losses {
            conflated: mem::take(&mut self.replaced),
            ..Losses::default()
        };
        match self.overflow_floor(watermark) {
            None if matches!(
                self.run_conflated(watermark, filling, &mut losses),
                RunEnd::Done
            ) => {}
            floor => self.settle_conflated(floor.unwrap_or(0), filling, &mut losses),
        }
        // Told with events, or where the position goes behind them. Where the poll has neither, the subscriber has seen
        // nothing later than a replaced event.
        if filling.events.is_empty() && losses.is_only_conflated() {
            self.replaced = mem::take(&mut losses.conflated);
        }
        losses
    }

    /// Drops survivors up to the sequence `floor`, and those that go with what was evicted, and takes from the rest.
    fn settle_conflated(&mut self, floor: u64, filling: &mut Filling<'_, P>, losses: &mut Losses) {
        // Without the publish lock, because most of what goes is freed here.
        self.drop_survivors(floor, losses, &mut filling.freed);
        // The losses of all feeds are settled against one another, as without conflation, and nothing is
        // evicted until the run is over.
        let shared = Arc::clone(&self.shared);
        let state = shared.publish.lock();
        let Some(barrier) = self.barrier() else {
            return;
        };
        self.absorb_while_locked(&state);
        let watermark = state.head.min(filling.room.up_to).min(barrier);
        let evicted_through = self.survey(0, watermark).evicted_through;
        let floor = evicted_through.max(losses.last());
        self.drop_survivors(floor, losses, &mut filling.freed);
        self.run_conflated(watermark, filling, losses);
    }

    /// Moves all ready cursors to their first survivor behind the sequence `floor`, and counts the events that
    /// they pass, each once: evicted, dropped here, or replaced.
    pub(super) fn drop_survivors(&mut self, floor: u64, losses: &mut Losses, freed: &mut Freed<P>) {
        for Reverse((head, i)) in mem::take(&mut self.ready) {
            let cursor = &mut self.cursors[i as usize];
            let mut feed = cursor.feed.lock();
            let latest = feed.latest();
            let (mut from, mut not_before) = (cursor.next, head);
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
            // Then the survivors up to the floor: they are lost, and what was replaced between them is counted below.
            let dropped = latest.stretch(from, floor);
            losses
                .overflow
                .add(dropped.count, dropped.first, dropped.last);
            // The first survivor that stays, or the end: nothing between here and there is left to see.
            let kept = latest.after_sequence(from, floor);
            let (to, next_sequence) = kept.map_or((feed.end(), feed.newest() + 1), |kept| {
                (kept.number, kept.event.sequence())
            });
            // The numbers passed, less the survivors dropped, were replaced.
            losses
                .conflated
                .add(to - from - dropped.count, not_before, next_sequence - 1);
            let moved = feed.advance_conflating(cursor.next, to, &self.parts.signal, i, freed);
            let has_unwanted = feed.latest().has_unwanted();
            self.standing.put(i as usize, to);
            drop(feed);
            if has_unwanted {
                cursor.feed.free_unwanted(freed);
            }
            cursor.next = to;
            self.note_moved(i, moved);
        }
    }

    /// Takes survivors from the ready feeds, lowest sequence first, a run of one feed at a time. Counts what was
    /// replaced before each, and before the ones that the cursors stop at.
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
            let latest = feed.latest();
            if latest.has_overtaken(cursor.next) {
                // Under its old head, as without conflation: the next look settles it.
                drop(feed);
                self.ready.push(Reverse((head, i)));
                return RunEnd::overtaken(filling);
            }
            // `to` is the number behind all that is handed out and counted, and `not_before` a bound of its sequence.
            let (mut to, mut not_before) = (cursor.next, head);
            let mut is_full = false;
            let mut next = latest.from(to);
            while let Some(survivor) = next {
                let sequence = survivor.event.sequence();
                losses
                    .conflated
                    .add(survivor.number - to, not_before, sequence - 1);
                to = survivor.number;
                if sequence > up_to {
                    break;
                }
                is_full = !filling.take(survivor.event);
                if is_full {
                    break;
                }
                (to, not_before) = (to + 1, sequence + 1);
                next = latest.after(&survivor);
            }
            // At `to` is a survivor, the new head; or it is the end, since the newest event always survives, and the
            // cursor parks.
            let moved =
                feed.advance_conflating(cursor.next, to, &self.parts.signal, i, &mut filling.freed);
            let has_unwanted = feed.latest().has_unwanted();
            self.standing.put(i as usize, to);
            drop(feed);
            if has_unwanted {
                cursor.feed.free_unwanted(&mut filling.freed);
            }
            cursor.next = to;
            self.note_moved(i, moved);
            if is_full {
                return RunEnd::Done;
            }
        }
    }
}

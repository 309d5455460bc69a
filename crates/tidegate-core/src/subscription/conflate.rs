//! Live, conflated: taking the latest event of each topic and key.
//!
//! What a conflating subscription has still to see of a feed is the feed's view of latest events, from
//! its cursor on. Everything else from there on was replaced. It is counted when events are handed
//! out: each cursor then goes to its first survivor that was not, and what it passed and was neither
//! handed out nor lost for another reason is conflated. So nothing that was replaced is uncounted when
//! a later event is seen.

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
            // The losses of all feeds must be settled against one another, as without conflation.
            let shared = Arc::clone(&self.shared);
            let state = shared.publish.lock();
            let watermark = state.head.min(filling.room.up_to);
            self.absorb_while_locked(&state);
            self.drop_survivors(self.survivors_floor(watermark), &mut losses);
            self.run_conflated(watermark, filling, &mut losses);
        }
        if !filling.events.is_empty() {
            self.pass_replaced(&mut losses);
        }
        losses
    }

    /// What has to go: survivors up to the sequence returned, because some were evicted before they were
    /// seen, or so that the rest, up to `watermark`, is within the limits. 0 if nothing has to.
    fn survivors_floor(&self, watermark: u64) -> u64 {
        let limits = &self.parts.limits;
        // One more than may stay tells that something has to go.
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
        let surplus = newest_first.iter().zip(1..).find(|((_, size), events)| {
            bytes = bytes.saturating_add(*size);
            !limits.fits(*events, bytes)
        });
        surplus.map_or(floor, |((sequence, _), _)| floor.max(*sequence))
    }

    /// Moves all ready cursors behind `floor`. The caller holds the publish lock.
    fn drop_survivors(&mut self, floor: u64, losses: &mut Losses) {
        for Reverse((_, i)) in mem::take(&mut self.ready) {
            let cursor = &mut self.cursors[i as usize];
            let mut feed = cursor.feed.lock();
            let latest = feed.latest();
            let mut not_before = cursor.not_before.max(self.resume_after + 1);
            let mut from = cursor.next;
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
            let (to, next_sequence) = kept.next().unwrap_or((feed.end(), feed.newest() + 1));
            drop(kept);
            losses
                .conflated
                .add(to - from - dropped, not_before, next_sequence - 1);
            let moved = feed.advance_conflating(cursor.next, to, &self.parts.signal, i);
            drop(feed);
            (cursor.next, cursor.not_before) = (to, next_sequence);
            self.note_moved(i, moved);
        }
    }

    /// Takes from the ready feeds, lowest sequence first, a run of one feed at a time.
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
                drop(feed);
                self.ready.push(Reverse((head, i)));
                return RunEnd::overtaken(filling);
            }
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
            let moved = feed.advance_conflating(cursor.next, to, &self.parts.signal, i);
            drop(feed);
            (cursor.next, cursor.not_before) = (to, not_before);
            self.note_moved(i, moved);
            if is_full {
                return RunEnd::Done;
            }
        }
    }

    /// Moves all ready cursors to their first survivors, and counts what they pass: it was replaced.
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
                // The next poll settles what was evicted.
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

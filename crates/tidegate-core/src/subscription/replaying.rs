//! Replaying: taking events from history, and joining live.

use std::{sync::Arc, task::Context};

use super::{
    Batch, CursorState, Parts, Room, Subscription, index,
    losses::{Loss, merge_gap},
    room::Filling,
};
use crate::{
    counters::add,
    event::Payload,
    freed::Freed,
    gap::GapReason,
    publish::State,
    replay::{LAST_ROUND, Lost, Step, Work},
};

impl<P: Payload> Subscription<P> {
    /// Goes on with the replay until there is something to give, or the work of a poll is done. Returns whether there
    /// is; if not, it has woken the task, because nothing else will.
    pub(super) fn replay(&mut self, cx: &Context<'_>, room: Room, batch: &mut Batch<P>) -> bool {
        let mut work = Work::of_a_poll();
        while let Some(replay) = &mut self.replay
            && !work.is_used_up()
        {
            let mut filling = Filling {
                room,
                bytes: 0,
                events: &mut batch.events,
                freed: Freed::new(),
            };
            let take = |event: &_| filling.take(event);
            match replay.step(&self.shared.history, &mut work, take) {
                Step::Opened {
                    matches,
                    position,
                    gap,
                } => {
                    add(&self.shared.counters.replayed, matches);
                    self.resume_after = position;
                    if let Some((reason, first, last)) = gap {
                        merge_gap(&mut batch.gaps, reason, Loss::new(0, first, last));
                    }
                }
                Step::Lost(Lost { backplane, dropped }) => {
                    if let Some((first, last)) = backplane {
                        let lost = Loss::new(0, first, last);
                        merge_gap(&mut batch.gaps, GapReason::Backplane, lost);
                    }
                    if let Some((reason, count, first, last)) = dropped {
                        merge_gap(&mut batch.gaps, reason, Loss::new(count, first, last));
                    }
                    // Given at once. Another loss, of the other reason or of this one behind that, would be told
                    // before events that come in between.
                    break;
                }
                // With events in the batch this waits for the next poll: the subscriber may take its time over them,
                // and live events would gather meanwhile.
                Step::RoundDone if batch.events.is_empty() => {
                    if !self.end_round(batch) {
                        break;
                    }
                }
                // It has ended, and the next poll says so.
                Step::EpochEnded => break,
                Step::Continue | Step::RoundDone => {}
            }
            if !batch.events.is_empty() || batch.caught_up.is_some() {
                break;
            }
        }
        self.work = work.done();
        if batch.is_empty() {
            cx.waker().wake_by_ref();
        }
        !batch.is_empty()
    }

    /// Ends a round: the subscription has caught up, or another round begins. Returns false if it has ended.
    fn end_round(&mut self, batch: &mut Batch<P>) -> bool {
        let replay = self.replay.as_mut().expect("a replay goes on");
        if replay.is_last() {
            let head = replay.head();
            self.go_live(head, batch);
            return true;
        }
        let shared = Arc::clone(&self.shared);
        // The head is fixed and the cursors are put down in one moment: what came before is read from history, what
        // comes after is live, and nothing is both or neither. No event is matched here.
        let state = shared.publish.lock();
        if state.epoch != self.epoch {
            return false;
        }
        // The numbers of the feeds are dense and `next` has stood still since the round began, so this is how many
        // matches there are without a look at any of them.
        let pending = self.ahead();
        let replay = self.replay.as_mut().expect("a replay goes on");
        let (is_short, has_lost) = {
            let history = shared.history.lock();
            (
                history.is_short_after(replay.head(), LAST_ROUND),
                history.lost_through() > replay.head(),
            )
        };
        let is_over = pending == 0 && !has_lost;
        let is_last = is_short || is_over;
        if is_over {
            self.go_live(state.head, batch);
        } else {
            replay.begin_round(state.head, pending, is_last);
        }
        if is_last {
            self.attach(&state);
        } else {
            for cursor in &mut self.cursors {
                cursor.next = cursor.feed.lock().end();
            }
        }
        true
    }

    /// Ends the replay: everything up to `head` was given or counted, and live begins there.
    fn go_live(&mut self, head: u64, batch: &mut Batch<P>) {
        batch.caught_up = Some(self.position_at(head));
        self.replay = None;
        // What was lost in the rounds was told in them.
        self.told_lost = head;
    }

    /// Puts the cursors at the end of their feeds. The publish lock, which guards `_state`, is held, so all
    /// ends are at one sequence.
    fn attach(&mut self, _state: &State<P>) {
        for (i, cursor) in self.cursors.iter_mut().enumerate() {
            let Parts { limits, signal, .. } = &self.parts;
            let mut feed = cursor.feed.lock();
            let (next, key) = feed.attach(limits, &self.shared.max_limits, signal, index(i));
            self.standing.put(i, next);
            drop(feed);
            cursor.next = next;
            cursor.state = CursorState::Parked(key);
        }
    }
}

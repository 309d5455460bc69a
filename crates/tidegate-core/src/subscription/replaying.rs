//! Replaying: taking events from history, and joining live.

use std::{sync::Arc, task::Context};

use super::{
    Batch, CursorState, Parts, Room, Subscription, index,
    losses::{Loss, merge_gap},
    room::Filling,
};
use crate::{counters::add, event::Payload, publish::State, replay::Step};

/// How many strides of history one poll goes through before it lets other tasks run: 8,192 entries, where a
/// stride has 256. Chosen, not measured.
const STRIDES_PER_POLL: usize = if cfg!(test) { 2 } else { 32 };

impl<P: Payload> Subscription<P> {
    /// Goes on with the replay until there is something to give. Returns whether there is; if not, it has
    /// woken the task, because nothing else will.
    pub(super) fn replay(&mut self, cx: &Context<'_>, room: Room, batch: &mut Batch<P>) -> bool {
        for _ in 0..STRIDES_PER_POLL {
            let Some(replay) = &mut self.replay else {
                break;
            };
            let mut filling = Filling {
                room,
                bytes: 0,
                events: &mut batch.events,
            };
            let step = replay.step(&self.shared.history, |event| filling.take(event));
            match step {
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
                Step::Lost {
                    reason,
                    count,
                    first,
                    last,
                } => {
                    merge_gap(&mut batch.gaps, reason, Loss::new(count, first, last));
                }
                // With events in the batch the join waits for the next poll: `join` may have to empty the batch.
                Step::RoundDone if batch.events.is_empty() => self.join(room, batch),
                Step::Continue | Step::RoundDone => {}
            }
            if !batch.events.is_empty() || batch.caught_up.is_some() {
                return true;
            }
        }
        if batch.is_empty() {
            cx.waker().wake_by_ref();
        }
        !batch.is_empty()
    }

    /// Joins live, with the few events that came since the last round, or begins another round.
    ///
    /// Under the publish lock, so that the last entry is read and the cursors are attached in one moment:
    /// nothing is missed or repeated at the seam. What is done there is bounded by
    /// [`Replay::read_the_rest`](crate::replay::Replay::read_the_rest).
    fn join(&mut self, room: Room, batch: &mut Batch<P>) {
        let shared = Arc::clone(&self.shared);
        let state = shared.publish.lock();
        let pending = self.ahead();
        // The numbers of the feeds are dense and `next` has stood still since the round began, so this is how many
        // matches there are without a look at any of them.
        let replay = self.replay.as_mut().expect("a replay goes on");
        let all_taken = pending == 0 || {
            let mut filling = Filling {
                room,
                bytes: 0,
                events: &mut batch.events,
            };
            replay.read_the_rest(&shared.history.lock(), state.head, |event| {
                filling.take(event)
            })
        };
        if all_taken {
            self.replay = None;
            batch.caught_up = Some(shared.position(state.head));
            self.attach(&state);
        } else {
            // It was too much for the room or the stride: give back what was taken, and read it as a round.
            batch.events.clear();
            replay.begin_round(state.head, pending);
            for cursor in &mut self.cursors {
                cursor.next = cursor.feed.lock().end();
            }
        }
    }

    /// Puts the cursors at the end of their feeds. The publish lock, which guards `_state`, is held, so all
    /// ends are at one sequence.
    fn attach(&mut self, _state: &State<P>) {
        for (i, cursor) in self.cursors.iter_mut().enumerate() {
            let Parts { limits, signal, .. } = &self.parts;
            let (next, key) =
                cursor
                    .feed
                    .lock()
                    .attach(limits, &self.shared.max_limits, signal, index(i));
            cursor.next = next;
            cursor.state = CursorState::Parked(key);
        }
    }
}

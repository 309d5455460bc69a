//! The beginning of a subscription, and its end when it is dropped.

use std::{
    collections::BinaryHeap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{Cursor, CursorState, Parts, Subscription, index, losses::Loss};
use crate::{
    counters::add,
    event::{Payload, Position},
    freed::Freed,
    gap::{Gap, GapReason},
    limits::Overflow,
    options::Start,
    publish::{Shared, State},
    replay::{Opening, Replay},
    standing::Standing,
};

/// The ways in which a subscription begins.
enum Beginning {
    /// With the next event.
    Live,
    /// With the end of a replay for which history has nothing, and before it a gap, if something is missing.
    CaughtUp(Option<Gap>),
    /// With a replay of history.
    Replay(Opening),
}

impl<P: Payload> Subscription<P> {
    /// Begins a subscription to `feeds`. The caller holds the publish lock, which guards `state`.
    pub(crate) fn begin(
        shared: Arc<Shared<P>>,
        parts: Parts,
        standing: Arc<Standing<P>>,
        start: Start,
        state: &State<P>,
    ) -> Self {
        let State { epoch, head, .. } = *state;
        let at_head = Position {
            epoch,
            sequence: head,
        };
        let beginning = Beginning::of(&shared, start, at_head);
        if parts.limits.overflow == Overflow::Conflate {
            shared.conflates.store(true, Relaxed);
        }
        let mut cursors: Box<[_]> = standing.feeds().cloned().map(Cursor::new).collect();
        for (i, cursor) in cursors.iter_mut().enumerate() {
            let mut feed = cursor.feed.lock();
            // Before the publish lock goes: a feed that nobody has joined may be forgotten.
            feed.join();
            // Also during a replay: the numbers from here on count live events.
            cursor.next = feed.end();
            // A replay needs nothing of the ring, so its cursors are not in the feed and retain nothing there.
            if !matches!(beginning, Beginning::Replay(_)) {
                let (_, key) =
                    feed.attach(&parts.limits, &shared.max_limits, &parts.signal, index(i));
                cursor.state = CursorState::Parked(key);
                standing.put(i, cursor.next);
            }
        }
        let (replay, opening) = match beginning {
            Beginning::Live => (None, None),
            Beginning::CaughtUp(gap) => (None, Some(Box::new((gap, at_head)))),
            Beginning::Replay(opening) => {
                let kinds = cursors.iter().map(|cursor| cursor.feed.kind());
                (Some(Box::new(Replay::new(opening, at_head, kinds))), None)
            }
        };
        shared.counters.subscriptions.fetch_add(1, Relaxed);
        let subscription = Self {
            // A replay does not know yet where it begins; until then nothing was handed out or counted.
            resume_after: if replay.is_some() { 0 } else { head },
            asked: if let Start::After(asked) = start {
                Some(asked)
            } else {
                None
            },
            // Under the publish lock, so that nothing that is lost from here on is taken for known.
            seen_losses: shared.losses.load(Relaxed),
            told_lost: head,
            epoch,
            shared,
            parts,
            standing,
            cursors,
            ready: BinaryHeap::new(),
            arrivals: Vec::new(),
            replay,
            work: 0,
            opening,
            replaced: Loss::default(),
            next_index: 0,
            began_at: head,
            closed: None,
            behind_when_ended: 0,
        };
        subscription.note_standing();
        subscription
    }
}

impl Beginning {
    /// The beginning for `start`, at the position of the hub. The caller holds the publish lock.
    fn of<P: Payload>(shared: &Shared<P>, start: Start, hub: Position) -> Self {
        let Position {
            epoch,
            sequence: head,
        } = hub;
        let history = shared.history.lock();
        // How many of these would have matched is not known, as they are gone.
        let lost = |reason, first_sequence| {
            Some(Gap {
                first_sequence,
                last_sequence: head,
                count: 0,
                reason,
                first_index: 0,
            })
        };
        match start {
            Start::Live | Start::Last(0) => Self::Live,
            Start::Last(_) if history.len() == 0 => Self::CaughtUp(None),
            Start::Last(events) => Self::Replay(Opening::Last(events.into())),
            Start::After(asked) if asked.epoch != epoch && history.len() == 0 => {
                Self::CaughtUp(lost(GapReason::EpochChanged, 0))
            }
            Start::After(asked) if asked.epoch != epoch => Self::Replay(Opening::OtherEpoch),
            Start::After(Position { sequence, .. })
                if sequence < history.newest().unwrap_or(0).max(history.lost_through()) =>
            {
                Self::Replay(Opening::After(sequence))
            }
            Start::After(Position { sequence, .. }) if sequence < history.evicted_through() => {
                Self::CaughtUp(lost(GapReason::Expired, sequence + 1))
            }
            Start::After(_) => Self::CaughtUp(None),
        }
    }
}

impl<P: Payload> Drop for Subscription<P> {
    fn drop(&mut self) {
        // One feed at a time, without the publish lock: leaving does not hold up publishers. A feed that an event
        // reaches before this one's turn counts it in its end, so it is abandoned and `matched` still adds up.
        let mut unused = Vec::new();
        // Last of all, when everything else has been done, should one of them panic.
        let mut freed = Freed::new();
        let mut views = Vec::new();
        let replaying = self.replay.as_ref().map_or(0, |replay| replay.remaining());
        let mut abandoned = replaying + self.replaced.count;
        for (i, cursor) in self.cursors.iter().enumerate() {
            let mut feed = cursor.feed.lock();
            self.standing.lift(i);
            abandoned += feed.end() - cursor.next;
            let limits = &self.parts.limits;
            let view = match cursor.state {
                CursorState::Detached => None,
                CursorState::Parked(key) => feed.detach(limits, cursor.next, Some(key), &mut freed),
                CursorState::Ready => feed.detach(limits, cursor.next, None, &mut freed),
            };
            let has_unwanted = feed.has_unwanted() || limits.overflow == Overflow::Conflate;
            if feed.leave() {
                unused.push(Arc::clone(&cursor.feed));
            }
            drop(feed);
            // Without the lock, or a few at a time: there may be many, and publishers would wait.
            views.extend(view);
            if has_unwanted {
                freed.crowded(Arc::clone(&cursor.feed) as _);
            }
        }
        let Shared {
            registry, counters, ..
        } = &*self.shared;
        // Its own registration and no other: a newer subscription may hold the client id by now.
        registry.remove(&self.parts.holder.client, self.parts.id);
        self.shared.forget_unused(&unused);
        add(&counters.abandoned, abandoned);
        counters.subscriptions.fetch_sub(1, Relaxed);
        drop(views);
        freed.clear();
    }
}

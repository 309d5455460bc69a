//! Beginning a subscription, and what it leaves when it is dropped.

use std::{
    collections::BinaryHeap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{Cursor, CursorState, Parts, Subscription, index};
use crate::{
    counters::add,
    event::{Payload, Position},
    feed::Feed,
    gap::{Gap, GapReason},
    options::Start,
    publish::Shared,
    replay::{Opening, Replay},
};

/// How a subscription begins.
enum Beginning {
    Live,
    /// A replay was asked for and history has nothing for it: its end is said at once, and before that
    /// what is missing.
    CaughtUp(Option<Gap>),
    Replay(Opening),
}

impl<P: Payload> Subscription<P> {
    /// Begins a subscription to `feeds`, at `head`. The caller holds the publish lock.
    pub(crate) fn begin(
        shared: Arc<Shared<P>>,
        parts: Parts,
        feeds: &[Arc<Feed<P>>],
        start: Start,
        head: u64,
    ) -> Self {
        let beginning = Beginning::of(&shared, start, head);
        let mut cursors: Box<[_]> = feeds.iter().cloned().map(Cursor::new).collect();
        for (i, cursor) in cursors.iter_mut().enumerate() {
            let mut feed = cursor.feed.lock();
            feed.join();
            cursor.next = feed.end();
            if !matches!(beginning, Beginning::Replay(_)) {
                let (_, key) =
                    feed.attach(&parts.limits, &shared.max_limits, &parts.signal, index(i));
                cursor.state = CursorState::Parked(key);
            }
        }
        let (replay, opening) = match beginning {
            Beginning::Live => (None, None),
            Beginning::CaughtUp(gap) => (None, Some((gap, shared.position(head)))),
            Beginning::Replay(opening) => {
                let kinds = cursors.iter().map(|cursor| cursor.feed.kind());
                (Some(Box::new(Replay::new(opening, head, kinds))), None)
            }
        };
        shared.counters.subscriptions.fetch_add(1, Relaxed);
        let subscription = Self {
            resume_after: if replay.is_some() { 0 } else { head },
            asked: if let Start::After(asked) = start {
                Some(asked)
            } else {
                None
            },
            shared,
            parts,
            cursors,
            ready: BinaryHeap::new(),
            arrivals: Vec::new(),
            replay,
            opening,
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
    /// The beginning for `start`, at `head`. The caller holds the publish lock.
    fn of<P: Payload>(shared: &Shared<P>, start: Start, head: u64) -> Self {
        let history = shared.history.lock();
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
            Start::After(asked) if asked.epoch != shared.epoch && history.len() == 0 => {
                Self::CaughtUp(lost(GapReason::EpochChanged, 0))
            }
            Start::After(asked) if asked.epoch != shared.epoch => Self::Replay(Opening::OtherEpoch),
            Start::After(Position { sequence, .. }) if sequence < history.newest().unwrap_or(0) => {
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
        let mut unused = Vec::new();
        let mut abandoned = self.replay.as_ref().map_or(0, |replay| replay.remaining());
        for cursor in &self.cursors {
            let mut feed = cursor.feed.lock();
            abandoned += feed.end() - cursor.next;
            match cursor.state {
                CursorState::Detached => {}
                CursorState::Parked(key) => feed.detach(&self.parts.limits, cursor.next, Some(key)),
                CursorState::Ready => feed.detach(&self.parts.limits, cursor.next, None),
            }
            if feed.leave() {
                unused.push(Arc::clone(&cursor.feed));
            }
        }
        let Shared {
            registry, counters, ..
        } = &*self.shared;
        registry.remove(&self.parts.holder.client, self.parts.id);
        self.shared.forget_unused(&unused);
        add(&counters.abandoned, abandoned);
        counters.subscriptions.fetch_sub(1, Relaxed);
    }
}

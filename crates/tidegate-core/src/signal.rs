//! How a publisher tells a parked subscription that one of its feeds has something.
//!
//! # Readiness, one shot
//! A subscription that has emptied a feed leaves a registration there. The first append takes the
//! registration, puts the feed on the subscription's ready list and wakes it; further appends cost
//! nothing until the subscription has emptied the feed and registered again.
//!
//! # The protocol
//! ```text
//! publisher:   take the publish lock; for each feed, under its lock: append, take the registrations,
//!              push the feed onto their ready lists; store `committed`; unlock; wake
//! subscriber:  store the waker; read w = `committed`; take the ready list; from each ready feed, under
//!              its lock, take events up to w, then register if it is empty or keep it as ready; if
//!              only events beyond w are left, pass through the publish lock and start over; else park
//! ```
// Why this order: a publisher pushes to the ready list before it stores `committed`, and the subscriber
// reads `committed` before it takes the list. So every feed with an event up to w is on the list taken,
// or was known as ready before: nothing up to w is missed, in any feed, and the merge is in order.
//
// Taking the list first and reading `committed` after loses the order: publisher appends 1 to feed A and
// commits, after the list was taken; publisher appends 2 to feed B, which is ready from before; the
// subscriber reads w = 2, takes 2 from B, and finds 1 in A later.
//
// Storing the waker last loses a wake-up: the list is empty, the publisher pushes and finds no waker, the
// subscriber stores the waker and sleeps on a ready feed.

// Sweeps only look: what they see orders nothing, and loom need not know of it.
use std::{
    sync::atomic::{
        AtomicBool, AtomicU64 as AtomicCounter,
        Ordering::{Acquire, Relaxed},
    },
    task::Waker,
};

use crate::{
    close::CloseReason,
    info::Tally,
    sync::{AtomicU64, Mutex},
};

/// Where publishers reach one subscription.
#[derive(Debug)]
pub(crate) struct Signal {
    state: Mutex<State>,
    /// How often something was handed out. Written by the subscription, read by sweeps.
    progress: AtomicCounter,
    /// Whether the last poll left something. Written by the subscription, read by sweeps.
    left_some: AtomicBool,
    /// Whether the subscription is to be ended when it is stalled.
    ends_when_stalled: bool,
    /// Called when the subscription was ended and takes no notice.
    reset: Option<Waker>,
    tally: Tally,
}

/// What a sweep sees of a subscription.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot {
    pub(crate) progress: u64,
    /// Whether something is there for it.
    pub(crate) is_behind: bool,
    pub(crate) is_closed: bool,
    pub(crate) ends_when_stalled: bool,
}

#[derive(Debug)]
struct State {
    /// Feeds that got an event since they were last empty, in the order in which they got it.
    ready: Vec<Ready>,
    /// Set by each poll, taken by the first who has news.
    waker: Option<Waker>,
    /// Set once; the subscription yields nothing after it.
    closed: Option<CloseReason>,
}

/// A feed of a subscription that is not empty any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Which of the subscription's cursors.
    pub(crate) cursor: u32,
    /// The sequence of the event that came.
    pub(crate) head: u64,
}

impl Signal {
    pub(crate) fn new(ends_when_stalled: bool, reset: Option<Waker>) -> Self {
        Self {
            state: Mutex::new(State {
                ready: Vec::new(),
                waker: None,
                closed: None,
            }),
            progress: AtomicCounter::new(0),
            left_some: AtomicBool::new(false),
            ends_when_stalled,
            reset,
            tally: Tally::default(),
        }
    }

    pub(crate) const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Notes what a poll came to. Called by the subscription only.
    pub(crate) fn note(&self, handed_out: bool, left_some: bool) {
        if handed_out {
            self.progress
                .store(self.progress.load(Relaxed) + 1, Relaxed);
        }
        self.left_some.store(left_some, Relaxed);
    }

    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.state.lock().closed
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let (is_closed, is_ready) = {
            let state = self.state.lock();
            (state.closed.is_some(), !state.ready.is_empty())
        };
        Snapshot {
            progress: self.progress.load(Relaxed),
            is_behind: is_ready || self.left_some.load(Relaxed),
            is_closed,
            ends_when_stalled: self.ends_when_stalled,
        }
    }

    /// Tells the transport to give up. The caller holds no lock.
    pub(crate) fn reset(&self) {
        if let Some(reset) = &self.reset {
            reset.wake_by_ref();
        }
    }

    /// The subscriber's half of the protocol, in its order: stores `waker`, reads `committed`, moves the
    /// ready list to the end of `arrivals`. Returns what it read, and whether the subscription was closed.
    pub(crate) fn begin_poll(
        &self,
        waker: &Waker,
        committed: &AtomicU64,
        arrivals: &mut Vec<Ready>,
    ) -> (u64, Option<CloseReason>) {
        let mut state = self.state.lock();
        let replaced = match &state.waker {
            Some(stored) if stored.will_wake(waker) => None,
            _ => state.waker.replace(waker.clone()),
        };
        let watermark = committed.load(Acquire);
        arrivals.append(&mut state.ready);
        let closed = state.closed;
        drop(state);
        // Dropping a waker may run code of the executor: never under the lock.
        drop(replaced);
        (watermark, closed)
    }

    /// Moves the ready list to the end of `arrivals`, in the middle of a poll. The caller holds the
    /// publish lock, so that nothing is added meanwhile.
    pub(crate) fn take_ready_while_locked(&self, arrivals: &mut Vec<Ready>) {
        arrivals.append(&mut self.state.lock().ready);
    }

    /// Puts a feed on the ready list. The caller wakes, after it has let go of its locks.
    pub(crate) fn push_ready(&self, ready: Ready) -> Option<Waker> {
        let mut state = self.state.lock();
        state.ready.push(ready);
        state.waker.take()
    }

    /// Ends the subscription, unless it has ended for another reason before, and wakes it. The caller
    /// holds no lock.
    pub(crate) fn end(&self, reason: CloseReason) {
        let waker = {
            let mut state = self.state.lock();
            state.closed.get_or_insert(reason);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

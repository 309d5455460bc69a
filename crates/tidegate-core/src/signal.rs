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

// Plain atomics for what only sweeps read: it orders nothing, and loom need not know of it.
use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64 as AtomicCounter,
            Ordering::{Acquire, Relaxed},
        },
    },
    task::Waker,
};

use crate::{
    close::CloseReason,
    info::Tally,
    sync::{AtomicU64, Mutex},
    transport::Transport,
};

/// The place where publishers reach one subscription.
#[derive(Debug)]
pub(crate) struct Signal {
    /// The ready list, the waker and the end. The innermost lock: no other is taken under it.
    state: Mutex<State>,
    /// How many times the consumer took something. Written by the subscription, read by sweeps.
    progress: AtomicCounter,
    /// Whether the last poll left something. Written by the subscription, read by sweeps.
    left_some: AtomicBool,
    /// How many events are being sent: handed out, and not taken by the peer to their end.
    sending: AtomicCounter,
    /// Whether a sweep ends the subscription when it is stalled, whatever the rules.
    ends_when_stalled: bool,
    /// The transport, to ask whether bytes are moving, and to tell it to give up on a subscription that was ended
    /// and takes no notice.
    transport: Option<Arc<dyn Transport>>,
    /// Whether the transport was told to give up, which happens once.
    is_reset: AtomicBool,
    /// Counts for listings.
    tally: Tally,
}

/// A subscription as one sweep sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot {
    /// A number that rises whenever the consumer takes something or the peer takes bytes.
    pub(crate) progress: u64,
    /// Whether there are events for it to take, or the peer has begun one and not taken all of it.
    pub(crate) is_behind: bool,
    /// Whether it was ended.
    pub(crate) is_closed: bool,
    /// Whether its transport was told to give up.
    pub(crate) is_reset: bool,
    /// Whether to end it when it is stalled, whatever the rules.
    pub(crate) ends_when_stalled: bool,
}

/// The state behind the lock of a signal.
#[derive(Debug)]
struct State {
    /// Feeds that got an event since they were last empty, in the order in which they got it.
    ready: Vec<Ready>,
    /// Set by each poll, taken by the first publisher or close that has news, so it is woken once a poll.
    waker: Option<Waker>,
    /// Whether it is only woken for the end: its consumer can take nothing.
    waits_for_end: bool,
    /// Set once; the subscription yields nothing after it.
    closed: Option<CloseReason>,
}

/// A feed of a subscription that is not empty any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    /// The number of the subscription's cursor in it.
    pub(crate) cursor: u32,
    /// The sequence of the event that came, the first that the cursor has not seen.
    pub(crate) head: u64,
}

impl Signal {
    /// A signal of a subscription that nothing has reached yet.
    pub(crate) fn new(ends_when_stalled: bool, transport: Option<Arc<dyn Transport>>) -> Self {
        Self {
            state: Mutex::new(State {
                ready: Vec::new(),
                waker: None,
                waits_for_end: false,
                closed: None,
            }),
            progress: AtomicCounter::new(0),
            left_some: AtomicBool::new(false),
            sending: AtomicCounter::new(0),
            ends_when_stalled,
            transport,
            is_reset: AtomicBool::new(false),
            tally: Tally::default(),
        }
    }

    /// The counts for listings.
    pub(crate) const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Notes the result of a poll: whether the consumer got on by it, and whether it left something. Called by the
    /// subscription only.
    pub(crate) fn note(&self, is_progress: bool, left_some: bool) {
        if is_progress {
            self.note_progress();
        }
        self.left_some.store(left_some, Relaxed);
    }

    /// Notes that the consumer took something. Called by the subscription only.
    pub(crate) fn note_progress(&self) {
        // There is one writer, so a load and a store are enough, and cheaper than an addition in memory.
        self.progress
            .store(self.progress.load(Relaxed) + 1, Relaxed);
    }

    /// Counts an event that is being sent, or no longer is.
    pub(crate) fn note_sending(&self, begins: bool) {
        if begins {
            self.sending.fetch_add(1, Relaxed);
        } else {
            self.sending.fetch_sub(1, Relaxed);
        }
    }

    /// The reason why the subscription was ended, from that moment on.
    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.state.lock().closed
    }

    /// Looks at the subscription for a sweep. A poll may go on meanwhile; the next sweep sees what it did.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let (is_closed, is_ready) = {
            let state = self.state.lock();
            (state.closed.is_some(), !state.ready.is_empty())
        };
        let taken = self.transport.as_ref().map_or(0, |it| it.taken());
        Snapshot {
            // Either alone never falls, so the sum stays as it is only if both do.
            progress: self.progress.load(Relaxed).wrapping_add(taken),
            is_behind: is_ready || self.left_some.load(Relaxed) || self.sending.load(Relaxed) > 0,
            is_closed,
            is_reset: self.is_reset.load(Relaxed),
            ends_when_stalled: self.ends_when_stalled,
        }
    }

    /// Tells the transport to give up, unless it was told before. Returns whether it was not. The caller holds no
    /// lock.
    pub(crate) fn reset(&self) -> bool {
        let is_first = !self.is_reset.swap(true, Relaxed);
        if let Some(transport) = self.transport.as_ref().filter(|_| is_first) {
            transport.reset();
        }
        is_first
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
        // The protocol's order, with the lock held from the first step to the last: a push is either before all of
        // them, and on the list, or after all of them. Then it finds this waker, and its event is above the watermark.
        let replaced = state.store_waker(waker);
        state.waits_for_end = false;
        // Acquire, for the publisher's Release comes after its pushes: those of events up to the watermark are done.
        let watermark = committed.load(Acquire);
        arrivals.append(&mut state.ready);
        let closed = state.closed;
        drop(state);
        // Dropping a waker may run code of the executor: never under the lock.
        drop(replaced);
        (watermark, closed)
    }

    /// Whether the subscription was ended. If not, stores `waker` to be woken for that alone: events that come leave it, and
    /// the next poll finds them on the ready list.
    pub(crate) fn wait_for_end(&self, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return true;
        }
        state.waits_for_end = true;
        let replaced = state.store_waker(waker);
        drop(state);
        // Dropping a waker may run code of the executor: never under the lock.
        drop(replaced);
        false
    }

    /// Moves the ready list to the end of `arrivals`, in the middle of a poll. The caller holds the
    /// publish lock, so nothing is added meanwhile and the list is complete up to the head of the hub.
    pub(crate) fn take_ready_while_locked(&self, arrivals: &mut Vec<Ready>) {
        arrivals.append(&mut self.state.lock().ready);
    }

    /// Puts a feed on the ready list. Returns the waker to wake, if nobody has taken it since the last poll; the
    /// caller wakes it after it has let go of its locks.
    pub(crate) fn push_ready(&self, ready: Ready) -> Option<Waker> {
        // In one step: a poll either takes this entry with the list, or has stored its waker before.
        let mut state = self.state.lock();
        state.ready.push(ready);
        state.take_waker()
    }

    /// Takes the waker, for news that are in no feed.
    pub(crate) fn take_waker(&self) -> Option<Waker> {
        // In one step: a poll either sees what was committed before this, or has stored its waker.
        self.state.lock().take_waker()
    }

    /// Ends the subscription, unless it has ended for another reason before. Returns whether it had not, and the
    /// waker to wake, which the caller does after it has let go of its locks.
    pub(crate) fn end(&self, reason: CloseReason) -> (bool, Option<Waker>) {
        // As with an event: a poll either sees the reason, or has stored its waker before.
        let mut state = self.state.lock();
        let is_first = state.closed.is_none();
        state.closed.get_or_insert(reason);
        (is_first, state.waker.take())
    }
}

impl State {
    /// Stores the waker of a poll. Returns the one before, to be dropped without the lock.
    fn store_waker(&mut self, waker: &Waker) -> Option<Waker> {
        match &self.waker {
            Some(stored) if stored.will_wake(waker) => None,
            _ => self.waker.replace(waker.clone()),
        }
    }

    /// Takes the waker for news other than the end.
    const fn take_waker(&mut self) -> Option<Waker> {
        if self.waits_for_end {
            return None;
        }
        self.waker.take()
    }
}

//! A subscription: one cursor in each of its feeds, merged by sequence, each event once.
//!
//! # Ordering
//! Events come in the order of their sequences. So do gaps, among themselves and with events: a gap is
//! given exactly where its events are missing.
//!
//! # Lag
//! A subscription owns no queue; its backlog is what lies in the feeds behind its cursors. When it is
//! polled and more is behind than its limits admit, its cursors jump, oldest sequence first, until the
//! rest fits, and what they jumped over is a [`Gap`]. What it is handed then equals, for any pace of
//! polling, what a private queue that drops its oldest at each push would have handed it.
//!
//! # Index
//! Each matching event has an index in the subscription, dense and from 0: events take one each, a gap
//! takes as many as its count. At any moment `index of the next = delivered + sum of gap counts`.
//!
//! # Resuming
//! [`Subscription::position`] is always safe to resume after: all up to it was handed out or counted.
//!
//! # Closing
//! When the subscription was closed, the next poll says why, and so does every poll after. What it had
//! not handed out is lost to it, and for a new subscription to resume. Dropping it frees at once
//! everything that it held.

mod begin;
mod conflate;
mod live;
mod losses;
mod replaying;
mod room;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed},
    },
    task::{Context, Poll},
};

use crate::{
    close::CloseReason,
    counters::add,
    event::{Payload, Position},
    feed::{Feed, ParkKey},
    gap::{Gap, GapReason},
    info::{Holder, SubscriptionInfo},
    limits::{Limits, Overflow},
    publish::{Shared, State},
    replay::Replay,
    signal::{Ready, Signal},
    topic::ClientId,
};

pub use room::{Batch, Room};

/// One subscriber's place in the hub. See [the module](self).
#[derive(Debug)]
pub struct Subscription<P: Payload> {
    shared: Arc<Shared<P>>,
    parts: Parts,
    cursors: Box<[Cursor<P>]>,
    /// The cursors that have something before them, by the sequence of the first of it. While a replay
    /// goes on no cursor is here.
    ready: BinaryHeap<Reverse<(u64, u32)>>,
    /// Room for taking the ready list of the signal; empty between polls.
    arrivals: Vec<Ready>,
    replay: Option<Box<Replay<P>>>,
    /// Said with the first poll: a gap before the first event, and the end of a replay of nothing.
    opening: Option<(Option<Gap>, Position)>,
    /// The position that was asked for, until the subscriber has been told what is missing from there.
    asked: Option<Position>,
    next_index: u64,
    /// Everything up to this sequence was handed out or counted, or did not match.
    resume_after: u64,
    /// The head of the hub when the subscription began.
    began_at: u64,
    closed: Option<CloseReason>,
    /// How far it was behind when it was ended as too slow; 0 before.
    behind_when_ended: u64,
}

/// What a subscription is made of, besides its feeds.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) id: u64,
    pub(crate) holder: Holder,
    pub(crate) limits: Limits,
    pub(crate) signal: Arc<Signal>,
}

#[derive(Debug)]
struct Cursor<P> {
    feed: Arc<Feed<P>>,
    /// The number of the first event in the feed that was not handed out.
    next: u64,
    /// That event's sequence is not below this.
    not_before: u64,
    state: CursorState,
}

/// Where a cursor is.
#[derive(Debug, Clone, Copy)]
enum CursorState {
    /// Nowhere: history is being replayed, `next` only counts.
    Detached,
    /// At the end, registered for the next event.
    Parked(ParkKey),
    /// Before an event.
    Ready,
}

// ===== impl Subscription: public =====

impl<P: Payload> Subscription<P> {
    /// Takes what is ready into `batch`, which is cleared first, as far as there is `room`.
    ///
    /// Ready with a batch that is not empty, or with the reason why the subscription has ended; pending
    /// when nothing is there, and then `cx` is woken when something comes. Only the last waker counts.
    ///
    /// # Errors
    /// The reason why the subscription has ended.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        room: Room,
        batch: &mut Batch<P>,
    ) -> Poll<Result<(), CloseReason>> {
        batch.clear();
        if let Some(reason) = self.closed {
            return Poll::Ready(Err(reason));
        }
        let polled = match self.take(cx, room, batch) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(reason) => {
                batch.clear();
                self.closed = Some(reason);
                Poll::Ready(Err(reason))
            }
        };
        self.settle(batch);
        let held_back = self
            .ready
            .peek()
            .is_some_and(|Reverse((head, _))| *head > room.up_to);
        let left_some = self.replay.is_some() || !(self.ready.is_empty() || held_back);
        self.parts.signal.note(!batch.is_empty(), left_some);
        polled
    }

    /// Leaves out what is ahead, up to and with `sequence`, because the subscriber knows it from elsewhere; not
    /// what was sent to this client alone. What is left out takes its indexes, is counted as abandoned, and
    /// is no loss: no gap tells of it. Does nothing while a replay goes on.
    ///
    /// Two things are left in, to be told: an event that conflation holds back, and a loss that reaches
    /// beyond `sequence`, of which nobody can say how much of it would have been left out.
    pub fn pass_over(&mut self, sequence: u64) {
        if self.replay.is_some() || self.parts.limits.overflow == Overflow::Conflate {
            return;
        }
        let skipped = self.leave_out_through(sequence);
        add(&self.shared.counters.abandoned, skipped);
        self.next_index += skipped;
        self.note_standing();
    }

    /// Where a new subscription can go on after this one: everything up to here was handed out, counted
    /// by a gap, or did not match. Moves with each poll, also with one that is pending.
    #[must_use]
    pub fn position(&self) -> Position {
        self.asked
            .unwrap_or_else(|| self.shared.position(self.resume_after))
    }

    /// The position of the hub when the subscription began: the live head.
    #[must_use]
    pub fn began_at(&self) -> Position {
        self.shared.position(self.began_at)
    }

    /// The index of the next event or gap slot.
    #[must_use]
    pub const fn next_index(&self) -> u64 {
        self.next_index
    }

    /// The identity of this subscription within its hub, never used twice.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.parts.id
    }

    /// Who holds it.
    #[must_use]
    pub const fn client_id(&self) -> &ClientId {
        &self.parts.holder.client
    }

    /// Whether something live is there that was not taken, for want of room or because of
    /// [`Room::up_to`], as the last poll saw it.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether a replay was asked for and history is still being looked through: nothing was promised yet.
    #[must_use]
    pub fn is_opening(&self) -> bool {
        self.replay
            .as_ref()
            .is_some_and(|replay| replay.is_opening())
    }

    /// Whether history is still being replayed.
    #[must_use]
    pub const fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// The position of the hub now.
    #[must_use]
    pub fn head(&self) -> Position {
        self.shared.position(self.shared.committed.load(Acquire))
    }

    /// Why it has ended, as soon as that is so, whether it was polled since or not.
    #[must_use]
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.closed.or_else(|| self.parts.signal.close_reason())
    }

    /// What [`Hub::subscriptions`](crate::Hub::subscriptions) says of it.
    #[must_use]
    pub fn info(&self) -> SubscriptionInfo {
        let tally = self.parts.signal.tally();
        tally.info(self.parts.id, &self.parts.holder, self.backlog())
    }

    /// The limits in force.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.parts.limits
    }

    /// How many matching events it has still to see, those included that its limits will skip. During a
    /// replay this counts what the current round still has, and what came since. When it was ended as too
    /// slow, how many it was behind then.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        if self.behind_when_ended > 0 {
            return self.behind_when_ended;
        }
        self.ahead() + self.replay.as_ref().map_or(0, |replay| replay.remaining())
    }
}

// ===== impl Subscription: polling =====

impl<P: Payload> Subscription<P> {
    /// Fills `batch`. Returns whether there is anything in it.
    fn take(
        &mut self,
        cx: &mut Context<'_>,
        room: Room,
        batch: &mut Batch<P>,
    ) -> Result<bool, CloseReason> {
        loop {
            let Shared { committed, .. } = &*self.shared;
            let (watermark, closed) =
                self.parts
                    .signal
                    .begin_poll(cx.waker(), committed, &mut self.arrivals);
            self.absorb_arrivals();
            if let Some(reason) = closed {
                if self.ready.is_empty() && self.replay.is_none() && self.opening.is_none() {
                    self.resume_after = watermark;
                }
                return Err(reason);
            }
            if let Some((gap, caught_up)) = self.opening.take() {
                batch.gaps.extend(gap);
                batch.caught_up = Some(caught_up);
                return Ok(true);
            }
            if self.replay.is_some() {
                return Ok(self.replay(cx, room, batch));
            }
            if self.take_live(watermark.min(room.up_to), room, batch)? {
                return Ok(true);
            }
            match self.ready.peek() {
                None => {
                    self.resume_after = watermark;
                    return Ok(false);
                }
                Some(Reverse((head, _))) if *head > room.up_to => {
                    self.resume_after = self.resume_after.max(watermark.min(head - 1));
                    return Ok(false);
                }
                Some(_) => {}
            }
            // A publisher has appended beyond the watermark and is about to commit.
            self.shared.pass_through_publish_lock();
        }
    }

    /// Gives indexes to what was taken, moves the position and counts.
    fn settle(&mut self, batch: &mut Batch<P>) {
        let counters = &self.shared.counters;
        let tally = self.parts.signal.tally();
        for gap in &mut batch.gaps {
            gap.first_index = self.next_index;
            self.next_index += gap.count;
            counters.count_gap(gap);
            match gap.reason {
                GapReason::Conflated => add(&tally.conflated, gap.count),
                _ => add(&tally.lost, gap.count),
            }
            // The survivors of what was conflated are still to come.
            if gap.reason != GapReason::Conflated {
                self.resume_after = self.resume_after.max(gap.last_sequence);
            }
        }
        if !batch.is_empty() {
            self.asked = None;
        }
        batch.first_index = self.next_index;
        self.next_index += batch.events.len() as u64;
        if let Some(last) = batch.events.last() {
            self.resume_after = last.sequence();
        }
        if let Some(position) = batch.caught_up {
            self.resume_after = position.sequence;
        }
        add(&counters.handed_off, batch.events.len() as u64);
        add(&tally.handed_off, batch.events.len() as u64);
        self.note_standing();
    }

    /// Tells those who list subscriptions where this one stands.
    fn note_standing(&self) {
        let next = self.cursors.iter().map(|cursor| cursor.next);
        let replaying = self.replay.as_ref().map_or(0, |replay| replay.remaining());
        let stands_at = next.fold(0, u64::wrapping_add).wrapping_sub(replaying);
        self.parts
            .signal
            .tally()
            .stands_at
            .store(stands_at, Relaxed);
    }

    /// Takes the ready list again, in the middle of a poll. The publish lock, which guards `_state`, is held.
    fn absorb_while_locked(&mut self, _state: &State<P>) {
        self.parts
            .signal
            .take_ready_while_locked(&mut self.arrivals);
        self.absorb_arrivals();
    }

    /// How many events of the feeds the cursors have still to pass.
    fn ahead(&self) -> u64 {
        self.cursors
            .iter()
            .map(|cursor| cursor.feed.lock().end() - cursor.next)
            .sum()
    }

    fn absorb_arrivals(&mut self) {
        for Ready { cursor, head } in self.arrivals.drain(..) {
            let ready = &mut self.cursors[cursor as usize];
            (ready.state, ready.not_before) = (CursorState::Ready, head);
            self.ready.push(Reverse((head, cursor)));
        }
        // An idle subscription keeps no memory for it.
        if self.arrivals.capacity() > 16 {
            self.arrivals = Vec::new();
        }
    }
}

// ===== impl Cursor =====

impl<P: Payload> Cursor<P> {
    const fn new(feed: Arc<Feed<P>>) -> Self {
        Self {
            feed,
            next: 0,
            not_before: 0,
            state: CursorState::Detached,
        }
    }
}

fn index(i: usize) -> u32 {
    u32::try_from(i).expect("a subscription has few filters")
}

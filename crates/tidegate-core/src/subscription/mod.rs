//! A subscription: one cursor in each of its feeds, merged by sequence, each event once.
//!
//! # Example
//! A subscriber that may be two events behind misses two of four, and is told:
//! ```
//! use std::{num::NonZeroU64, task::{Context, Poll, Waker}, time::Instant};
//! use bytes::Bytes;
//! use tidegate_core::{
//!     Batch, ClientId, Filter, GapReason, Hub, HubConfig, NewEvent, Room, SubscribeOptions, Topic,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hub = Hub::new(HubConfig::new(1));
//! let mut options = SubscribeOptions::new(ClientId::new("me")?, vec![Filter::new("a")?]);
//! options.limits.max_events = NonZeroU64::new(2).expect("not zero");
//! let mut subscription = hub.subscribe(options, Instant::now())?;
//!
//! // Five events get the sequences 1 to 5. The third is on another topic, so four match: 1, 2, 4 and 5.
//! for topic in ["a", "a", "b", "a", "a"] {
//!     hub.publish([NewEvent::new(Topic::new(topic)?, Bytes::new())], Instant::now())?;
//! }
//!
//! let mut batch = Batch::default();
//! let mut cx = Context::from_waker(Waker::noop());
//! let polled = subscription.poll_next(&mut cx, Room::events(10), &mut batch);
//! assert_eq!(polled, Poll::Ready(Ok(())));
//!
//! // Two fit the limits, the newest. The other two are one gap, from sequence 1 to 2, at index 0 and 1.
//! let gap = batch.gaps[0];
//! assert_eq!(gap.reason, GapReason::Overflow);
//! assert_eq!((gap.first_sequence, gap.last_sequence, gap.count), (1, 2, 2));
//! assert_eq!(gap.first_index, 0);
//!
//! // So the first event given has the index 0 delivered + 2 counted = 2.
//! let sequences: Vec<_> = batch.events.iter().map(|event| event.sequence()).collect();
//! assert_eq!((batch.first_index, &sequences[..]), (2, &[4, 5][..]));
//!
//! // 2 delivered + 2 counted: all four are accounted for, and nothing is left.
//! assert_eq!(subscription.next_index(), 4);
//! let polled = subscription.poll_next(&mut cx, Room::events(10), &mut batch);
//! assert_eq!(polled, Poll::Pending);
//! # Ok(())
//! # }
//! ```
//!
//! # Ordering
//! Events come in the order of their sequences. So do gaps, among themselves and with events: a gap is
//! given exactly where its events are missing. One kind is the exception:
//! [`GapReason::Conflated`] counts events that newer ones replaced, and goes before those.
//!
//! # Lag
//! A subscription owns no queue; its backlog is what lies in the feeds behind its cursors. When it is
//! polled and more is behind than its limits allow, its cursors jump, oldest sequence first, until the
//! rest fits, and the events they jumped over are a [`Gap`]. What it is handed then equals, for any pace of
//! polling, what a private queue that drops its oldest at each push would have handed it.
//!
//! # Index
//! Each matching event has an index in the subscription, dense and from 0: events take one each, a gap
//! takes as many as its count. At any moment `index of the next = delivered + sum of gap counts`.
//!
//! # Resuming
//! [`Subscription::position`] is always safe to resume after: everything up to it was handed out or counted.
//! It moves with each poll. A replay of the newest events has none until it has found the first of them. [`Subscription::began_at`] never moves: it is the head of the hub at the moment
//! of subscribing, where live begins. With a replay, `position` starts before `began_at` and has reached it
//! when the subscription has caught up; without one, both start at the head.
//!
//! # Closing
//! When the subscription was closed, the next poll says why, and so does every poll after. Events that it
//! had not handed out stay behind, for a new subscription to resume. Dropping it frees at once everything
//! that it held.
//!
//! # A gap versus a close
//! A gap is a loss within a stream that goes on: these events are missing, the next ones follow, and you
//! need not do anything, except where your state depends on every event. A close is the end of the
//! subscription and no loss: nothing was skipped up to [`Subscription::position`], and a new subscription
//! that starts [`After`](crate::Start::After) it gets what follows, as far as history has it. An overflow
//! makes a gap by default, and a close with [`Overflow::Disconnect`].

mod begin;
mod conflate;
mod live;
mod losses;
mod replaying;
mod room;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    mem,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use crate::{
    close::CloseReason,
    counters::add,
    event::{Event, Payload, Position},
    feed::{Feed, ParkKey},
    freed::Freed,
    gap::{Gap, GapReason},
    info::{Holder, SubscriptionInfo},
    limits::{Limits, Overflow},
    publish::{Shared, State},
    registry::give_up_on,
    replay::Replay,
    sending::Sending,
    signal::{Ready, Signal},
    standing::Standing,
    topic::ClientId,
};

use losses::{Loss, Losses};

pub use room::{Batch, EventRange, Room};

/// The feeds that are looked at for what a consumer has kept: that of the filters, that of the client's own topic, and
/// two more. Consumers ask for each thing that they keep.
const FEEDS_TO_LOOK_AT: usize = 4;

/// One subscriber's cursors in the hub. See [the module](self).
#[derive(Debug)]
pub struct Subscription<P: Payload> {
    /// The hub.
    shared: Arc<Shared<P>>,
    /// Identity, holder, limits and signal.
    parts: Parts,
    /// Its places in its feeds, for listings.
    standing: Arc<Standing<P>>,
    /// One in each feed, in the order of the feeds; that of the client's own topic is the last.
    cursors: Box<[Cursor<P>]>,
    /// The cursors that stand before an event, by the sequence of the event numbered `next` in their feed, lowest first:
    /// the first that was neither handed out nor counted. Empty during a replay, up to its last round.
    ready: BinaryHeap<Reverse<(u64, u32)>>,
    /// Scratch space for the ready list of the signal; empty between polls.
    arrivals: Vec<Ready>,
    /// The reading of history, until it has caught up.
    replay: Option<Box<Replay<P>>>,
    /// How much work of a replay the last poll did.
    work: u64,
    /// The answer to the first poll where a replay has nothing to read: a gap before the first event, and the
    /// position at which it caught up. In a box, because it is gone after that poll.
    opening: Option<Box<(Option<Gap>, Position)>>,
    /// The position that was asked for, until the subscriber has been told what is missing from there.
    asked: Option<Position>,
    /// Events that a conflating cursor has passed because they were replaced, and that no gap has told of yet. Told with
    /// the next events.
    replaced: Loss,
    /// The index of the next event or gap.
    next_index: u64,
    /// Everything up to this sequence was handed out or counted, or did not match.
    resume_after: u64,
    /// The head of the hub when the subscription began.
    began_at: u64,
    /// The epoch of its sequences. It ends when the hub begins another.
    epoch: u64,
    /// The sequence up to which ranges that the hub was never handed were told, or are before the subscription.
    told_lost: u64,
    /// The count of losses of the hub at which nothing was left to tell.
    seen_losses: u64,
    /// The reason that a poll has returned; every later poll returns it again.
    closed: Option<CloseReason>,
    /// How far it was behind when it was ended as too slow; 0 before.
    behind_when_ended: u64,
}

/// The parts of a subscription that exist before it has feeds.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Its identity within the hub, never used twice.
    pub(crate) id: u64,
    /// The client and principal that hold it.
    pub(crate) holder: Holder,
    /// The limits in force.
    pub(crate) limits: Limits,
    /// The place where publishers reach it.
    pub(crate) signal: Arc<Signal>,
}

/// A subscription's place in one feed.
#[derive(Debug)]
struct Cursor<P> {
    /// The feed it is in.
    feed: Arc<Feed<P>>,
    /// The number of the first event in the feed that was neither handed out nor counted.
    next: u64,
    /// Whether the feed counts it, and whether it waits there.
    state: CursorState,
}

/// The state of a cursor.
#[derive(Debug, Clone, Copy)]
enum CursorState {
    /// Not in the feed: history is being replayed, and `next` only counts live events.
    Detached,
    /// At the end, registered for the next event.
    Parked(ParkKey),
    /// Before an event.
    Ready,
}

// ===== impl Subscription: public =====

impl<P: Payload> Subscription<P> {
    /// Takes the events that are ready into `batch`, as far as there is `room`. Clears `batch` first.
    ///
    /// Ready with a batch that is not empty, or with the reason why the subscription has ended; pending
    /// when nothing is there, and then `cx` is woken when something comes. Only the last waker counts.
    /// During a replay it may be pending with `cx` woken already, to let other tasks run.
    ///
    /// The gaps of a batch stand before its events. Events in a batch are handed out: they take their
    /// indexes, and [`position`](Self::position) moves behind them. There is no future to cancel; between
    /// polls nothing is half taken.
    ///
    /// # Errors
    /// The reason why the subscription has ended, on this and every further poll.
    ///
    /// # Examples
    /// [The module](self) has one with a gap.
    ///
    /// A poll takes at least one event and at most the room:
    /// ```
    /// # use std::{task::{Context, Waker}, time::Instant};
    /// # use bytes::Bytes;
    /// # use tidegate_core::{Batch, ClientId, Filter, Hub, HubConfig, NewEvent, Room, SubscribeOptions, Topic};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = Hub::new(HubConfig::new(1));
    /// # let options = SubscribeOptions::new(ClientId::new("me")?, vec![Filter::everything()]);
    /// # let mut subscription = hub.subscribe(options, Instant::now())?;
    /// # let mut cx = Context::from_waker(Waker::noop());
    /// let topic = Topic::new("a")?;
    /// let events = (0..5).map(|_| NewEvent::new(topic.clone(), Bytes::from_static(&[7; 100])));
    /// hub.publish(events, Instant::now())?;
    ///
    /// // 250 bytes hold two events of 100.
    /// let room = Room { bytes: 250, ..Room::events(64) };
    /// let mut batch = Batch::default();
    /// let mut taken = Vec::new();
    /// while subscription.poll_next(&mut cx, room, &mut batch).is_ready() {
    ///     taken.push(batch.events.len());
    /// }
    /// assert_eq!(taken, [2, 2, 1]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        room: Room,
        batch: &mut Batch<P>,
    ) -> Poll<Result<(), CloseReason>> {
        self.poll_next_unless_kept(cx, room, None, batch)
    }

    /// Does what [`poll_next`](Self::poll_next) does, but leaves the events out of `batch` if they are exactly the range
    /// `kept`: then [`Batch::range`] is that range, and [`Batch::events`] is empty. They are handed out all the same.
    ///
    /// It saves the work of a reference to each event, where many subscriptions are handed the same. Ask
    /// [`stands_at`](Self::stands_at) which of the ranges that you keep may be next.
    ///
    /// # Errors
    /// The reason why the subscription has ended, as of `poll_next`.
    ///
    /// # Examples
    /// ```
    /// # use std::{task::{Context, Waker}, time::Instant};
    /// # use bytes::Bytes;
    /// # use tidegate_core::{Batch, ClientId, Filter, Hub, HubConfig, NewEvent, Room, SubscribeOptions, Topic};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = Hub::new(HubConfig::new(1));
    /// # let subscribe = |client| -> Result<_, Box<dyn std::error::Error>> {
    /// #     let options = SubscribeOptions::new(ClientId::new(client)?, vec![Filter::new("a")?]);
    /// #     Ok(hub.subscribe(options, Instant::now())?)
    /// # };
    /// # let mut cx = Context::from_waker(Waker::noop());
    /// let (mut one, mut other) = (subscribe("1")?, subscribe("2")?);
    /// let topic = Topic::new("a")?;
    /// hub.publish((0..9).map(|_| NewEvent::new(topic.clone(), Bytes::new())), Instant::now())?;
    ///
    /// let mut batch = Batch::default();
    /// assert!(one.poll_next(&mut cx, Room::events(64), &mut batch).is_ready());
    /// let kept = batch.range.expect("nine of one feed, without a gap");
    ///
    /// assert!(other.stands_at(&kept));
    /// let polled = other.poll_next_unless_kept(&mut cx, Room::events(64), Some(kept), &mut batch);
    /// assert!(polled.is_ready());
    /// assert_eq!((batch.range, batch.events.len()), (Some(kept), 0));
    /// assert_eq!(other.next_index(), 9);
    /// # Ok(())
    /// # }
    /// ```
    pub fn poll_next_unless_kept(
        &mut self,
        cx: &mut Context<'_>,
        room: Room,
        kept: Option<EventRange>,
        batch: &mut Batch<P>,
    ) -> Poll<Result<(), CloseReason>> {
        batch.clear();
        self.work = 0;
        if let Some(reason) = self.closed {
            return Poll::Ready(Err(reason));
        }
        let polled = match self.take(cx, room, kept.as_ref(), batch) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(reason) => {
                batch.clear();
                self.closed = Some(reason);
                Poll::Ready(Err(reason))
            }
        };
        self.settle(batch);
        // An event that waits for `up_to` to rise is not the subscriber's fault: no sweep may call it stalled.
        let held_back = self
            .ready
            .peek()
            .is_some_and(|Reverse((head, _))| *head > room.up_to);
        let left_some = self.replay.is_some() || !(self.ready.is_empty() || held_back);
        // A search of history that has found nothing yet is the hub at work, and its consumer did its part: it polled.
        let is_progress = !batch.is_empty() || self.replay.is_some();
        self.parts.signal.note(is_progress, left_some);
        polled
    }

    /// Returns whether the subscription has come to the first event of `range` in the feed of that, so that a poll may hand
    /// out the range next. It takes no lock, and looks at four feeds at most: a subscription with more is told of no range.
    #[must_use]
    pub fn stands_at(&self, range: &EventRange) -> bool {
        self.cursors.len() <= FEEDS_TO_LOOK_AT
            && self
                .cursors
                .iter()
                .any(|cursor| cursor.next == range.first && cursor.feed.id() == range.feed)
    }

    /// Looks whether the subscription has ended, for a consumer that can take nothing now. Pending, `cx` is woken for the end
    /// alone, and events that come wake nobody: call [`poll_next`](Self::poll_next) when the consumer can take something
    /// again. Only the last waker counts, of either.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        if self.closed.is_none() && !self.parts.signal.wait_for_end(cx.waker()) {
            return Poll::Pending;
        }
        let nothing = Room {
            up_to: 0,
            ..Room::events(0)
        };
        match self.poll_next(cx, nothing, &mut Batch::default()) {
            Poll::Ready(Err(reason)) => Poll::Ready(reason),
            _ => Poll::Pending,
        }
    }

    /// Notes that the consumer took something besides what polls hand out: a piece of a large event, a value of a
    /// snapshot. For [sweeps](crate::Hub::sweep), which take a consumer for stalled that takes nothing.
    pub fn note_progress(&mut self) {
        self.parts.signal.note_progress();
    }

    /// Counts an event of this subscription as being sent, for as long as the result lives: do so for an event so large
    /// that the transport holds its memory while a peer takes it piece by piece.
    ///
    /// Such events may hold half of the [memory budget](crate::HubConfig::memory_budget), each counted once, however
    /// many subscriptions send it. When this one goes beyond, those that have been sending the longest are
    /// ended as [stalled](CloseReason::Stalled) and their [transports](crate::Transport::reset) told to give
    /// up, this one never.
    ///
    /// # Examples
    /// ```
    /// # use std::{sync::Arc, task::{Context, Waker}, time::Instant};
    /// # use bytes::Bytes;
    /// # use tidegate_core::{Batch, ClientId, Filter, Hub, HubConfig, NewEvent, Room, SubscribeOptions, Topic};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = Hub::new(HubConfig::new(1));
    /// # let options = SubscribeOptions::new(ClientId::new("me")?, vec![Filter::everything()]);
    /// # let mut subscription = hub.subscribe(options, Instant::now())?;
    /// # let mut cx = Context::from_waker(Waker::noop());
    /// # let mut batch = Batch::default();
    /// let event = NewEvent::new(Topic::new("a")?, Bytes::from(vec![0; 1 << 20]));
    /// hub.publish([event], Instant::now())?;
    /// assert!(subscription.poll_next(&mut cx, Room::events(1), &mut batch).is_ready());
    ///
    /// let sending = subscription.send(Arc::clone(&batch.events[0]));
    /// assert!(hub.stats().sending_bytes >= 1 << 20);
    /// // The transport takes `sending.payload()` piece by piece.
    /// drop(sending);
    /// assert_eq!(hub.stats().sending_bytes, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn send(&self, event: Arc<Event<P>>) -> Sending<P> {
        let (sending, to_end) = Sending::begin(event, &self.shared.senders, &self.parts.signal);
        if !to_end.is_empty() {
            let (ended, reset) = give_up_on(&to_end);
            add(&self.shared.counters.ended_stalled, ended);
            add(&self.shared.counters.reset, reset);
        }
        sending
    }

    /// Whether the events that are being [sent](Self::send) have used half of their share of the memory budget. Then
    /// hand the transport copies of the pieces.
    ///
    /// A transport may keep a piece of an event after its stream was reset, for as long as it cannot write. A piece that
    /// shares the event's memory keeps all of the event, and nothing else can free it.
    #[must_use]
    pub fn is_sending_much(&self) -> bool {
        self.shared.senders.is_half_used()
    }

    /// Skips the events ahead up to and with `sequence`, because the subscriber knows them from elsewhere,
    /// such as a snapshot. Events to this client alone are not skipped. Skipped events take their indexes and
    /// are counted as abandoned; they are no loss, so no gap tells of them.
    ///
    /// Does nothing during a replay and for a subscription that conflates. A loss that reaches beyond
    /// `sequence` is left for the next poll to tell, because how much of it lies before is not known.
    pub fn pass_over(&mut self, sequence: u64) {
        if self.replay.is_some() || self.parts.limits.overflow == Overflow::Conflate {
            return;
        }
        let skipped = self.leave_out_through(sequence);
        self.told_lost = self.told_lost.max(sequence);
        add(&self.shared.counters.abandoned, skipped);
        self.next_index += skipped;
        self.note_standing();
    }

    /// The position at which a new subscription can go on after this one: everything up to here was handed
    /// out, counted by a gap, or did not match. Moves with each poll, also with one that is pending.
    ///
    /// Until the first batch of a subscription that asked for [`Start::After`](crate::Start::After), it is
    /// the position that was asked for. `None` while a subscription that asked for
    /// [`Start::Last`](crate::Start::Last) has not found where its replay begins: no position would bring what was
    /// asked for, so ask for it again.
    ///
    /// # Examples
    /// Pass it to [`Start::After`](crate::Start::After): [`Hub::subscribe`](crate::Hub::subscribe) has the
    /// whole round. Unlike [`began_at`](Self::began_at) it moves:
    /// ```
    /// # use std::{task::{Context, Waker}, time::Instant};
    /// # use bytes::Bytes;
    /// # use tidegate_core::{Batch, ClientId, Filter, Hub, HubConfig, NewEvent, Room, SubscribeOptions, Topic};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = Hub::new(HubConfig::new(1));
    /// # let mut cx = Context::from_waker(Waker::noop());
    /// let publish = |topic| {
    ///     hub.publish([NewEvent::new(Topic::new(topic).unwrap(), Bytes::new())], Instant::now())
    /// };
    /// publish("a")?;
    /// let options = SubscribeOptions::new(ClientId::new("me")?, vec![Filter::new("a")?]);
    /// let mut subscription = hub.subscribe(options, Instant::now())?;
    /// publish("a")?;
    /// publish("b")?;
    /// let places = |it: &tidegate_core::Subscription<Bytes>| {
    ///     (it.began_at().sequence, it.position().expect("it began live").sequence)
    /// };
    ///
    /// // It began behind the first event.
    /// assert_eq!(places(&subscription), (1, 1));
    /// // The second was handed out.
    /// let mut batch = Batch::default();
    /// assert!(subscription.poll_next(&mut cx, Room::events(10), &mut batch).is_ready());
    /// assert_eq!(places(&subscription), (1, 2));
    /// // The third does not match: a poll that is pending moves behind it.
    /// assert!(subscription.poll_next(&mut cx, Room::events(10), &mut batch).is_pending());
    /// assert_eq!(places(&subscription), (1, 3));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        let settled = || (!self.is_opening()).then(|| self.position_at(self.resume_after));
        self.asked.or_else(settled)
    }

    /// The position of the hub when the subscription began, where live begins. Never moves;
    /// [`position`](Self::position) does.
    #[must_use]
    pub fn began_at(&self) -> Position {
        self.position_at(self.began_at)
    }

    /// The index of the next event, or of the first event in the next gap.
    #[must_use]
    pub const fn next_index(&self) -> u64 {
        self.next_index
    }

    /// The identity of this subscription within its hub, never used twice.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.parts.id
    }

    /// The client that holds it.
    #[must_use]
    pub const fn client_id(&self) -> &ClientId {
        &self.parts.holder.client
    }

    /// Whether the last poll left live events untaken, for want of room or because of [`Room::up_to`].
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether history is still being searched for the start of a replay. Until then the subscription has
    /// promised nothing, and gives nothing.
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

    /// How much work the last poll did to match events of history with the filters: some 20 ns each. It is bounded, at
    /// about 0.1 ms, and 0 outside of a replay. A task that polls many subscriptions can sum it up, and let others run
    /// when it has done enough.
    #[must_use]
    pub const fn work(&self) -> u64 {
        self.work
    }

    /// The position of the hub now, as [`Hub::position`](crate::Hub::position) says.
    #[must_use]
    pub fn head(&self) -> Position {
        self.shared.position()
    }

    /// The reason why it has ended, from that moment on, whether it was polled since or not.
    #[must_use]
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.closed.or_else(|| self.parts.signal.close_reason())
    }

    /// Its entry in [`Hub::subscriptions`](crate::Hub::subscriptions).
    #[must_use]
    pub fn info(&self) -> SubscriptionInfo {
        let tally = self.parts.signal.tally();
        let Parts { id, holder, .. } = &self.parts;
        tally.info(*id, holder, self.backlog(), self.standing.look().1)
    }

    /// The limits in force.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.parts.limits
    }

    /// How many matching events it has still to see, including those that its limits will skip. During a
    /// replay: the rest of the current round, and the live events since the round began. After it was ended
    /// as too slow: how many it was behind then.
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
    /// Fills `batch`, by the subscriber's half of the protocol in [`signal`](crate::signal). Returns whether
    /// anything is in it.
    fn take(
        &mut self,
        cx: &mut Context<'_>,
        room: Room,
        kept: Option<&EventRange>,
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
                // Nothing up to the watermark is left untaken: whoever resumes need not look at it again.
                if self.ready.is_empty()
                    && self.replay.is_none()
                    && self.opening.is_none()
                    && let Some(barrier) = self.barrier()
                {
                    self.pass_unmatched(watermark.min(barrier));
                }
                return Err(reason);
            }
            if let Some(opening) = self.opening.take() {
                let (gap, caught_up) = *opening;
                batch.gaps.extend(gap);
                batch.caught_up = Some(caught_up);
                return Ok(true);
            }
            if self.replay.is_some() {
                return Ok(self.replay(cx, room, batch));
            }
            let Some(barrier) = self.barrier() else {
                // It has ended meanwhile. Whoever has ended it has taken the waker, and wakes it.
                return Ok(false);
            };
            if self.take_live(watermark, room.before(barrier), kept, batch)? {
                return Ok(true);
            }
            // What was never handed over is told like the events that it may have been: where the room has come to it,
            // and nothing before it is left.
            if barrier < watermark.min(room.up_to) && self.tell_lost(barrier + 1, batch) {
                return Ok(true);
            }
            let head = self.ready.peek().map(|Reverse((head, _))| *head);
            let is_held_back = match head {
                // All feeds are parked and the waker is stored: whatever comes now wakes.
                None => true,
                // Held back by the room; unless the room has let through all that was committed, and the event is not.
                Some(head) => head > room.up_to && (head <= watermark || room.up_to < watermark),
            };
            if is_held_back {
                self.pass_unmatched(watermark.min(barrier));
                return Ok(false);
            }
            // A publisher has appended beyond the watermark and is about to commit. Its wake-up may have gone
            // to an earlier waker, so parking here could sleep on a ready feed: wait for it, and look again.
            // Also for who would poll again by a timer: with one that is due, they would spin until the commit.
            self.shared.pass_through_publish_lock();
        }
    }

    /// The sequence before the first range that the hub was never handed and that is still to be told, [`u64::MAX`] if
    /// there is none. `None` when the hub has begun another epoch.
    fn barrier(&mut self) -> Option<u64> {
        // Relaxed: what was lost up to the watermark of this poll was counted before that was stored.
        let losses = self.shared.losses.load(Relaxed);
        if losses == self.seen_losses {
            return Some(u64::MAX);
        }
        let history = self.shared.history.lock();
        if history.epoch() != self.epoch {
            return None;
        }
        let next = history.lost_after(self.told_lost, u64::MAX, false);
        drop(history);
        if next.is_none() {
            self.seen_losses = losses;
        }
        Some(next.map_or(u64::MAX, |(first, _)| first - 1))
    }

    /// Tells of the range that begins at `first`: nothing that comes before it is left in the feeds. What was replaced
    /// before it is told with it, because the position goes behind both. Returns whether there is anything to give: not
    /// when the hub has begun another epoch.
    fn tell_lost(&mut self, first: u64, batch: &mut Batch<P>) -> bool {
        let mut losses = Losses {
            conflated: mem::take(&mut self.replaced),
            ..Losses::default()
        };
        let mut freed = Freed::new();
        let last = {
            let history = self.shared.history.lock();
            let lost = history.lost_after(first - 1, first, false);
            lost.filter(|_| history.epoch() == self.epoch)
                .map_or(0, |(_, last)| last)
        };
        // Where two ranges have become one there were events between them. They were evicted, and are counted with it.
        if matches!(self.ready.peek(), Some(Reverse((head, _))) if *head <= last) {
            match self.parts.limits.overflow {
                Overflow::Conflate => self.drop_survivors(last, &mut losses, &mut freed),
                _ => self.skip_through(last, &mut losses, &mut freed),
            }
        }
        freed.clear();
        let lost = self.lost_up_to(first.max(losses.last()));
        losses.into_gaps(lost, &mut batch.gaps);
        !batch.gaps.is_empty()
    }

    /// The ranges that the hub was never handed, that were not told, and that begin at `sequence` or before, as one. They
    /// count as told from here on.
    fn lost_up_to(&mut self, sequence: u64) -> Option<(u64, u64)> {
        if self.shared.losses.load(Relaxed) == self.seen_losses {
            return None;
        }
        let history = self.shared.history.lock();
        if history.epoch() != self.epoch {
            return None;
        }
        let lost = history.lost_after(self.told_lost, sequence, true)?;
        self.told_lost = lost.1;
        Some(lost)
    }

    /// A position of the epoch of this subscription.
    const fn position_at(&self, sequence: u64) -> Position {
        Position {
            epoch: self.epoch,
            sequence,
        }
    }

    /// Moves the position up to the first event that is still to be handed out or counted, or told of, and to
    /// `watermark` at most. Events before that which are in no feed of this subscription did not match.
    fn pass_unmatched(&mut self, watermark: u64) {
        let head = self.ready.peek().map(|Reverse((head, _))| *head);
        let unsettled = head.into_iter().chain(self.replaced.first()).min();
        let settled = unsettled.map_or(u64::MAX, |sequence| sequence - 1);
        self.resume_after = self.resume_after.max(watermark.min(settled));
    }

    /// Gives indexes to the gaps and events of `batch`, in that order, moves the position and counts.
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
            // The survivors of a conflated run are still to come, some with lower sequences than its end: whoever
            // resumed behind it would miss them.
            if gap.reason != GapReason::Conflated {
                self.resume_after = self.resume_after.max(gap.last_sequence);
            }
        }
        // From here on the subscriber knows what is missing behind the position it asked for.
        if !batch.is_empty() {
            self.asked = None;
        }
        batch.first_index = self.next_index;
        let handed_off = batch.count();
        self.next_index += handed_off;
        if let Some(last) = batch.last_sequence() {
            self.resume_after = last;
        }
        if let Some(position) = batch.caught_up {
            self.resume_after = position.sequence;
        }
        add(&counters.handed_off, handed_off);
        add(&tally.handed_off, handed_off);
        self.note_standing();
    }

    /// Updates the tally that listings read, so that they can compute the backlog.
    fn note_standing(&self) {
        let next = self.cursors.iter().map(|cursor| cursor.next);
        let replaying = self.replay.as_ref().map_or(0, |replay| replay.remaining());
        let untold = replaying + self.replaced.count;
        let stands_at = next.fold(0, u64::wrapping_add).wrapping_sub(untold);
        let tally = self.parts.signal.tally();
        tally.stands_at.store(stands_at, Relaxed);
        tally.untold.store(self.replaced.count, Relaxed);
    }

    /// Takes the ready list again, in the middle of a poll. The publish lock, which guards `_state`, is held:
    /// every event that was appended is committed, and none is added.
    fn absorb_while_locked(&mut self, _state: &State<P>) {
        self.parts
            .signal
            .take_ready_while_locked(&mut self.arrivals);
        self.absorb_arrivals();
    }

    /// How many events the cursors have still to pass in their feeds, or have passed and not told of.
    fn ahead(&self) -> u64 {
        let cursors = self.cursors.iter();
        let ahead = cursors.map(|cursor| cursor.feed.lock().end() - cursor.next);
        ahead.sum::<u64>() + self.replaced.count
    }

    /// Makes the cursors that have arrived ready. A feed is on the ready list once, so no cursor is twice here.
    fn absorb_arrivals(&mut self) {
        for Ready { cursor, head } in self.arrivals.drain(..) {
            self.cursors[cursor as usize].state = CursorState::Ready;
            self.ready.push(Reverse((head, cursor)));
        }
        // An idle subscription of many feeds keeps no memory for it. 16 entries are 256 bytes, enough for
        // the few feeds that most have.
        if self.arrivals.capacity() > 16 {
            self.arrivals = Vec::new();
        }
    }
}

// ===== impl Cursor =====

impl<P: Payload> Cursor<P> {
    /// A cursor that is not in the feed yet.
    const fn new(feed: Arc<Feed<P>>) -> Self {
        Self {
            feed,
            next: 0,
            state: CursorState::Detached,
        }
    }
}

/// The number of a cursor as the feeds keep it.
fn index(i: usize) -> u32 {
    u32::try_from(i).expect("a subscription has few filters")
}

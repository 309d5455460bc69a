//! A subscription as a stream of values.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream;
use tidegate_core::{Batch, ClientId, CloseReason, Filter, GapReason, Position, Room};
use tokio::sync::oneshot;
use tonic::Status;

use super::{
    chunk::{Rest, write_messages},
    entry::Entry,
    hooks::{Arrival, Departure, LeaveReason},
    inner::Inner,
    losses::{Losses, Outcome},
    shared::{EncodedValue, Shared},
    snapshot::{Load, Stage, Step},
    value::Value,
};
use crate::{
    framing::{CHUNK_BYTES, PREFIX},
    reason::Reason,
    status::{self, reconnect_delay},
};

/// From how many bytes on a chunk is worth a system call of its own.
const FULL_CHUNK_BYTES: u64 = CHUNK_BYTES as u64 / 2;

/// The most places for events that an idle subscription keeps.
const IDLE_CAPACITY: usize = 16;

/// A subscription: a stream of shared values, for tonic as the stream of a method, and for the process
/// itself.
///
/// # Pull
/// Nothing is taken from the hub before the stream is polled, and tonic polls when HTTP/2 flow control lets
/// it send. One poll takes at most 16 KiB. When that much was yielded the stream is pending once, and wakes
/// whoever polls it: a task that reads it gives way to others, and tonic, where it encodes, sends one frame.
///
/// # Ending
/// It ends with a status other than OK, after which it yields nothing: when the hub ends it, or by its policy
/// for losses. Dropping it unsubscribes, at once.
///
/// # Cancel safety
/// Everything is in the stream itself: a future that waits for its next item, as `StreamExt::next` makes one,
/// can be dropped at any moment, in a `select!` for example, and nothing is lost.
#[must_use = "dropping it unsubscribes"]
pub struct Subscription<T: Value> {
    hub: Arc<Inner<T>>,
    core: tidegate_core::Subscription<EncodedValue<T>>,
    /// What was taken and not yielded: gaps, then events, each with the next at its end.
    batch: Batch<EncodedValue<T>>,
    /// How much one poll takes from the hub: what is taken can no longer be dropped.
    room: Room,
    /// Whether what was taken is a chunk: the stream is pending once before more is taken.
    chunk_is_full: bool,
    losses: Losses<T>,
    /// Until all of the snapshot was yielded.
    snapshot: Option<Box<Stage<T>>>,
    /// What the snapshot told: live begins after this sequence.
    snapshot_up_to: u64,
    entry: Arc<Entry>,
    /// Set when it has ended: nothing comes after.
    ended: Option<LeaveReason>,
}

/// Ready when the subscription that it is of has gone. See [`Subscription::closed`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Closed(oneshot::Receiver<Departure>);

// ===== impl Subscription =====

impl<T: Value> Subscription<T> {
    pub(super) fn new(
        hub: Arc<Inner<T>>,
        core: tidegate_core::Subscription<EncodedValue<T>>,
        filters: Vec<Filter>,
        losses: Losses<T>,
        snapshot: Option<Load<T>>,
    ) -> Self {
        let entry = Arc::new(Entry {
            client_id: core.client_id().clone(),
            filters: filters.clone().into(),
            state: Mutex::default(),
        });
        hub.entries().insert(core.id(), Arc::clone(&entry));
        let position_bytes = hub.position.len(u64::MAX);
        let mut subscription = Self {
            snapshot: None,
            snapshot_up_to: 0,
            hub,
            core,
            batch: Batch::default(),
            room: Room {
                events: usize::MAX,
                bytes: CHUNK_BYTES as u64,
                overhead: (PREFIX + position_bytes) as u64,
                up_to: u64::MAX,
            },
            chunk_is_full: false,
            losses,
            entry,
            ended: None,
        };
        // From here on there is something that unsubscribes if code of the application panics.
        subscription.hub.hooks.joined(Arrival {
            client_id: subscription.client_id().clone(),
            subscription_id: subscription.id(),
            filters,
        });
        subscription.snapshot = snapshot.map(|load| {
            let loading = load(subscription.core.began_at());
            Box::new(Stage::Loading(loading))
        });
        subscription
    }

    /// Who holds it.
    #[must_use]
    pub const fn client_id(&self) -> &ClientId {
        self.core.client_id()
    }

    /// The identity of this subscription within its hub.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.core.id()
    }

    /// The position of the hub when it was opened: what it is given live comes after.
    #[must_use]
    pub fn began_at(&self) -> Position {
        self.core.began_at()
    }

    /// Where another subscription can go on after this one: everything up to here was yielded, counted by a gap
    /// that was settled, or did not match.
    #[must_use]
    pub fn position(&self) -> Position {
        let gap = self.batch.gaps.last().map(|gap| gap.first_sequence);
        let event = self.batch.events.last().map(|event| event.sequence());
        let mut position = self.core.position();
        if let Some(first) = gap.into_iter().chain(event).min() {
            position.sequence = first.saturating_sub(1);
        }
        position
    }

    /// How many matching events it has still to see.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.core.backlog() + self.batch.events.len() as u64
    }

    /// A future that is ready when this subscription has gone, for whatever cause, with the reason and what
    /// it had come to: for the handler to spawn what it has to do then.
    pub fn closed(&self) -> Closed {
        let (sender, receiver) = oneshot::channel();
        self.entry.lock().waiting.push(sender);
        Closed(receiver)
    }

    /// The next of what was taken from the hub.
    fn next_item(&mut self) -> Option<Result<Shared<T>, Status>> {
        while let Some(gap) = self.batch.gaps.pop() {
            if gap.reason == GapReason::Conflated && gap.last_sequence <= self.snapshot_up_to {
                continue;
            }
            match self.losses.settle(&gap) {
                Outcome::Message(message) => return Some(Ok(message)),
                Outcome::Nothing => {}
                Outcome::Failure(status) => return Some(Err(self.fail(status))),
            }
        }
        loop {
            let event = self.batch.events.pop()?;
            if event.sequence() > self.snapshot_up_to || event.topic().is_reserved() {
                return Some(Ok(Shared::published(event)));
            }
        }
    }

    /// Takes from the hub what makes a chunk.
    fn poll_hub(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let polled = self.core.poll_next(cx, self.room, &mut self.batch);
        if polled.is_pending() && self.batch.events.capacity() > IDLE_CAPACITY {
            self.batch.events.shrink_to(IDLE_CAPACITY);
        }
        polled.map_err(|reason| self.end(reason))
    }

    /// Leaves to [`next_item`](Self::next_item) what was taken from the hub.
    fn reverse_batch(&mut self) {
        self.batch.gaps.reverse();
        self.batch.events.reverse();
    }

    /// The next chunk, as long as there is nothing but events: they as gRPC messages, and of a single one that is
    /// larger than a chunk, the rest of it. `None` when items have to be polled, one by one.
    pub(super) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(Bytes, Rest), Status>>> {
        let has_items = !self.batch.gaps.is_empty() || !self.batch.events.is_empty();
        if has_items || self.snapshot.is_some() || self.ended.is_some() {
            return Poll::Ready(None);
        }
        if let Err(status) = ready!(self.poll_hub(cx)) {
            return Poll::Ready(Some(Err(status)));
        }
        let first = self.batch.events.first();
        let is_in_snapshot = first.is_none_or(|event| event.sequence() <= self.snapshot_up_to);
        if !self.batch.gaps.is_empty() || is_in_snapshot {
            self.reverse_batch();
            return Poll::Ready(None);
        }
        let events = &self.batch.events;
        let mut rest = Rest::default();
        // A message tells no index.
        let chunk = self.hub.sharing.chunk(0, events, || {
            let (chunk, left) = write_messages(events);
            rest = left;
            chunk
        });
        self.batch.clear();
        Poll::Ready(Some(Ok((chunk, rest))))
    }

    /// Goes on with the snapshot. Ready with a value of it or with what ended it, or with `None` when all of
    /// it was yielded.
    fn poll_snapshot(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Shared<T>, Status>>> {
        while let Some(stage) = &mut self.snapshot {
            match stage.poll(cx) {
                Poll::Pending => return self.poll_end(cx).map(|status| Some(Err(status))),
                Poll::Ready(Step::Value(value)) => return Poll::Ready(Some(Ok(value))),
                Poll::Ready(Step::Failed(status)) => {
                    return Poll::Ready(Some(Err(self.fail(status))));
                }
                Poll::Ready(Step::Done) => self.snapshot = None,
                Poll::Ready(Step::Loaded(position)) => {
                    if let Err(status) = self.continue_from(position) {
                        return Poll::Ready(Some(Err(self.fail(status))));
                    }
                }
            }
        }
        Poll::Ready(None)
    }

    /// Looks whether the hub has ended the subscription, and takes nothing.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        let room = Room {
            up_to: 0,
            ..self.room
        };
        match self.core.poll_next(cx, room, &mut self.batch) {
            Poll::Ready(Err(reason)) => Poll::Ready(self.end(reason)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    /// Live begins after `position`, which the snapshot is at.
    fn continue_from(&mut self, position: Position) -> Result<(), Status> {
        let began_at = self.core.began_at();
        if position.epoch != began_at.epoch || position.sequence < began_at.sequence {
            let problem = "the snapshot is older than the subscription";
            return Err(Reason::Internal.status(problem));
        }
        self.snapshot_up_to = position.sequence;
        self.core.pass_over(position.sequence);
        Ok(())
    }

    fn fail(&mut self, status: Status) -> Status {
        self.ended = Some(LeaveReason::Failed);
        status
    }

    fn end(&mut self, reason: CloseReason) -> Status {
        self.ended = Some(LeaveReason::Ended(reason));
        let given = match reason {
            CloseReason::Disconnected => self.entry.lock().status.take(),
            _ => None,
        };
        given.unwrap_or_else(|| {
            if self.snapshot.is_some() {
                // It has no position to resume from.
                return status::ended_without_position(reason);
            }
            let delay = reconnect_delay(self.core.id(), self.hub.reconnect_spread);
            status::ended(reason, &self.core, delay)
        })
    }

    fn departure(&self) -> Departure {
        let info = self.core.info();
        let not_yielded = self.batch.events.len() as u64;
        let reason = self
            .ended
            .or_else(|| self.core.close_reason().map(LeaveReason::Ended));
        Departure {
            client_id: info.client_id,
            subscription_id: info.id,
            reason: reason.unwrap_or(LeaveReason::Dropped),
            delivered: info.handed_off - not_yielded,
            lost: info.lost,
            conflated: info.conflated,
            backlog: info.backlog + not_yielded,
            position: self.position(),
        }
    }
}

impl<T: Value> Stream for Subscription<T> {
    type Item = Result<Shared<T>, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if this.ended.is_some() {
                return Poll::Ready(None);
            }
            if this.snapshot.is_some() {
                match this.poll_snapshot(cx) {
                    Poll::Ready(None) => {}
                    polled => return polled,
                }
            }
            if let Some(item) = this.next_item() {
                return Poll::Ready(Some(item));
            }
            if mem::take(&mut this.chunk_is_full) {
                // tonic makes a chunk of what it has when a stream is pending, or else of 32 KiB and the event
                // that goes beyond. h2 would send that in three frames, each with a system call of its own.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Err(status) = ready!(this.poll_hub(cx)) {
                return Poll::Ready(Some(Err(status)));
            }
            let sizes = this.batch.events.iter().map(|event| event.size());
            this.chunk_is_full = sizes.sum::<u64>() >= FULL_CHUNK_BYTES;
            this.reverse_batch();
        }
    }
}

// Nothing in it is pinned.
impl<T: Value> Unpin for Subscription<T> {}

impl<T: Value> Drop for Subscription<T> {
    fn drop(&mut self) {
        let departure = self.departure();
        self.hub.entries().remove(&self.core.id());
        let waiting = mem::take(&mut self.entry.lock().waiting);
        for waits in waiting {
            // Whoever waited may have gone.
            let _ = waits.send(departure.clone());
        }
        self.hub.hooks.left(departure, &self.entry.filters);
        self.hub.departed.notify_waiters();
    }
}

impl<T: Value> fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("id", &self.core.id())
            .field("client_id", self.core.client_id())
            .field("losses", &self.losses)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

// ===== impl Closed =====

impl Future for Closed {
    type Output = Departure;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Departure> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|departure| departure.expect("a subscription tells when it goes"))
    }
}

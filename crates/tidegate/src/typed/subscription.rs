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
use http::Extensions;
use tidegate_core::{
    Batch, ClientId, CloseReason, Event, Filter, GapReason, Position, Room, Sending,
};
use tidegate_http2::StreamHandle;
use tokio::sync::{Notify, oneshot};
use tonic::Status;

use super::{
    chunk::{FirstChunk, write_messages},
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
    rest::sent_bytes,
    status::{self, reconnect_delay},
    stream::LateStream,
};

/// Number of bytes from which on a chunk counts as full, and is worth a system call of its own: half a chunk. With it,
/// where tonic encodes, one `writev` took 50 deliveries instead of 37.
const FULL_CHUNK_BYTES: u64 = CHUNK_BYTES as u64 / 2;

/// Maximum number of places for events that an idle subscription keeps: 128 bytes of references.
const IDLE_CAPACITY: usize = 16;

/// A subscription: a stream of shared values, for tonic as the stream of a method, and for the process itself.
///
/// # Pull
/// Nothing is taken from the hub before the stream is polled, and tonic polls when HTTP/2 flow control lets it
/// send. One poll takes at most 16 KiB. When that much was yielded, the stream is pending once and wakes its
/// task: a task that reads it gives way to others, and tonic, where it encodes, sends one frame.
///
/// # Ending
/// It ends with a status other than OK, after which it yields nothing: when the hub ends it, or by its policy
/// for losses. Dropping it unsubscribes, at once.
///
/// # Cancel safety
/// Its state is in the stream itself. You can drop a future that waits for its next item, as `StreamExt::next`
/// makes one, at any moment, in a `select!` for example, and nothing is lost.
#[must_use = "dropping it unsubscribes"]
pub struct Subscription<T: Value> {
    hub: Arc<Inner<T>>,
    core: tidegate_core::Subscription<EncodedValue<T>>,
    /// Gaps and events that were taken and not yielded, gaps first. In reverse order, so that the next one is
    /// at the end.
    batch: Batch<EncodedValue<T>>,
    /// The event of `batch`, where it is a single large one: it was taken, so the hub cannot evict it.
    sending: Option<Sending<EncodedValue<T>>>,
    /// Limits of one poll of the hub. They are small because an event that was taken can no longer be dropped.
    room: Room,
    /// Whether the last poll took a full chunk. Then the stream is pending once before it takes more.
    chunk_is_full: bool,
    losses: Losses<T>,
    /// The snapshot, until all of it was yielded.
    snapshot: Option<Box<Stage<T>>>,
    /// Sequence of the snapshot: live events begin after it.
    snapshot_up_to: u64,
    entry: Arc<Entry>,
    /// The stream of the call that it answers, once it is attached.
    stream: Arc<LateStream>,
    /// Cause of its end, once it has ended. Nothing is yielded after that.
    ended: Option<LeaveReason>,
}

/// Future of the end of a subscription, with its cause and final counts. [`Subscription::closed`] makes it.
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
        stream: Arc<LateStream>,
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
            sending: None,
            room: Room {
                events: usize::MAX,
                bytes: CHUNK_BYTES as u64,
                overhead: (PREFIX + position_bytes) as u64,
                up_to: u64::MAX,
            },
            chunk_is_full: false,
            losses,
            entry,
            stream,
            ended: None,
        };
        // The subscription exists now, and its drop unsubscribes if code of the application panics: a hook, or `load`.
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

    /// Attaches it to the stream of the call that it answers: the one of the request with these extensions. From here on
    /// [`Hub::sweep`](super::Hub::sweep) sees by the bytes that leave whether its peer takes any, and resets the stream of a
    /// peer that does not.
    ///
    /// A method of a service with [`encode_once`](crate::encode_once) that returns it as it is need not do it. Without a
    /// [`StreamHandle`] in the extensions, as on tonic's own server, nothing happens: a peer then counts as moving only when
    /// it has taken a chunk as a whole, and the stream of one that does not read stays for as long as its connection.
    ///
    /// ```
    /// # use tidegate::typed::Hub;
    /// # struct Service { hub: Hub<String> }
    /// # impl Service {
    /// async fn watch(
    ///     &self,
    ///     request: tonic::Request<()>,
    /// ) -> Result<impl futures_core::Stream + use<>, tonic::Status> {
    ///     let events = self.hub.subscribe().ignore_losses().open()?;
    ///     events.attach(request.extensions());
    ///     Ok(events)
    /// }
    /// # }
    /// ```
    pub fn attach(&self, request: &Extensions) {
        if let Some(stream) = request.get::<StreamHandle>() {
            self.attach_to(stream);
        }
    }

    /// Attaches it to the stream with this handle.
    pub(super) fn attach_to(&self, stream: &StreamHandle) {
        self.stream.attach(stream);
    }

    /// Returns its client id.
    #[must_use]
    pub const fn client_id(&self) -> &ClientId {
        self.core.client_id()
    }

    /// Returns its identity within its hub. No other subscription of the hub ever has the same.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.core.id()
    }

    /// Returns the position of the hub when it was opened. Its live events come after that.
    #[must_use]
    pub fn began_at(&self) -> Position {
        self.core.began_at()
    }

    /// Returns the position after which another subscription can go on: every event up to it was yielded, was
    /// counted by a gap that the policy for losses has seen, or did not match.
    #[must_use]
    pub fn position(&self) -> Position {
        let gap = self.batch.gaps.last().map(|gap| gap.first_sequence);
        let event = self.batch.events.last().map(|event| event.sequence());
        // Every subscription of a typed hub begins live, and so has a position.
        let mut position = self.core.position().unwrap_or_else(|| self.began_at());
        if let Some(first) = gap.into_iter().chain(event).min() {
            position.sequence = first.saturating_sub(1);
        }
        position
    }

    /// Returns the number of matching events that it has still to see.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.core.backlog() + self.batch.events.len() as u64
    }

    /// Returns a future that is ready when this subscription has gone, for whatever cause. Spawn it to do what
    /// has to be done then. It does not keep the subscription.
    pub fn closed(&self) -> Closed {
        let (sender, receiver) = oneshot::channel();
        self.entry.lock().waiting.push(sender);
        Closed(receiver)
    }

    /// Takes the next item from the batch, after the policy for losses has settled its gaps.
    fn next_item(&mut self) -> Option<Result<Shared<T>, Status>> {
        while let Some(gap) = self.batch.gaps.pop() {
            // Values superseded before the snapshot are in it, with what superseded them.
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
            // If it is a large one, it is the only one, and from here on its receiver's.
            self.sending = None;
            // An event for this client alone is never part of the application's state: the snapshot does not
            // contain it.
            if event.sequence() > self.snapshot_up_to || event.topic().is_reserved() {
                return Some(Ok(Shared::published(event)));
            }
        }
    }

    /// Takes a chunk's worth of events from the hub.
    fn poll_hub(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let polled = self.core.poll_next(cx, self.room, &mut self.batch);
        if polled.is_pending() && self.batch.events.capacity() > IDLE_CAPACITY {
            self.batch.events.shrink_to(IDLE_CAPACITY);
        }
        if let [event] = &self.batch.events[..]
            && event.size() > CHUNK_BYTES as u64
        {
            self.sending = Some(self.core.send(Arc::clone(event)));
        }
        polled.map_err(|reason| self.end(reason))
    }

    /// Returns the encoding of an event that it has yielded. The event counts as being sent until the last slice of the
    /// encoding is dropped.
    pub(super) fn send(&self, event: &Arc<Event<EncodedValue<T>>>) -> Bytes {
        sent_bytes(self.core.send(Arc::clone(event)))
    }

    /// Whether the transport should get copies of pieces of large messages.
    pub(super) fn is_sending_much(&self) -> bool {
        self.core.is_sending_much()
    }

    /// Notes that its transport took a piece of a message, for sweeps.
    pub(super) fn note_progress(&mut self) {
        self.core.note_progress();
    }

    /// Reverses what was taken from the hub, for [`next_item`](Self::next_item) to take from the end.
    fn reverse_batch(&mut self) {
        self.batch.gaps.reverse();
        self.batch.events.reverse();
    }

    /// Takes the next chunk of gRPC messages, and the rest of a message larger than a chunk. `None` when there
    /// is something besides events, and items have to be polled one by one.
    pub(super) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<FirstChunk, Status>>> {
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
        let sending = &mut self.sending;
        let core = &self.core;
        let mut rest = None;
        // Messages tell no index, so chunks with the same sequences are the same at any index.
        let epoch = core.began_at().epoch;
        let chunk = self.hub.sharing.chunk(epoch, 0, &self.batch, || {
            let (chunk, left) = write_messages(events, |event| {
                let sending = sending.take();
                sent_bytes(sending.unwrap_or_else(|| core.send(Arc::clone(event))))
            });
            rest = left;
            chunk
        });
        self.batch.clear();
        Poll::Ready(Some(Ok((chunk, rest))))
    }

    /// Goes on with the snapshot. Ready with its next value or the status that ends the stream, and with `None`
    /// when all of it was yielded.
    fn poll_snapshot(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Shared<T>, Status>>> {
        while self.snapshot.is_some() {
            // Before the next value, however many there are: a client that is to go elsewhere is not sent the rest of
            // a state that it cannot use.
            if self.core.close_reason().is_some() {
                return self.poll_end(cx).map(|status| Some(Err(status)));
            }
            let Some(stage) = &mut self.snapshot else {
                break;
            };
            match stage.poll(cx) {
                // The application has the task's waker, and so has the hub, for an end.
                Poll::Pending => return self.poll_end(cx).map(|status| Some(Err(status))),
                Poll::Ready(Step::Value(value)) => {
                    self.core.note_progress();
                    return Poll::Ready(Some(Ok(value)));
                }
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

    /// Checks whether the hub has ended the subscription, and takes nothing.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        self.core.poll_end(cx).map(|reason| self.end(reason))
    }

    /// Polls for the end alone, since there is room for nothing else. Pending where something was taken that goes before it.
    pub(super) fn poll_without_room(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        let has_items = !self.batch.gaps.is_empty() || !self.batch.events.is_empty();
        if has_items || self.ended.is_some() {
            return Poll::Pending;
        }
        self.poll_end(cx)
    }

    /// Begins live events after `position`, that of the snapshot.
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
                // The client has a part of the state only. A position would let it resume as if it had all of it.
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
                this.core.note_progress();
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
        // Before the core's half is dropped, which takes its counts with it.
        let departure = self.departure();
        self.hub.entries().remove(&self.core.id());
        let waiting = mem::take(&mut self.entry.lock().waiting);
        for waits in waiting {
            // The one that waited may have gone.
            let _ = waits.send(departure.clone());
        }
        // Should a hook panic, those who wait are told all the same.
        let _departed = NotifyOnDrop(&self.hub.departed);
        self.hub.hooks.left(departure, &self.entry.filters);
    }
}

/// Notifies those who wait when it is dropped.
struct NotifyOnDrop<'a>(&'a Notify);

impl Drop for NotifyOnDrop<'_> {
    fn drop(&mut self) {
        self.0.notify_waiters();
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

//! The drainer: a subscription as the body of an HTTP response.
//!
//! # Pull
//! Nothing happens until the transport polls, and it polls when it wants a chunk. One poll takes the events
//! that are ready, up to [`CHUNK_BYTES`](crate::framing::CHUNK_BYTES) and no more than the peer's window admits, as one message in one chunk. An event larger than that goes in
//! several chunks that share its memory, and counts as being sent until the transport has let go of the last one. Streams of one filter that have come equally far share their chunks.
//!
//! # Order
//! `Subscribed` is first. A chunk of a batch has the gaps, then the events, then `CaughtUp`. A rest of a large
//! event goes before anything else is taken from the hub. `GoingAway` is last.
//!
//! # Ending
//! The body always ends with trailers that carry a status other than OK; it never ends by itself. They need no window: a
//! client that does not read its stream has its status all the same, unless it is in the middle of a large event. The client cancels by
//! resetting the stream: the transport then drops the body, which frees everything.

use std::{
    cell::Cell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use tidegate_core::{Batch, CloseReason, Position, Room, Subscription, SubscriptionInfo};
use tidegate_http2::StreamHandle;
use tidegate_proto::v1::{
    CaughtUp, GoingAway, Heartbeat, Subscribed, subscribe_response::Response,
};
use tokio::{
    task::coop::{has_budget_remaining, poll_proceed},
    time::{Instant, Sleep, sleep_until},
};
use tonic::Status;

use super::{
    access::AccessWatch,
    calls::Enrolled,
    convert::{self, Intervals},
    gate::HeldPermit,
    wire::{BATCH_OVERHEAD, EVENT_OVERHEAD, Encoded, write_batch, write_response},
};
use crate::{
    chunk_body::{ChunkBody, PollChunk, Step},
    chunks::Sharing,
    pace::Pacer,
    reason::Reason,
    rest::{Rest, sent_bytes},
    status, stream,
};

/// Work of a replay that takes one of the 128 units that tokio gives a task for a turn. A poll of a replay does up to
/// 4,096, so four such polls end the turn, after about 0.4 ms.
const WORK_PER_UNIT: u64 = 128;

thread_local! {
    /// The list that the last poll of this thread filled, empty. Growing one anew for each poll took six allocations a
    /// chunk instead of one.
    static SPARE: Cell<Batch<Encoded>> = Cell::default();
}

/// Body of a response to `Subscribe`: a stream of `SubscribeResponse` messages, pulled by the transport.
/// [`EventService`](crate::EventService) makes it. Dropping it unsubscribes, at once.
#[derive(Debug)]
pub struct Drainer(ChunkBody<Messages>);

/// The messages of a subscription, as chunks.
///
/// ```text
///           Subscribed              deadline
///  Opening ────────────▶ Streaming ──────────▶ Expired
///                         │                        │
///                         │ closed by the hub:     │ one last chunk, if there is one:
///                         │ GoingAway if the       │ DEADLINE_EXCEEDED
///                         │ client is to come      │
///                         │ back, its status       │
///                         ▼                        ▼
///                   Step::LastChunk or Step::End: the rest is `ChunkBody`'s
/// ```
#[derive(Debug)]
struct Messages {
    subscription: Subscription<Encoded>,
    /// Source of the chunks that it shares with others of its service.
    sharing: Arc<Sharing>,
    /// Pace of the replays of its service.
    pacer: Arc<Pacer>,
    registrations: Registrations,
    /// The stream, to be asked what it has room for, where the transport tells.
    stream: Option<StreamHandle>,
    /// The rest of an event larger than a chunk, and what follows it in its batch. Goes before anything else. In a box,
    /// because few streams have one.
    rest: Option<Box<Rest>>,
    /// Fires when a heartbeat or a release may be due. Never later than either, often earlier.
    timer: Pin<Box<Sleep>>,
    heartbeat_interval: Duration,
    releases: Option<Box<Releases>>,
    /// Time at which the last chunk was handed to the transport.
    last_sent: Instant,
    reconnect_after: Duration,
    /// Timer for the deadline that the client set, if it set one.
    deadline: Option<Pin<Box<Sleep>>>,
    phase: Phase,
}

/// Registrations of a subscription outside of the hub, which end with it.
#[derive(Debug)]
pub(super) struct Registrations {
    /// Permit of the gate, to be told how the subscription ends.
    pub(super) permit: HeldPermit,
    /// How many filters it has: leaving takes as much work.
    pub(super) filters: usize,
    /// Membership among the calls of its connection.
    pub(super) _enrolled: Option<Enrolled>,
    /// Task that ends it when it is no longer allowed, where callers authenticate.
    pub(super) _watch: Option<AccessWatch>,
}

/// Times of a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub(super) intervals: Intervals,
    /// Delay after which the client is told to come back, if the stream ends with one.
    pub(super) reconnect_after: Duration,
    /// Deadline that the client set, if it set one.
    pub(super) deadline: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `Subscribed` has not been sent.
    Opening,
    /// Messages go as they are ready.
    Streaming,
    /// The deadline has passed, and the last chunk was taken from the hub.
    Expired,
}

/// Releases of live events, with a minimum interval between them.
///
/// A release sends every event that was ready when it began, in as many batches as it takes. After it no live
/// event goes until the interval has passed since its beginning; then the next release begins with the next
/// event.
#[derive(Debug)]
struct Releases {
    interval: Duration,
    /// Time from which on the next release may begin.
    next: Instant,
    /// The release that is under way.
    current: Option<Release>,
}

#[derive(Debug)]
struct Release {
    began: Instant,
    /// Sequence of the newest event that belongs to it: the head of the hub when it began.
    up_to: u64,
    /// Whether it sent any event. A release that sent none does not start the interval.
    has_sent: bool,
}

// ===== impl Drainer =====

impl Drainer {
    pub(super) fn new(
        subscription: Subscription<Encoded>,
        sharing: Arc<Sharing>,
        pacer: Arc<Pacer>,
        registrations: Registrations,
        stream: Option<StreamHandle>,
        timing: Timing,
    ) -> Self {
        let now = Instant::now();
        let releases = timing
            .intervals
            .min_release
            .map(|interval| Releases::new(interval, now));
        Self(ChunkBody::new(Messages {
            subscription,
            sharing,
            pacer,
            registrations,
            stream,
            rest: None,
            timer: Box::pin(sleep_until(now + timing.intervals.heartbeat)),
            heartbeat_interval: timing.intervals.heartbeat,
            releases: releases.map(Box::new),
            last_sent: now,
            reconnect_after: timing.reconnect_after,
            deadline: timing
                .deadline
                .map(|deadline| Box::pin(sleep_until(deadline))),
            phase: Phase::Opening,
        }))
    }
}

impl Drainer {
    /// Returns the subscription's entry in [`Hub::subscriptions`](tidegate_core::Hub::subscriptions): its client, and
    /// what it was handed and has lost.
    #[must_use]
    pub fn info(&self) -> SubscriptionInfo {
        self.0.source().subscription.info()
    }

    /// Returns the position to resume after. `None` while a replay of the newest events has not found its first.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.0.source().subscription.position()
    }

    /// Returns why the stream has ended, or is about to, and `None` as long as only its client can end it.
    #[must_use]
    pub fn ending(&self) -> Option<Reason> {
        self.0.source().ending()
    }
}

impl http_body::Body for Drainer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

// ===== impl Messages =====

impl PollChunk for Messages {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let polled = match stream::room(self.stream.as_ref()) {
            0 => self.poll_end(cx),
            room => self.poll_step(cx, room),
        };
        if let Poll::Ready(Step::Chunk(_)) = polled {
            self.last_sent = Instant::now();
        }
        polled
    }
}

impl Messages {
    fn next_of_rest(&mut self, room: usize) -> Option<Bytes> {
        self.rest.as_ref()?;
        // A connection that cannot write keeps chunks of streams that were reset.
        let copies = self.subscription.is_sending_much();
        Rest::next(&mut self.rest, room, copies)
    }

    /// Polls for the end alone, since there is room for nothing else.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if self.rest.is_some() {
            // The peer is in the middle of a message, behind which alone it reads a status.
            return Poll::Pending;
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            self.phase = Phase::Expired;
            return Poll::Ready(self.expire());
        }
        let reason = ready!(self.subscription.poll_end(cx));
        // Without `GoingAway`, which would need a window. The status says the same.
        let status = status::ended(reason, &self.subscription, self.reconnect_after);
        Poll::Ready(Step::End(status))
    }

    fn poll_step(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Step> {
        if let Some(chunk) = self.next_of_rest(room) {
            self.subscription.note_progress();
            return Poll::Ready(Step::Chunk(chunk));
        }
        match self.phase {
            Phase::Opening => {
                self.phase = Phase::Streaming;
                let subscribed = Response::Subscribed(self.subscribed());
                Poll::Ready(Step::Chunk(message(subscribed)))
            }
            Phase::Streaming if self.deadline.is_none() => self.poll_subscription(cx, room),
            Phase::Streaming => self.poll_with_deadline(cx, room),
            Phase::Expired => Poll::Ready(self.expire()),
        }
    }

    /// Polls as long as the deadline has not passed, and then once more: the last chunk can hold what was ready
    /// when the deadline passed.
    fn poll_with_deadline(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Step> {
        let deadline = self.deadline.as_mut();
        if deadline.is_none_or(|deadline| deadline.as_mut().poll(cx).is_pending()) {
            return self.poll_subscription(cx, room);
        }
        self.phase = Phase::Expired;
        match self.poll_subscription(cx, room) {
            Poll::Ready(last) => Poll::Ready(last),
            Poll::Pending => Poll::Ready(self.expire()),
        }
    }

    /// Ends a stream whose deadline has passed.
    fn expire(&self) -> Step {
        Step::End(status::deadline_exceeded(&self.subscription))
    }

    fn poll_subscription(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Step> {
        // Taken rather than borrowed: if the poll panics, the next one finds an empty list and not a half-filled one.
        let mut batch = SPARE.take();
        let polled = self.poll_into(cx, room, &mut batch);
        // Now, so that a thread without work keeps no event alive.
        batch.clear();
        SPARE.set(batch);
        polled
    }

    fn poll_into(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        batch: &mut Batch<Encoded>,
    ) -> Poll<Step> {
        // All streams of a connection share its task. Those that replay go on in another turn once they have used up
        // this one; those with something live to send do not wait for it. And all connections share the threads: so
        // replays go on one by one, whatever wakes them.
        let paced = (self.subscription.is_replaying()).then(|| self.pacer.paced(cx.waker()));
        if let Some(paced) = &paced
            && !has_budget_remaining()
        {
            paced.wake_by_ref();
            return Poll::Pending;
        }
        let up_to = match &mut self.releases {
            Some(releases) => releases.up_to(self.subscription.head().sequence),
            None => u64::MAX,
        };
        // So that its events and what surrounds them fit.
        let taken = Room {
            events: usize::MAX,
            bytes: room.saturating_sub(BATCH_OVERHEAD) as u64,
            overhead: EVENT_OVERHEAD as u64,
            up_to,
        };
        // Before the poll, which may end the replay: a batch of replayed events is no release, nor is the one that ends
        // the replay.
        let was_live = paced.is_none();
        let mut kept = None;
        let polled = match &paced {
            Some(paced) => {
                let mut cx = Context::from_waker(paced);
                self.subscription.poll_next(&mut cx, taken, batch)
            }
            None => {
                kept = self.sharing.kept(&self.subscription);
                let range = kept.as_ref().map(|kept| kept.range);
                self.subscription
                    .poll_next_unless_kept(cx, taken, range, batch)
            }
        };
        charge(self.subscription.work(), cx);
        match polled {
            Poll::Ready(Ok(())) => {
                if let Some(releases) = &mut self.releases
                    && was_live
                    && batch.caught_up.is_none()
                {
                    releases.mark_sent();
                }
                let chunk = self.sharing.take(kept, batch);
                Poll::Ready(Step::Chunk(
                    chunk.unwrap_or_else(|| self.write(batch, room)),
                ))
            }
            Poll::Ready(Err(reason)) => Poll::Ready(self.end(reason)),
            Poll::Pending => self.poll_timer(cx),
        }
    }

    /// Writes one chunk of all that a poll has taken: the gaps, then the events, then the end of the replay. A
    /// gap stands before the events because they follow it in the stream's index.
    fn write(&mut self, batch: &Batch<Encoded>, room: usize) -> Bytes {
        // Only events are shared: a gap is of one subscription. A shared chunk leaves no rest to send, because only a
        // single event is ever cut.
        if batch.gaps.is_empty() && batch.caught_up.is_none() {
            let sharing = Arc::clone(&self.sharing);
            let epoch = self.subscription.began_at().epoch;
            return sharing.chunk(epoch, batch.first_index, batch, || {
                let mut out = Vec::new();
                self.write_events(batch, room, &mut out);
                Bytes::from(out)
            });
        }
        let mut out = Vec::new();
        for gap in &batch.gaps {
            write_response(Response::Gap(convert::gap(gap)), &mut out);
        }
        if !batch.events.is_empty() {
            self.write_events(batch, room, &mut out);
        }
        if let Some(position) = batch.caught_up {
            let caught_up = CaughtUp {
                position: Some(convert::position(position)),
            };
            // It must not go between the parts of an event.
            let out = self.rest.as_mut().map_or(&mut out, |rest| rest.tail());
            write_response(Response::CaughtUp(caught_up), out);
        }
        Bytes::from(out)
    }

    /// Writes the events of a batch. If they are a single one that does not fit into the room, the rest of it is sent
    /// next.
    fn write_events(&mut self, batch: &Batch<Encoded>, room: usize, out: &mut Vec<u8>) {
        let cut = write_batch(batch, room, out);
        self.rest = cut.map(|written| {
            let event = Arc::clone(&batch.events[0]);
            let bytes = sent_bytes(self.subscription.send(event));
            Box::new(Rest::new(bytes.slice(written..), Vec::new()))
        });
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if self.subscription.is_opening() {
            // It searches history for the start of a replay, and has woken the task to go on. A heartbeat now would tell
            // a position that the search has not settled.
            return Poll::Pending;
        }
        let next_release = self
            .releases
            .as_mut()
            .map(|releases| releases.end_current());
        // A replay is no release. It has woken the task itself.
        let waits_for_release = self.subscription.is_behind() && !self.subscription.is_replaying();
        let release = next_release.filter(|_| waits_for_release);
        // The timer is not moved with each chunk, which would cost more than the chunk. When it fires early, because a
        // chunk went in the meantime, the loop sets it to the end of the silence.
        let heartbeat = self.last_sent + self.heartbeat_interval;
        let due = release.map_or(heartbeat, |release| release.min(heartbeat));
        if due < self.timer.deadline() {
            self.timer.as_mut().reset(due);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if release.is_some_and(|release| release <= now) {
                self.timer.as_mut().reset(heartbeat);
                // The poll that takes events begins the release, so the task asks for one. The timer is set
                // first: it has fired and would not wake again.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if heartbeat <= now {
                self.timer.as_mut().reset(now + self.heartbeat_interval);
                let position = self.subscription.position().map(convert::position);
                let heartbeat = Response::Heartbeat(Heartbeat { position });
                return Poll::Ready(Step::Chunk(message(heartbeat)));
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// Ends a stream that the hub has closed.
    fn end(&self, reason: CloseReason) -> Step {
        let status = status::ended(reason, &self.subscription, self.reconnect_after);
        if !status::is_going_away(reason) {
            return Step::End(status);
        }
        let going_away = Response::GoingAway(GoingAway {
            resume_after: self.subscription.position().map(convert::position),
            reconnect_after: self.reconnect_after.try_into().ok(),
            reason: reason.to_string(),
        });
        Step::LastChunk(message(going_away), status)
    }

    fn subscribed(&self) -> Subscribed {
        Subscribed {
            client_id: self.subscription.client_id().to_string(),
            subscription_id: self.subscription.id().to_string(),
            position: Some(convert::position(self.subscription.began_at())),
            next_index: self.subscription.next_index(),
            limits: Some(convert::limits_in_force(self.subscription.limits())),
        }
    }

    /// Returns why the stream has ended, or `None` if its client left.
    fn ending(&self) -> Option<Reason> {
        if let Some(reason) = self.subscription.close_reason() {
            return Some(status::end_reason(reason));
        }
        // Besides the hub only the deadline ends a stream.
        (self.phase == Phase::Expired).then_some(Reason::DeadlineExceeded)
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        let reason = self.ending();
        self.registrations.permit.ended(reason);
        // The feeds are left right after this. A connection that ends has many streams, which go one by one.
        charge_filters(self.registrations.filters);
    }
}

/// Charges leaving the feeds of as many filters to the budget of the task: a unit, about 3 us, for each.
fn charge_filters(filters: usize) {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..=filters {
        match poll_proceed(&mut cx) {
            Poll::Ready(unit) => unit.made_progress(),
            Poll::Pending => return,
        }
    }
}

/// Charges the work of a poll to the budget of the task.
fn charge(work: u64, cx: &mut Context<'_>) {
    for _ in 0..work.div_ceil(WORK_PER_UNIT) {
        match poll_proceed(cx) {
            Poll::Ready(unit) => unit.made_progress(),
            // Used up. It has woken the task, which does no harm: a replay goes on in any case.
            Poll::Pending => return,
        }
    }
}

/// Encodes one message as a chunk.
fn message(response: Response) -> Bytes {
    let mut out = Vec::new();
    write_response(response, &mut out);
    Bytes::from(out)
}

// ===== impl Releases =====

impl Releases {
    const fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            next: now,
            current: None,
        }
    }

    /// Returns the sequence up to which events may go now, after beginning a release if it is time for one. 0
    /// holds back every event.
    fn up_to(&mut self, head: u64) -> u64 {
        let began = Instant::now();
        if self.current.is_none() && self.next <= began {
            self.current = Some(Release {
                began,
                up_to: head,
                has_sent: false,
            });
        }
        self.current.as_ref().map_or(0, |release| release.up_to)
    }

    /// Notes that live events went, which starts the interval.
    const fn mark_sent(&mut self) {
        if let Some(release) = &mut self.current {
            release.has_sent = true;
        }
    }

    /// Ends the release under way, if there is one, because no event is left for it. Returns when the next may begin.
    fn end_current(&mut self) -> Instant {
        if let Some(release) = self.current.take()
            && release.has_sent
        {
            self.next = release.began + self.interval;
        }
        self.next
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tidegate_core::{ClientId, Filter, Hub, HubConfig, Start, SubscribeOptions};
    use tidegate_proto::v1::{NewEvent, SubscribeResponse};

    use super::*;
    use crate::framing::CHUNK_BYTES;
    use crate::framing::PREFIX;

    fn drainer(hub: &Hub<Encoded>, start: Start) -> ChunkBody<Messages> {
        let everything = vec![Filter::everything()];
        let options = SubscribeOptions {
            start,
            ..SubscribeOptions::new(ClientId::new("c").unwrap(), everything)
        };
        let subscription = hub.subscribe(options, std::time::Instant::now()).unwrap();
        let registrations = Registrations {
            permit: HeldPermit::new(None),
            filters: 1,
            _enrolled: None,
            _watch: None,
        };
        let timing = Timing {
            intervals: Intervals {
                heartbeat: Duration::from_secs(15),
                min_release: None,
            },
            reconnect_after: Duration::ZERO,
            deadline: None,
        };
        Drainer::new(
            subscription,
            Arc::new(Sharing::new()),
            Arc::default(),
            registrations,
            None,
            timing,
        )
        .0
    }

    fn publish(hub: &Hub<Encoded>, len: usize) {
        let event = NewEvent {
            topic: "a".into(),
            payload: vec![7; len].into(),
            ..NewEvent::default()
        };
        let event = crate::encode(event).unwrap();
        hub.publish([event], std::time::Instant::now()).unwrap();
    }

    /// All chunks until there is nothing to send.
    fn chunks_of(body: &mut ChunkBody<Messages>) -> Vec<Bytes> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut chunks = Vec::new();
        while let Poll::Ready(frame) = http_body::Body::poll_frame(Pin::new(&mut *body), &mut cx) {
            chunks.push(frame.unwrap().unwrap().into_data().unwrap());
        }
        chunks
    }

    fn responses(chunks: &[Bytes]) -> Vec<Response> {
        let bytes = chunks.concat();
        let mut rest = &bytes[..];
        let mut responses = Vec::new();
        while !rest.is_empty() {
            let len = u32::from_be_bytes(rest[1..PREFIX].try_into().unwrap()) as usize;
            let message = &rest[PREFIX..PREFIX + len];
            responses.extend(SubscribeResponse::decode(message).unwrap().response);
            rest = &rest[PREFIX + len..];
        }
        responses
    }

    /// The event comes while the replay goes on, and the replay ends with it: in one batch.
    #[tokio::test]
    async fn large_event_before_the_end_of_a_replay_is_shared() {
        let hub = Hub::new(HubConfig::new(1));
        publish(&hub, 1);
        let mut body = drainer(&hub, Start::Last(1));
        publish(&hub, 3 * CHUNK_BYTES);
        let chunks = chunks_of(&mut body);
        let [
            Response::Subscribed(_),
            Response::Batch(_),
            Response::Batch(large),
            Response::CaughtUp(_),
        ] = &responses(&chunks)[..]
        else {
            panic!("{:?}", responses(&chunks));
        };
        assert_eq!(large.events[0].payload.len(), 3 * CHUNK_BYTES);
        drop(body);
        // Whoever holds the slices holds the event, and not a copy of it.
        assert!(hub.stats().sending_bytes > 3 * CHUNK_BYTES as u64);
        drop(chunks);
        assert_eq!(hub.stats().sending_bytes, 0);
    }

    #[tokio::test]
    async fn small_events_do_not_count_as_sent() {
        let hub = Hub::new(HubConfig::new(1));
        let mut body = drainer(&hub, Start::Live);
        for _ in 0..100 {
            publish(&hub, 1_000);
        }
        let chunks = chunks_of(&mut body);
        assert!(chunks.len() > 5);
        assert_eq!(hub.stats().sending_bytes, 0);
    }
}

//! The drainer: a subscription as the body of an HTTP response.
//!
//! # Pull
//! Nothing happens until the transport polls, and it polls when it wants a chunk. One poll takes what
//! is ready, up to [`CHUNK_BYTES`], as one message in one chunk; an event larger than that goes in
//! several chunks that share its memory. Streams of one filter that are equally far share their chunks.
//!
//! # Ending
//! The body ends with trailers that carry a status other than OK, always: it never ends by itself. The
//! client cancels by dropping the stream; the transport then drops the body, which frees everything.

use std::{
    cell::Cell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use tidegate_core::{Batch, CloseReason, Room, Subscription};
use tidegate_proto::v1::{
    CaughtUp, GoingAway, Heartbeat, Subscribed, subscribe_response::Response,
};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use super::{
    access::AccessWatch,
    calls::Enrolled,
    convert,
    gate::HeldPermit,
    wire::{BATCH_OVERHEAD, EVENT_OVERHEAD, Encoded, write_batch, write_response},
};
use crate::{
    chunk_body::{ChunkBody, PollChunk, Step},
    chunks::Sharing,
    framing::CHUNK_BYTES,
    reason::Reason,
    status,
};

/// How much of a chunk's events one poll takes, with room for what surrounds them.
const CHUNK_ROOM: Room = Room {
    events: usize::MAX,
    bytes: (CHUNK_BYTES - BATCH_OVERHEAD) as u64,
    overhead: EVENT_OVERHEAD as u64,
    up_to: u64::MAX,
};

thread_local! {
    /// What the last poll was filled into, empty: growing a list of events anew would be most of the
    /// allocations of a delivery.
    static SPARE: Cell<Batch<Encoded>> = Cell::default();
}

/// A stream of `SubscribeResponse` messages, pulled by the transport. See the service it comes from,
/// [`EventService`](crate::EventService).
#[derive(Debug)]
pub struct Drainer(ChunkBody<Messages>);

/// The messages of a subscription, as chunks.
///
/// ```text
///            `Subscribed`           the deadline passes
///   Opening ─────────────▶ Streaming ─────────────────▶ Expired
///                              │                           │
///       the hub has closed it: │                           │ the last chunk was taken:
///       `GoingAway`, if the client is to come back,        │ DEADLINE_EXCEEDED
///       and the status         ▼                           ▼
///                          the body ends: see `ChunkBody`
/// ```
#[derive(Debug)]
struct Messages {
    subscription: Subscription<Encoded>,
    /// What it has in common with the others of its service.
    sharing: Arc<Sharing>,
    registrations: Registrations,
    /// What is left to send of an event larger than a chunk.
    rest: Bytes,
    /// Fires when a heartbeat may be due, or a release.
    timer: Pin<Box<Sleep>>,
    heartbeat_interval: Duration,
    releases: Option<Box<Releases>>,
    /// When the last chunk was handed to the transport.
    last_sent: Instant,
    reconnect_after: Duration,
    /// When the client wants the stream to end, if it said so.
    deadline: Option<Pin<Box<Sleep>>>,
    phase: Phase,
}

/// What a subscription has elsewhere for as long as it is there.
#[derive(Debug)]
pub(super) struct Registrations {
    /// Told how it ended.
    pub(super) permit: HeldPermit,
    /// Its place among the calls of its connection.
    pub(super) _enrolled: Option<Enrolled>,
    /// Who watches over it, where callers prove who they are.
    pub(super) _watch: Option<AccessWatch>,
}

/// When things are sent.
#[derive(Debug)]
pub(super) struct Timing {
    /// Silence after which a heartbeat is sent.
    pub(super) heartbeat_interval: Duration,
    /// Shortest time between two releases of live events. `None` for no limit.
    pub(super) min_interval: Option<Duration>,
    /// Delay after which the client is told to come back, if the server goes away.
    pub(super) reconnect_after: Duration,
    /// When the client wants the stream to end, if it said so.
    pub(super) deadline: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `Subscribed` has not been sent.
    Opening,
    Streaming,
    /// The deadline has passed and the last chunk was taken.
    Expired,
}

/// The releases of a subscription with a minimum interval between them.
///
/// At each release everything goes that was ready when it began, in as many batches as it takes. Until the
/// interval has passed nothing live goes then; after it the next begins as soon as there is something.
#[derive(Debug)]
struct Releases {
    interval: Duration,
    /// When the next release may begin.
    next: Instant,
    current: Option<Release>,
}

#[derive(Debug)]
struct Release {
    began: Instant,
    /// The newest event that belongs to it.
    up_to: u64,
    /// Whether anything went.
    has_sent: bool,
}

// ===== impl Drainer =====

impl Drainer {
    pub(super) fn new(
        subscription: Subscription<Encoded>,
        sharing: Arc<Sharing>,
        registrations: Registrations,
        timing: Timing,
    ) -> Self {
        let now = Instant::now();
        let releases = timing
            .min_interval
            .map(|interval| Releases::new(interval, now));
        Self(ChunkBody::new(Messages {
            subscription,
            sharing,
            registrations,
            rest: Bytes::new(),
            timer: Box::pin(sleep_until(now + timing.heartbeat_interval)),
            heartbeat_interval: timing.heartbeat_interval,
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
        let polled = self.poll_step(cx);
        if let Poll::Ready(Step::Chunk(_)) = polled {
            self.last_sent = Instant::now();
        }
        polled
    }
}

impl Messages {
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if !self.rest.is_empty() {
            let len = self.rest.len().min(CHUNK_BYTES);
            return Poll::Ready(Step::Chunk(self.rest.split_to(len)));
        }
        match self.phase {
            Phase::Opening => {
                self.phase = Phase::Streaming;
                let subscribed = Response::Subscribed(self.subscribed());
                Poll::Ready(Step::Chunk(message(subscribed)))
            }
            Phase::Streaming if self.deadline.is_none() => self.poll_subscription(cx),
            Phase::Streaming => self.poll_with_deadline(cx),
            Phase::Expired => Poll::Ready(self.expire()),
        }
    }

    /// Past the deadline, takes one last chunk: a stream that was idle learns its position so.
    fn poll_with_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let deadline = self.deadline.as_mut();
        if deadline.is_none_or(|deadline| deadline.as_mut().poll(cx).is_pending()) {
            return self.poll_subscription(cx);
        }
        self.phase = Phase::Expired;
        match self.poll_subscription(cx) {
            Poll::Ready(last) => Poll::Ready(last),
            Poll::Pending => Poll::Ready(self.expire()),
        }
    }

    /// The end of a stream whose deadline has passed.
    fn expire(&self) -> Step {
        Step::End(status::deadline_exceeded(&self.subscription))
    }

    fn poll_subscription(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let mut batch = SPARE.take();
        let polled = self.poll_into(cx, &mut batch);
        batch.clear();
        SPARE.set(batch);
        polled
    }

    fn poll_into(&mut self, cx: &mut Context<'_>, batch: &mut Batch<Encoded>) -> Poll<Step> {
        let up_to = match &mut self.releases {
            Some(releases) => releases.up_to(self.subscription.head().sequence),
            None => u64::MAX,
        };
        let room = Room {
            up_to,
            ..CHUNK_ROOM
        };
        let was_live = !self.subscription.is_replaying();
        match self.subscription.poll_next(cx, room, batch) {
            Poll::Ready(Ok(())) => {
                if let Some(releases) = &mut self.releases
                    && was_live
                    && batch.caught_up.is_none()
                {
                    releases.mark_sent();
                }
                Poll::Ready(Step::Chunk(self.write(batch)))
            }
            Poll::Ready(Err(reason)) => Poll::Ready(self.end(reason)),
            Poll::Pending => self.poll_timer(cx),
        }
    }

    /// One chunk of all that a poll has taken: the gaps, then the events, then the end of the replay.
    fn write(&mut self, batch: &Batch<Encoded>) -> Bytes {
        if batch.gaps.is_empty() && batch.caught_up.is_none() {
            let rest = &mut self.rest;
            return self.sharing.chunk(batch.first_index, &batch.events, || {
                let mut out = Vec::new();
                *rest = write_batch(batch, CHUNK_BYTES, &mut out).unwrap_or_default();
                Bytes::from(out)
            });
        }
        let mut out = Vec::new();
        for gap in &batch.gaps {
            write_response(Response::Gap(convert::gap(gap)), &mut out);
        }
        if !batch.events.is_empty() {
            self.rest = write_batch(batch, CHUNK_BYTES, &mut out).unwrap_or_default();
        }
        if let Some(position) = batch.caught_up {
            let caught_up = CaughtUp {
                position: Some(convert::position(position)),
            };
            self.append(Response::CaughtUp(caught_up), &mut out);
        }
        Bytes::from(out)
    }

    /// Appends a message behind what may still have a rest to be sent.
    fn append(&mut self, response: Response, out: &mut Vec<u8>) {
        if self.rest.is_empty() {
            return write_response(response, out);
        }
        let mut rest = Vec::from(std::mem::take(&mut self.rest));
        write_response(response, &mut rest);
        self.rest = rest.into();
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if self.subscription.is_replaying() {
            // It looks through history and has asked to be polled again; no position is settled yet.
            return Poll::Pending;
        }
        let next_release = self
            .releases
            .as_mut()
            .map(|releases| releases.end_current());
        let release = next_release.filter(|_| self.subscription.is_behind());
        // The timer is not moved with each chunk, which would cost more than the chunk; when it fires
        // early, it is set to when the silence will have been long enough.
        let heartbeat = self.last_sent + self.heartbeat_interval;
        let due = release.map_or(heartbeat, |release| release.min(heartbeat));
        if due < self.timer.deadline() {
            self.timer.as_mut().reset(due);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if release.is_some_and(|release| release <= now) {
                self.timer.as_mut().reset(heartbeat);
                // Begins with the next poll, which comes at once.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if heartbeat <= now {
                self.timer.as_mut().reset(now + self.heartbeat_interval);
                let position = Some(convert::position(self.subscription.position()));
                let heartbeat = Response::Heartbeat(Heartbeat { position });
                return Poll::Ready(Step::Chunk(message(heartbeat)));
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// The end of a stream that the hub has closed.
    fn end(&self, reason: CloseReason) -> Step {
        let status = status::ended(reason, &self.subscription, self.reconnect_after);
        if !status::is_going_away(reason) {
            return Step::End(status);
        }
        let going_away = Response::GoingAway(GoingAway {
            resume_after: Some(convert::position(self.subscription.position())),
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

    /// Why the stream has ended; `None` if its client left.
    fn ending(&self) -> Option<Reason> {
        if let Some(reason) = self.subscription.close_reason() {
            return Some(status::end_reason(reason));
        }
        // What ends without having been closed has reached its deadline.
        (self.phase == Phase::Expired).then_some(Reason::DeadlineExceeded)
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        let reason = self.ending();
        self.registrations.permit.ended(reason);
    }
}

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

    /// Up to which sequence events may go now. Begins a release if it is time for one.
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

    /// Notes that live events went.
    const fn mark_sent(&mut self) {
        if let Some(release) = &mut self.current {
            release.has_sent = true;
        }
    }

    /// Ends the release that goes on, if one does, because there is no more for it. Returns when the next
    /// may begin.
    fn end_current(&mut self) -> Instant {
        if let Some(release) = self.current.take()
            && release.has_sent
        {
            self.next = release.began + self.interval;
        }
        self.next
    }
}

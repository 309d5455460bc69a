//! The access log: a line for each call when it ends, and why.
//!
//! It is off unless the filter of the log asks for its target, [`TARGET`]. Off, a call costs a look at one atomic, and
//! its frames a branch.
//!
//! A record is held by the future of a response, and then by its body. Both are dropped however a call ends, by its
//! status, a reset or the loss of the connection, and the drop writes the line: so there is one for each call, and one
//! only.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    thread,
    time::Instant,
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use prost::Message as _;
use tidegate::{Reason, ResponseBody, ResponseFuture, proto::PublishResponse};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    network::listener::PeerAddress,
    quotas::subscribers::{CLIENT_LEFT, Subscribers},
};

/// The target of its lines, for filters: `tidegate::access=info`.
pub(crate) const TARGET: &str = "tidegate::access";

/// The most filters of a subscription in a line.
const MAX_FILTERS: usize = 4;

/// The most bytes of one value that a caller has chosen.
const MAX_BYTES: usize = 256;

/// The beginning of the paths of the methods whose responses count events.
const PUBLISH: &str = "/tidegate.v1.EventService/Publish";

/// The bytes before each message of gRPC: a flag, and the length.
const PREFIX_BYTES: usize = 5;

/// One call, from its first byte to its end. Dropping it writes the line.
#[derive(Debug)]
pub(crate) struct Record {
    method: Box<str>,
    address: PeerAddress,
    protocol: &'static str,
    principal: Arc<OnceLock<Arc<str>>>,
    began: Instant,
    /// Bytes of the request that have arrived.
    received: Arc<AtomicU64>,
    /// Bytes of the response that were handed to the transport.
    sent: u64,
    /// Events that were published, as the responses say.
    published: Option<Published>,
    subscription: Option<Box<Subscription>>,
    http_status: u16,
    /// The status that was handed to the transport.
    status: Option<(Code, String)>,
}

/// The subscription of a `Subscribe` call.
#[derive(Debug)]
struct Subscription {
    client_id: String,
    id: u64,
    filters: usize,
    first_filters: String,
    delivered: u64,
    lost: u64,
    conflated: u64,
    position: String,
    /// The reason for which the server ended it, also if no status could be sent.
    ending: Option<Reason>,
}

/// The count of events in the responses to a publisher.
#[derive(Debug, Default)]
struct Published {
    events: u64,
    /// The beginning of a message that is not complete.
    rest: Vec<u8>,
}

/// Future of a response, whose call is recorded if there is a record.
#[derive(Debug)]
pub(crate) struct RecordedFuture<F> {
    response: F,
    recorded: Option<Recorded>,
}

/// The record of a call, and the places where its subscription is found.
#[derive(Debug)]
struct Recorded {
    record: Box<Record>,
    subscribers: Arc<Subscribers>,
}

/// Body of a response, whose call is recorded if there is a record.
#[derive(Debug)]
pub(crate) struct RecordedBody {
    body: ResponseBody,
    record: Option<Box<Record>>,
}

/// Body of a request, whose bytes are counted if its call is recorded.
#[derive(Debug)]
pub(crate) struct CountedBody<B> {
    body: B,
    received: Option<Arc<AtomicU64>>,
}

/// Whether calls are recorded.
pub(crate) fn is_on() -> bool {
    tracing::enabled!(target: TARGET, tracing::Level::INFO)
}

/// The beginning of a text that a caller has chosen, for a line of the log. The subscriber escapes it.
fn cut(text: &str) -> &str {
    if text.len() <= MAX_BYTES {
        return text;
    }
    let end = (0..=MAX_BYTES)
        .rev()
        .find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

// ===== impl Record =====

impl Record {
    pub(crate) fn new(method: &str, address: PeerAddress, protocol: &'static str) -> Self {
        tracing::debug!(target: TARGET, method = cut(method), %address, protocol, "call begins");
        Self {
            method: cut(method).into(),
            address,
            protocol,
            principal: Arc::default(),
            began: Instant::now(),
            received: Arc::default(),
            sent: 0,
            published: method.starts_with(PUBLISH).then(Published::default),
            subscription: None,
            http_status: 200,
            status: None,
        }
    }

    /// The place for the principal, once it is known.
    pub(crate) fn principal(&self) -> Arc<OnceLock<Arc<str>>> {
        Arc::clone(&self.principal)
    }

    /// The count of the bytes of the request.
    pub(crate) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    /// Notes the status in headers or trailers, if there is one.
    fn note_status(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            let info = status.get_error_details();
            let reason = info.error_info().map(|info| info.reason.clone());
            self.status = Some((status.code(), reason.unwrap_or_default()));
        }
    }

    fn note_data(&mut self, data: &Bytes) {
        self.sent += data.len() as u64;
        if let Some(published) = &mut self.published {
            published.add(data);
        }
    }

    /// Notes the state of the subscription that a response streams.
    fn note_subscription(&mut self, body: &ResponseBody) {
        let (ResponseBody::Subscription(drainer), Some(subscription)) =
            (body, &mut self.subscription)
        else {
            return;
        };
        let info = drainer.info();
        subscription.delivered = info.handed_off;
        subscription.lost = info.lost;
        subscription.conflated = info.conflated;
        subscription.position = drainer
            .position()
            .map(|position| format!("{:016x}:{}", position.epoch, position.sequence))
            .unwrap_or_default();
        subscription.ending = drainer.ending();
    }

    fn write(&self) {
        let Self {
            method,
            address,
            protocol,
            sent,
            http_status,
            ..
        } = self;
        let principal = self.principal.get().map(|principal| cut(principal));
        let ending = self.subscription.as_ref().and_then(|it| it.ending);
        let (code, reason) = match &self.status {
            Some((code, reason)) => (Some(*code), reason.as_str()),
            None if thread::panicking() => (None, Reason::Internal.as_str()),
            None => (None, ending.map_or(CLIENT_LEFT, Reason::as_str)),
        };
        // The names of codes are those of the protocol, as in its documentation.
        let code = code.map(|code| format!("{code:?}"));
        let code = code.as_deref();
        let seconds = self.began.elapsed().as_secs_f64();
        let received = self.received.load(Relaxed);
        let events = self.published.as_ref().map(|published| published.events);
        let http_status = (*http_status != 200).then_some(*http_status);
        match &self.subscription {
            Some(subscription) => tracing::info!(
                target: TARGET,
                method = &**method,
                %address,
                protocol,
                principal,
                code,
                reason,
                client_id = &*subscription.client_id,
                subscription_id = subscription.id,
                filters = subscription.filters,
                first_filters = &*subscription.first_filters,
                delivered = subscription.delivered,
                lost = subscription.lost,
                conflated = subscription.conflated,
                position = &*subscription.position,
                seconds,
                received,
                sent,
                "stream ended"
            ),
            None => tracing::info!(
                target: TARGET,
                method = &**method,
                %address,
                protocol,
                principal,
                code,
                reason,
                http_status,
                events,
                seconds,
                received,
                sent,
                "call ended"
            ),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.write();
    }
}

// ===== impl Subscription =====

impl Subscription {
    /// The subscription of a response that has begun.
    fn of(body: &ResponseBody, subscribers: &Subscribers) -> Option<Box<Self>> {
        let ResponseBody::Subscription(drainer) = body else {
            return None;
        };
        let info = drainer.info();
        let filters = subscribers.subscriber(info.id).map(|it| it.filters);
        let filters = filters.as_deref().unwrap_or_default();
        let first: Vec<_> = filters
            .iter()
            .take(MAX_FILTERS)
            .map(ToString::to_string)
            .collect();
        Some(Box::new(Self {
            client_id: info.client_id.to_string(),
            id: info.id,
            filters: filters.len(),
            first_filters: cut(&first.join(" ")).into(),
            delivered: 0,
            lost: 0,
            conflated: 0,
            position: String::new(),
            ending: None,
        }))
    }
}

// ===== impl Published =====

impl Published {
    /// Counts the events in the messages that `data` completes.
    fn add(&mut self, data: &Bytes) {
        self.rest.extend_from_slice(data);
        let mut rest = &self.rest[..];
        while rest.len() >= PREFIX_BYTES {
            let mut prefix = &rest[1..PREFIX_BYTES];
            let end = PREFIX_BYTES + prefix.get_u32() as usize;
            let Some(message) = rest.get(PREFIX_BYTES..end) else {
                break;
            };
            if let Ok(response) = PublishResponse::decode(message) {
                self.events += u64::from(response.count);
            }
            rest = &rest[end..];
        }
        self.rest = rest.to_vec();
    }
}

// ===== impl RecordedFuture =====

impl<F> RecordedFuture<F> {
    /// Records the call that `response` answers, if there is a record.
    pub(crate) fn new(
        response: F,
        record: Option<Box<Record>>,
        subscribers: &Arc<Subscribers>,
    ) -> Self {
        let recorded = record.map(|record| Recorded {
            record,
            subscribers: Arc::clone(subscribers),
        });
        Self { response, recorded }
    }
}

impl Future for RecordedFuture<ResponseFuture> {
    type Output = Result<http::Response<RecordedBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(response) = ready!(self.response.as_mut().poll(cx));
        let record = self.recorded.take().map(|recorded| {
            let Recorded {
                mut record,
                subscribers,
            } = recorded;
            record.http_status = response.status().as_u16();
            record.note_status(response.headers());
            record.subscription = Subscription::of(response.body(), &subscribers);
            record
        });
        Poll::Ready(Ok(response.map(|body| RecordedBody { body, record })))
    }
}

// ===== impl RecordedBody =====

impl Body for RecordedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let (Some(record), Poll::Ready(Some(Ok(frame)))) = (&mut this.record, &polled) {
            if let Some(data) = frame.data_ref() {
                record.note_data(data);
            } else if let Some(trailers) = frame.trailers_ref() {
                record.note_status(trailers);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        if let Some(record) = &mut self.record {
            record.note_subscription(&self.body);
        }
    }
}

// ===== impl CountedBody =====

impl<B> CountedBody<B> {
    pub(crate) const fn new(body: B, received: Option<Arc<AtomicU64>>) -> Self {
        Self { body, received }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for CountedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let (Some(received), Poll::Ready(Some(Ok(frame)))) = (&this.received, &polled)
            && let Some(data) = frame.data_ref()
        {
            received.fetch_add(data.len() as u64, Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

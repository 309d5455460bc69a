//! `Publish` and `PublishStream`, with requests that are [checked](super::precheck) before they are decoded.
//!
//! A batch passes in this order: the rules of events, the rights of the caller, the gate, the hub. Each is all or
//! nothing, so a batch that is refused anywhere is not published in part, and one that is not allowed uses up no quota.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, header::CONTENT_TYPE};
use http_body::Body;
use prost::Message as _;
use tidegate_core::{Hub, NewEvent, Payload as _, PublishError, Published, Publishing};
use tidegate_proto::v1::{PublishRequest, PublishResponse};
use tokio::{runtime::Handle, task::yield_now, time::timeout};
use tonic::Status;

use super::{
    access::{Access, caller},
    body::ResponseBody,
    calls::{CallBody, Calls},
    config::PublishLimits,
    convert,
    gate::{Caller, Gate},
    messages::Messages,
    publishers::{OpenStream, Publishers},
    wire::Encoded,
};
use crate::{
    chunk_body::{ChunkBody, PollChunk, Step},
    framing::{PREFIX, write_prefix},
    reason::Reason,
    status::{not_published, request_timed_out},
};

/// Path of `Publish`.
pub(super) const PUBLISH: &str = "/tidegate.v1.EventService/Publish";

/// Path of `PublishStream`.
pub(super) const PUBLISH_STREAM: &str = "/tidegate.v1.EventService/PublishStream";

/// Maximum number of bytes of a length in protobuf, if the length is below 4 GiB as that of a gRPC message is.
const MAX_LENGTH_BYTES: usize = 5;

/// Requests of one call.
type Requests<B> = Messages<Pin<Box<B>>, PublishRequest>;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Publisher for every call of both methods. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Publisher {
    hub: Hub<Encoded>,
    limits: Arc<PublishLimits>,
    /// Time that a call of `Publish` may take to send its request. Those of `PublishStream` may wait between requests.
    request_timeout: Duration,
    gate: Option<Arc<dyn Gate>>,
    publishers: Publishers,
}

/// One call of either method, on behalf of its caller.
#[derive(Debug, Clone)]
struct Call {
    publisher: Publisher,
    /// Rights of the caller. `None` allows everything.
    access: Option<Access>,
    /// Caller that quotas are counted for.
    caller: Caller,
    /// Set while a request of a stream is being published.
    is_busy: Arc<AtomicBool>,
}

// ===== impl Publisher =====

impl Publisher {
    pub(super) fn new(
        hub: Hub<Encoded>,
        limits: PublishLimits,
        request_timeout: Duration,
        gate: Option<Arc<dyn Gate>>,
    ) -> Self {
        Self {
            hub,
            limits: Arc::new(limits),
            request_timeout,
            gate,
            publishers: Publishers::default(),
        }
    }

    /// The publish streams that are open.
    pub(super) const fn publishers(&self) -> &Publishers {
        &self.publishers
    }

    /// Answers one call of `Publish` or `PublishStream`. The response ends with the calls of its connection.
    pub(super) async fn call<B>(
        self,
        request: http::Request<B>,
        calls: Option<Calls>,
    ) -> http::Response<ResponseBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let is_stream = request.uri().path() == PUBLISH_STREAM;
        let stream = request.extensions().get().cloned();
        let call = Call::new(self, request.extensions());
        let access = call.access.clone();
        let is_busy = Arc::clone(&call.is_busy);
        let body = match call.requests(request) {
            Ok(requests) if is_stream => {
                let open = call.publisher.publishers.open(call.caller.clone(), stream);
                Ok(tonic::body::Body::new(ChunkBody::new(Answers {
                    call,
                    next: Next::Requests(requests),
                    open,
                })))
            }
            Ok(requests) => call.answer(requests).await,
            Err(status) => Err(status),
        };
        match body {
            Ok(body) => {
                let body = CallBody::new(body, calls, access.as_ref()).with_busy(is_busy);
                let body = ResponseBody::Other(body);
                let mut response = http::Response::new(body);
                let grpc = HeaderValue::from_static("application/grpc");
                response.headers_mut().insert(CONTENT_TYPE, grpc);
                response
            }
            Err(status) => status.into_http(),
        }
    }
}

// ===== impl Call =====

impl Call {
    fn new(publisher: Publisher, extensions: &http::Extensions) -> Self {
        Self {
            publisher,
            access: extensions.get().cloned(),
            caller: caller(extensions),
            is_busy: Arc::default(),
        }
    }

    /// Returns the reader of the call's requests.
    fn requests<B>(&self, request: http::Request<B>) -> Result<Requests<B>, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let limits = Arc::clone(&self.publisher.limits);
        // The largest message that can hold a batch within its limits: its bytes, and for each event a tag and
        // a length.
        let framing = limits.max_events.saturating_mul(1 + MAX_LENGTH_BYTES);
        let max_bytes = limits.max_batch_bytes.saturating_add(framing);
        let (parts, body) = request.into_parts();
        let body = Box::pin(body);
        Messages::of(
            &parts.headers,
            body,
            limits,
            max_bytes,
            Reason::BatchTooLarge,
        )
    }

    /// Answers a call of `Publish`.
    async fn answer<B>(self, requests: Requests<B>) -> Result<tonic::body::Body, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let request = timeout(
            self.publisher.request_timeout,
            requests.only("PublishRequest"),
        );
        let request = request.await.map_err(|_| request_timed_out())??;
        let response = self.publish(request).await?;
        Ok(tonic::body::Body::new(ChunkBody::new(Answer(encode(
            &response,
        )))))
    }

    /// Publishes one batch: all of it or, with an error, nothing. Cancelled, it has published all of it or nothing.
    async fn publish(&self, request: PublishRequest) -> Result<PublishResponse, Status> {
        let events = convert::publish_request(request, &self.publisher.limits)?;
        if let Some(access) = &self.access {
            access.check_publish(events.iter().map(|event| &event.topic))?;
        }
        // After the rights, so that a batch that is not allowed uses up no quota.
        self.pass_gate(&events)?;
        let publishing = InTurns {
            publishing: Some(self.publisher.hub.begin_publish(events)),
            may_spawn: true,
        };
        let published = publishing.finish().await.map_err(not_published)?;
        Ok(PublishResponse {
            epoch: published.epoch,
            first_sequence: published.first_sequence,
            count: u32::try_from(published.count).unwrap_or(u32::MAX),
            matched: published.matched,
            last_sequence: published.last_sequence,
        })
    }

    fn pass_gate(&self, events: &[NewEvent<Encoded>]) -> Result<(), Status> {
        let gate = self.publisher.gate.as_ref();
        let Some(gate) = gate.filter(|gate| gate.limits_publishing()) else {
            return Ok(());
        };
        let bytes = events.iter().map(|event| event.payload.size() as u64).sum();
        Ok(gate.publish(&self.caller, events.len(), bytes)?)
    }
}

/// A batch that is published in turns of its task.
struct InTurns {
    /// Taken by the drop only.
    publishing: Option<Publishing<Encoded>>,
    /// Whether the rest may get a task of its own. A task that a runtime drops as it ends must not get another.
    may_spawn: bool,
}

impl InTurns {
    async fn finish(mut self) -> Result<Published, PublishError> {
        loop {
            let publishing = self.publishing.as_mut().expect("only the drop takes it");
            if let Some(published) = publishing.step(Instant::now())? {
                return Ok(published);
            }
            // How much there is to do is up to the filters of others: they must not hold up the tasks of this thread.
            yield_now().await;
        }
    }
}

impl Drop for InTurns {
    fn drop(&mut self) {
        // The client has left in the middle. The rest follows, because a batch is published whole, and in turns too.
        if self.may_spawn
            && let Some(publishing) = self.publishing.take_if(|rest| rest.is_partial())
            && let Ok(runtime) = Handle::try_current()
        {
            let rest = Self {
                publishing: Some(publishing),
                may_spawn: false,
            };
            drop(runtime.spawn(rest.finish()));
        }
    }
}

/// Returns a response as one gRPC message.
fn encode(response: &PublishResponse) -> Bytes {
    let length = response.encoded_len();
    let mut message = Vec::with_capacity(PREFIX + length);
    write_prefix(length, &mut message);
    response.encode(&mut message).expect("a vector has room");
    message.into()
}

/// The answer to a call of `Publish`.
struct Answer(Bytes);

impl PollChunk for Answer {
    fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Step> {
        Poll::Ready(Step::LastChunk(std::mem::take(&mut self.0), Status::ok("")))
    }
}

/// The answers to a call of `PublishStream`: one per request, in order. The next request is read when the transport asks for
/// the next answer, so the server does not read from a client that does not read its answers.
struct Answers<B> {
    call: Call,
    next: Next<B>,
    open: OpenStream,
}

/// The reader of the requests, and the answer to one of them. `None`: there was none.
type Answered<B> = (Requests<B>, Result<Option<PublishResponse>, Status>);

/// The state of a publish stream.
enum Next<B> {
    /// The next request is to be read.
    Requests(Requests<B>),
    /// It is being read and published. The reader comes back with the answer.
    Answer(BoxFuture<Answered<B>>),
    /// The stream is at its end.
    Ended,
}

impl Call {
    /// Reads and publishes the next request of a stream. `None`: there is none.
    async fn answer_next<B>(self, mut requests: Requests<B>) -> Answered<B>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let answer = match requests.next().await {
            Ok(Some(request)) => {
                self.is_busy.store(true, Ordering::Relaxed);
                let answer = self.publish(request).await;
                self.is_busy.store(false, Ordering::Relaxed);
                answer.map(Some)
            }
            Ok(None) => Ok(None),
            Err(status) => Err(status),
        };
        (requests, answer)
    }
}

impl<B> PollChunk for Answers<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let mut answer = match std::mem::replace(&mut self.next, Next::Ended) {
            Next::Requests(requests) => Box::pin(self.call.clone().answer_next(requests)),
            Next::Answer(answer) => answer,
            Next::Ended => return Poll::Ready(Step::End(Status::ok(""))),
        };
        let Poll::Ready((requests, answer)) = answer.as_mut().poll(cx) else {
            self.next = Next::Answer(answer);
            return Poll::Pending;
        };
        Poll::Ready(match answer {
            Ok(Some(response)) => {
                self.next = Next::Requests(requests);
                let chunk = encode(&response);
                self.open.answered(u64::from(response.count), chunk.len());
                Step::Chunk(chunk)
            }
            Ok(None) => Step::End(Status::ok("")),
            Err(status) => Step::End(status),
        })
    }
}

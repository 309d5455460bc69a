//! `Publish` and `PublishStream`, served by tonic with requests that are [checked](super::precheck) before they are
//! decoded.
//!
//! A batch passes in this order: the rules of events, the rights of the caller, the gate, the hub. Each is all or
//! nothing, so a batch that is refused anywhere is not published in part, and one that is not allowed uses up no quota.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::Body;
use tidegate_core::{Hub, NewEvent, Payload as _, PublishError, Published, Publishing};
use tidegate_proto::v1::{PublishRequest, PublishResponse};
use tokio::{runtime::Handle, task::yield_now, time::timeout};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Code, Request, Response, Status, Streaming,
    server::{Grpc, StreamingService, UnaryService},
};

use super::{
    access::{Access, caller},
    body::ResponseBody,
    calls::{CallBody, Calls},
    config::PublishLimits,
    convert,
    gate::{Caller, Gate},
    precheck::PrecheckingCodec,
    wire::Encoded,
};
use crate::{
    reason::Reason,
    status::{not_published, request_timed_out, unreadable},
};

/// Path of `Publish`.
pub(super) const PUBLISH: &str = "/tidegate.v1.EventService/Publish";

/// Path of `PublishStream`.
pub(super) const PUBLISH_STREAM: &str = "/tidegate.v1.EventService/PublishStream";

/// Maximum number of bytes of a length in protobuf, if the length is below 4 GiB as that of a gRPC message is.
const MAX_LENGTH_BYTES: usize = 5;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Publisher for every call of both methods. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Publisher {
    hub: Hub<Encoded>,
    limits: Arc<PublishLimits>,
    /// Time that a call of `Publish` may take to send its request. Those of `PublishStream` may wait between requests.
    request_timeout: Duration,
    gate: Option<Arc<dyn Gate>>,
}

/// One call of either method, on behalf of its caller.
#[derive(Debug, Clone)]
struct Call {
    publisher: Publisher,
    /// Rights of the caller. `None` allows everything.
    access: Option<Access>,
    /// Caller that quotas are counted for. Anonymous where there is no gate.
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
        }
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
        let mut grpc = self.grpc();
        let request_timeout = self.request_timeout;
        let call = Call::new(self, request.extensions());
        let access = call.access.clone();
        let is_busy = Arc::clone(&call.is_busy);
        let response = if is_stream {
            grpc.streaming(call, request).await
        } else {
            match timeout(request_timeout, grpc.unary(call, request)).await {
                Ok(response) => response,
                Err(_) => return request_timed_out().into_http(),
            }
        };
        match Status::from_header_map(response.headers()) {
            // tonic itself refused to read the request. It calls no code of ours then, so its response is all
            // there is to see it by.
            Some(status) if status.code() == Code::OutOfRange => {
                unreadable(status, Reason::BatchTooLarge).into_http()
            }
            _ => response
                .map(|body| CallBody::new(body, calls, access.as_ref()).with_busy(is_busy))
                .map(ResponseBody::Other),
        }
    }

    fn grpc(&self) -> Grpc<PrecheckingCodec<PublishResponse, PublishRequest>> {
        // The largest message that can hold a batch within its limits: its bytes, and for each event a tag and
        // a length.
        let framing = self.limits.max_events.saturating_mul(1 + MAX_LENGTH_BYTES);
        let max_message = self.limits.max_batch_bytes.saturating_add(framing);
        let codec = PrecheckingCodec::new(Arc::clone(&self.limits));
        Grpc::new(codec).apply_max_message_size_config(Some(max_message), None)
    }
}

// ===== impl Call =====

impl Call {
    fn new(publisher: Publisher, extensions: &http::Extensions) -> Self {
        let caller = publisher.gate.as_ref().map(|_| caller(extensions));
        Self {
            publisher,
            access: extensions.get().cloned(),
            caller: caller.unwrap_or_default(),
            is_busy: Arc::default(),
        }
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

impl UnaryService<PublishRequest> for Call {
    type Response = PublishResponse;
    type Future = BoxFuture<Result<Response<PublishResponse>, Status>>;

    fn call(&mut self, request: Request<PublishRequest>) -> Self::Future {
        let call = self.clone();
        Box::pin(async move { call.publish(request.into_inner()).await.map(Response::new) })
    }
}

/// One response per request, in order. The next request is read when the transport asks for the next response, so the
/// server does not read from a client that does not read its responses.
impl StreamingService<PublishRequest> for Call {
    type Response = PublishResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<PublishResponse, Status>> + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, requests: Request<Streaming<PublishRequest>>) -> Self::Future {
        let call = self.clone();
        let responses = requests.into_inner().then(move |request| {
            let call = call.clone();
            async move {
                let request =
                    request.map_err(|status| unreadable(status, Reason::BatchTooLarge))?;
                call.is_busy.store(true, Ordering::Relaxed);
                let answer = call.publish(request).await;
                call.is_busy.store(false, Ordering::Relaxed);
                answer
            }
        });
        ready(Ok(Response::new(Box::pin(responses))))
    }
}

//! `Publish` and `PublishStream`: the methods of tonic's generated service over the hub, served with requests
//! that are [measured](crate::measure) before they are decoded.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::Body;
use tidegate_core::{Hub, NewEvent, Payload as _};
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Request, Response, Status, Streaming,
    server::{Grpc, StreamingService, UnaryService},
};

use crate::{
    access::Access,
    convert,
    gate::{Caller, Gate, caller},
    measure::MeasuringCodec,
    proto::{
        PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse,
        event_service_server::{self, EventService as _},
    },
    service::PublishLimits,
    status::{Reason, not_published, unreadable},
    wire::Encoded,
};

/// The paths of the two methods.
pub(crate) const PUBLISH: &str = "/tidegate.v1.EventService/Publish";
pub(crate) const PUBLISH_STREAM: &str = "/tidegate.v1.EventService/PublishStream";

/// The most bytes of a length, in protobuf: of one that is below 4 GiB, as gRPC's messages are.
const MAX_LENGTH_BYTES: usize = 5;

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// What the generated service calls. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    hub: Hub<Encoded>,
    limits: Arc<PublishLimits>,
    gate: Option<Arc<dyn Gate>>,
}

/// On whose behalf a call is made.
struct Who {
    /// What it may do; `None` is everything.
    access: Option<Access>,
    /// Whom its quotas are counted for. Nobody, without a gate.
    caller: Caller,
}

impl Publisher {
    pub(crate) fn new(
        hub: Hub<Encoded>,
        limits: PublishLimits,
        gate: Option<Arc<dyn Gate>>,
    ) -> Self {
        Self {
            hub,
            limits: Arc::new(limits),
            gate,
        }
    }

    /// Serves one call of `Publish`, whose request must come within `request_timeout`.
    pub(crate) async fn serve<B>(
        self,
        request: http::Request<B>,
        request_timeout: Duration,
    ) -> http::Response<tonic::body::Body>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let mut grpc = self.grpc();
        match timeout(request_timeout, grpc.unary(Once(self), request)).await {
            Ok(response) => response,
            Err(_) => late().into_http(),
        }
    }

    /// Serves one call of `PublishStream`.
    pub(crate) async fn serve_stream<B>(
        self,
        request: http::Request<B>,
    ) -> http::Response<tonic::body::Body>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let mut grpc = self.grpc();
        grpc.streaming(Many(self), request).await
    }

    fn grpc(&self) -> Grpc<MeasuringCodec<PublishResponse, PublishRequest>> {
        // A batch of the most bytes, with the number of the field and the length of each event.
        let around = self.limits.max_events.saturating_mul(1 + MAX_LENGTH_BYTES);
        let decode = self.limits.max_batch_bytes.saturating_add(around);
        let codec = MeasuringCodec::new(Arc::clone(&self.limits));
        Grpc::new(codec).apply_max_message_size_config(Some(decode), None)
    }

    /// Publishes one batch: all of it or, with an error, nothing.
    fn publish(&self, request: PublishRequest, who: &Who) -> Result<PublishResponse, Status> {
        let events = convert::publish_request(request, &self.limits)?;
        if let Some(access) = &who.access {
            access.check_publish(events.iter().map(|event| &event.topic))?;
        }
        self.pass_gate(&events, &who.caller)?;
        let published = self
            .hub
            .publish(events, Instant::now())
            .map_err(not_published)?;
        Ok(PublishResponse {
            epoch: published.epoch,
            first_sequence: published.first_sequence,
            count: u32::try_from(published.count).unwrap_or(u32::MAX),
            matched: published.matched,
            last_sequence: published.last_sequence,
        })
    }

    fn who(&self, extensions: &http::Extensions) -> Who {
        let caller = self.gate.as_ref().map(|_| caller(extensions));
        Who {
            access: extensions.get().cloned(),
            caller: caller.unwrap_or_default(),
        }
    }

    fn pass_gate(&self, events: &[NewEvent<Encoded>], caller: &Caller) -> Result<(), Status> {
        let Some(gate) = self.gate.as_ref().filter(|gate| gate.measures_publishing()) else {
            return Ok(());
        };
        let bytes = events.iter().map(|event| event.payload.size() as u64).sum();
        Ok(gate.publish(caller, events.len(), bytes)?)
    }
}

/// The status for a request that did not come in time.
pub(crate) fn late() -> Status {
    Reason::DeadlineExceeded.status("the request did not come in time")
}

/// `Publish`, as tonic calls it.
struct Once(Publisher);

/// `PublishStream`, as tonic calls it.
struct Many(Publisher);

impl UnaryService<PublishRequest> for Once {
    type Response = PublishResponse;
    type Future = Answer<PublishResponse>;

    fn call(&mut self, request: Request<PublishRequest>) -> Self::Future {
        let publisher = self.0.clone();
        Box::pin(
            async move { event_service_server::EventService::publish(&publisher, request).await },
        )
    }
}

impl StreamingService<PublishRequest> for Many {
    type Response = PublishResponse;
    type ResponseStream = <Publisher as event_service_server::EventService>::PublishStreamStream;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, requests: Request<Streaming<PublishRequest>>) -> Self::Future {
        let publisher = self.0.clone();
        Box::pin(async move { publisher.publish_stream(requests).await })
    }
}

#[tonic::async_trait]
impl event_service_server::EventService for Publisher {
    type SubscribeStream = tokio_stream::Empty<Result<SubscribeResponse, Status>>;
    type PublishStreamStream = Pin<Box<dyn Stream<Item = Result<PublishResponse, Status>> + Send>>;

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        let who = self.who(request.extensions());
        Self::publish(self, request.into_inner(), &who).map(Response::new)
    }

    /// One response a request, in order. The next request is read when the transport asks for the next
    /// response, so a client that does not read its responses is not read either.
    async fn publish_stream(
        &self,
        requests: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let publisher = self.clone();
        let who = self.who(requests.extensions());
        let responses = requests.into_inner().map(move |request| {
            let request = request.map_err(|status| unreadable(status, Reason::BatchTooLarge))?;
            Self::publish(&publisher, request, &who)
        });
        Ok(Response::new(Box::pin(responses)))
    }

    /// Subscriptions have a body of their own and do not come here: [`EventService`](crate::EventService)
    /// takes them before.
    async fn subscribe(
        &self,
        _: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(Reason::Internal.status("this path is served in front of the generated service"))
    }
}

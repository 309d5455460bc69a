//! `Publish` and `PublishStream` over the hub, served by tonic with requests that are
//! [measured](super::precheck) before they are decoded.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::Body;
use tidegate_core::{Hub, NewEvent, Payload as _};
use tidegate_proto::v1::{PublishRequest, PublishResponse};
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Request, Response, Status, Streaming,
    server::{Grpc, StreamingService, UnaryService},
};

use super::{
    access::{Access, caller},
    config::PublishLimits,
    convert,
    gate::{Caller, Gate},
    precheck::MeasuringCodec,
    wire::Encoded,
};
use crate::{
    reason::Reason,
    status::{late, not_published, unreadable},
};

/// The paths of the two methods.
pub(crate) const PUBLISH: &str = "/tidegate.v1.EventService/Publish";
pub(crate) const PUBLISH_STREAM: &str = "/tidegate.v1.EventService/PublishStream";

/// The most bytes of a length, in protobuf: of one that is below 4 GiB, as gRPC's messages are.
const MAX_LENGTH_BYTES: usize = 5;

/// What tonic calls for both methods. Cheap to clone.
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
        match timeout(request_timeout, grpc.unary(self, request)).await {
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
        grpc.streaming(self, request).await
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

impl UnaryService<PublishRequest> for Publisher {
    type Response = PublishResponse;
    type Future = Ready<Result<Response<PublishResponse>, Status>>;

    fn call(&mut self, request: Request<PublishRequest>) -> Self::Future {
        let who = self.who(request.extensions());
        ready(self.publish(request.into_inner(), &who).map(Response::new))
    }
}

/// One response a request, in order. The next request is read when the transport asks for the next response, so a
/// client that does not read its responses is not read either.
impl StreamingService<PublishRequest> for Publisher {
    type Response = PublishResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<PublishResponse, Status>> + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, requests: Request<Streaming<PublishRequest>>) -> Self::Future {
        let publisher = self.clone();
        let who = self.who(requests.extensions());
        let responses = requests.into_inner().map(move |request| {
            let request = request.map_err(|status| unreadable(status, Reason::BatchTooLarge))?;
            publisher.publish(request, &who)
        });
        ready(Ok(Response::new(Box::pin(responses))))
    }
}

//! `tidegate.v1.EventService` as a tower service.
//!
//! `Subscribe` is answered with a [`Drainer`], outside of tonic, whose routes box a body twice: see
//! `subscribe.rs`. The other methods are not served by tonic's generated service either, which decodes a
//! request before anyone can ask how much it holds, and keeps its room: see `publish.rs`, `messages.rs` and `precheck.rs`.

mod access;
mod body;
mod calls;
mod config;
mod convert;
mod deadline;
mod drainer;
mod gate;
mod messages;
mod precheck;
mod publish;
mod publishers;
mod subscribe;
mod wire;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::CONTENT_TYPE;
use http_body::Body;
use tidegate_core::Hub;
use tonic::Status;
use tower_service::Service;

pub use self::{
    access::{Access, Authority},
    body::ResponseBody,
    calls::{CallBody, Calls},
    config::{PublishLimits, ServiceConfig},
    convert::{EncodeError, encode, limits_in_force},
    drainer::Drainer,
    gate::{Caller, Gate, Permit},
    messages::check_encoding,
    publishers::PublishStream,
    wire::Encoded,
};

use self::{
    body::accepting,
    publish::{PUBLISH, PUBLISH_STREAM, Publisher},
    subscribe::{SUBSCRIBE, Subscriber},
};
use crate::chunks::ChunkStats;

/// `tidegate.v1.EventService` over a [`Hub`]. Cheap to clone: clones share the hub.
///
/// It is a tower service, and a service of tonic's `Routes`. It does not authenticate: see [`Access`].
///
/// # Serving
/// The crate `tidegate-transport` serves it as `tidegate serve` does. On hyper's own HTTP/2 connections, set
/// `max_send_buf_size`: it is what one stream can buffer beyond recall, and its default of 400 KiB makes a slow client
/// see events that are 400 KiB old.
///
/// # Methods
/// A path that is not a method of the service is answered with `UNIMPLEMENTED`, and a request that is not gRPC
/// with HTTP status 415. The service is always ready.
#[derive(Debug, Clone)]
pub struct EventService {
    subscriber: Subscriber,
    publisher: Publisher,
    /// Calls of the connection that is served, if its server wants to end them.
    calls: Option<Calls>,
}

/// Future of a response. It never fails: every error is a gRPC status in the response.
pub type ResponseFuture =
    Pin<Box<dyn Future<Output = Result<http::Response<ResponseBody>, Infallible>> + Send>>;

impl EventService {
    /// Makes a service of `hub`. The configuration holds for all its clones and cannot be changed.
    #[must_use]
    pub fn new(hub: Hub<Encoded>, config: ServiceConfig) -> Self {
        let publisher = Publisher::new(
            hub.clone(),
            config.publish.clone(),
            config.request_timeout,
            config.gate.clone(),
        );
        Self {
            subscriber: Subscriber::new(hub, config),
            publisher,
            calls: None,
        }
    }

    /// Makes a clone of the service for one connection, and the handle that ends the calls of this connection and of no
    /// other.
    #[must_use]
    pub fn for_connection(&self) -> (Self, Calls) {
        let calls = Calls::new(self.subscriber.hub().clone());
        let mut service = self.clone();
        service.calls = Some(calls.clone());
        (service, calls)
    }

    /// Lists the publish streams that are open, the oldest first.
    #[must_use]
    pub fn publish_streams(&self) -> Vec<PublishStream> {
        self.publisher.publishers().list(Instant::now())
    }

    /// Returns the number of publish streams that are open.
    #[must_use]
    pub fn open_publish_streams(&self) -> usize {
        self.publisher.publishers().count()
    }

    /// Returns the number of publish streams that [`sweep_publish_streams`](Self::sweep_publish_streams) has reset.
    #[must_use]
    pub fn stalled_publish_streams(&self) -> u64 {
        self.publisher.publishers().stalled()
    }

    /// Resets the publish streams whose client took none of the answers that wait for it for `stall_timeout`, and returns
    /// their number. Call it about as often as [`Hub::sweep`], also with `None`, which resets none.
    pub fn sweep_publish_streams(&self, stall_timeout: Option<Duration>, now: Instant) -> u64 {
        self.publisher.publishers().sweep(stall_timeout, now)
    }

    /// Returns how often subscriptions of this service and its clones shared a chunk.
    #[must_use]
    pub fn chunk_stats(&self) -> ChunkStats {
        self.subscriber.chunk_stats()
    }
}

impl<B> Service<http::Request<B>> for EventService
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> ResponseFuture {
        let path = request.uri().path();
        if !matches!(path, SUBSCRIBE | PUBLISH | PUBLISH_STREAM) {
            return Box::pin(async { Ok(Status::unimplemented("").into_http()) });
        }
        if !is_grpc(&request) {
            return Box::pin(async { Ok(not_grpc()) });
        }
        let calls = self.calls.clone();
        if path == SUBSCRIBE {
            let response = self.subscriber.clone().call(request, calls);
            return Box::pin(response.map(accepting).map(Ok));
        }
        let response = self.publisher.clone().call(request, calls);
        Box::pin(response.map(accepting).map(Ok))
    }
}

/// Whether a request is a POST with a content type of gRPC.
fn is_grpc<B>(request: &http::Request<B>) -> bool {
    let content_type = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    // `application/grpc-web` begins with it too, and is another protocol.
    let is_type = |value: &str| {
        value
            .strip_prefix("application/grpc")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
    };
    request.method() == http::Method::POST && content_type.is_some_and(is_type)
}

/// The response that the gRPC protocol asks for, so that a proxy or a browser does not take it for a stream.
fn not_grpc() -> http::Response<ResponseBody> {
    let mut response = http::Response::new(ResponseBody::default());
    *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

impl tonic::server::NamedService for EventService {
    const NAME: &'static str = "tidegate.v1.EventService";
}

//! `tidegate.v1.EventService` as a tower service.
//!
//! `Subscribe` is answered with a [`Drainer`], outside of tonic, whose routes box a body twice. The other
//! methods are served by tonic, but not through its generated service, which decodes a request before
//! anyone can ask how much it holds.

mod access;
mod body;
mod calls;
mod config;
mod convert;
mod deadline;
mod drainer;
mod gate;
mod precheck;
mod publish;
mod wire;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderValue, header::CONTENT_TYPE};
use http_body::Body;
use tidegate_core::{Hub, SubscribeOptions};
use tidegate_proto::v1::{SubscribeRequest, SubscribeResponse};
use tokio::time::{self, timeout_at};
use tonic::{
    Status,
    codec::{Codec as _, Streaming},
};
use tower_service::Service;

pub use self::{
    access::{Access, Authority},
    body::ResponseBody,
    calls::{CallBody, Calls, RequestBody},
    config::{PublishLimits, ServiceConfig},
    convert::{EncodeError, encode, limits_in_force},
    drainer::Drainer,
    gate::{Caller, Gate, Place},
    wire::Encoded,
};

use self::{
    access::{Guard, Interest, caller},
    drainer::Held,
    gate::Permit,
    precheck::MeasuringCodec,
    publish::{PUBLISH, PUBLISH_STREAM, Publisher},
};
use crate::{
    chunks::{ChunkStats, Sharing},
    client_ids::is_anonymous,
    reason::Reason,
    reset,
    status::{late, not_subscribed, spread, unreadable},
};

const SUBSCRIBE: &str = "/tidegate.v1.EventService/Subscribe";

/// A subscribe request is a client id and filters; 1,024 of the longest take 272 KiB.
const MAX_SUBSCRIBE_REQUEST_BYTES: usize = 512 << 10;

/// `tidegate.v1.EventService` over a [`Hub`]. Cheap to clone; the clones share the hub.
///
/// It asks nobody for credentials: see [`Access`].
///
/// Serve it with hyper's HTTP/2 connections, whose `max_send_buf_size` is what one stream can buffer
/// beyond recall: the default of 400 KiB makes a slow client see events that are 400 KiB old.
#[derive(Debug, Clone)]
pub struct EventService {
    /// What its subscriptions, and those of its clones, have in common.
    sharing: Arc<Sharing>,
    hub: Hub<Encoded>,
    config: Arc<ServiceConfig>,
    publisher: Publisher,
    /// The calls of the connection that is served, if whoever serves it wants to end them.
    calls: Option<Calls>,
}

/// A response on its way.
pub type ResponseFuture =
    Pin<Box<dyn Future<Output = Result<http::Response<ResponseBody>, Infallible>> + Send>>;

impl EventService {
    /// Makes the service for `hub`.
    #[must_use]
    pub fn new(hub: Hub<Encoded>, config: ServiceConfig) -> Self {
        let publisher = Publisher::new(
            hub.clone(),
            config.publish.clone(),
            config.request_timeout,
            config.gate.clone(),
        );
        Self {
            sharing: Arc::new(Sharing::new()),
            hub,
            config: Arc::new(config),
            publisher,
            calls: None,
        }
    }

    /// The service for one connection, and the handle that ends the calls of this connection and no
    /// others.
    #[must_use]
    pub fn for_connection(&self) -> (Self, Calls) {
        let calls = Calls::new(self.hub.clone());
        let mut service = self.clone();
        service.calls = Some(calls.clone());
        (service, calls)
    }

    /// How often its subscriptions, and those of its clones, were given a chunk that was there already.
    #[must_use]
    pub fn chunk_stats(&self) -> ChunkStats {
        self.sharing.stats()
    }

    async fn subscribe<B>(&self, request: http::Request<B>) -> Result<Drainer, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let deadline = deadline::of(request.headers())?;
        let access = request.extensions().get::<Access>().cloned();
        let gate = self.config.gate.as_ref();
        let gate = gate.map(|gate| (gate, caller(request.extensions())));
        let in_time = time::Instant::now() + self.config.request_timeout;
        let in_time = deadline.map_or(in_time, |deadline| deadline.min(in_time));
        let request = read_request(request, Arc::clone(&self.config));
        let request = timeout_at(in_time, request).await.map_err(|_| late())??;
        let mut wanted = convert::subscribe_request(&request, &self.config)?;
        wanted.options.reset = reset::current();
        let admitted = match access {
            None => None,
            Some(access) => Some(admit(access, &mut wanted.options)?),
        };
        // Behind the rights: what is not allowed is not counted.
        let place = gate.map(|(gate, caller)| gate.subscribe(&caller, &request.filters));
        let mut permit = Permit::new(place.transpose()?);
        let subscription = self
            .hub
            .subscribe(wanted.options, Instant::now())
            .map_err(not_subscribed)?;
        permit.begun(subscription.id(), subscription.limits());
        let reconnect_after = spread(subscription.id(), self.config.reconnect_spread);
        let calls = self.calls.as_ref();
        let enrolled = calls.map(|calls| calls.enroll(subscription.id()));
        let guard = admitted.map(|(access, interest)| {
            Guard::new(&access, interest, self.hub.clone(), subscription.id())
        });
        Ok(Drainer::new(
            subscription,
            Arc::clone(&self.sharing),
            Held {
                permit,
                _enrolled: enrolled,
                _guard: guard,
            },
            wanted.heartbeat_interval,
            wanted.min_interval,
            reconnect_after,
            deadline,
        ))
    }
}

/// Lets a subscription in that `access` allows, and writes down on whose behalf it is.
fn admit(access: Access, options: &mut SubscribeOptions) -> Result<(Access, Interest), Status> {
    let interest = Interest {
        client_id: Some(&options.client_id)
            .filter(|id| !is_anonymous(id))
            .cloned(),
        filters: options.filters.clone(),
    };
    access.check_subscribe(&interest)?;
    options.principal = Some(Arc::clone(access.principal()));
    Ok((access, interest))
}

/// Reads the one message of a `Subscribe` call.
async fn read_request<B>(
    request: http::Request<B>,
    config: Arc<ServiceConfig>,
) -> Result<SubscribeRequest, Status>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let encoding = request
        .headers()
        .get("grpc-encoding")
        .filter(|encoding| *encoding != "identity");
    if encoding.is_some() {
        return Err(Status::unimplemented(
            "a compressed request is not served; send it with identity",
        ));
    }
    let decoder = MeasuringCodec::<SubscribeResponse, SubscribeRequest>::new(config).decoder();
    let mut messages = Streaming::new_request(
        decoder,
        request.into_body(),
        None,
        Some(MAX_SUBSCRIBE_REQUEST_BYTES),
    );
    let message = messages
        .message()
        .await
        .map_err(|status| unreadable(status, Reason::InvalidRequest))?;
    message.ok_or_else(|| Reason::InvalidRequest.status("the call carries no SubscribeRequest"))
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
        if path == SUBSCRIBE {
            let service = self.clone();
            return Box::pin(async move { Ok(answer(service.subscribe(request).await)) });
        }
        let response = self.publisher.clone().call(request, self.calls.clone());
        Box::pin(async move { Ok(response.await) })
    }
}

fn is_grpc<B>(request: &http::Request<B>) -> bool {
    let content_type = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    // Not a prefix of other types, as `application/grpc-web` is.
    let is_ours = |value: &str| {
        value
            .strip_prefix("application/grpc")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
    };
    request.method() == http::Method::POST && content_type.is_some_and(is_ours)
}

/// As gRPC asks for, so that a proxy or a browser makes no stream of it.
fn not_grpc() -> http::Response<ResponseBody> {
    let mut response = http::Response::new(ResponseBody::default());
    *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

fn answer(subscribed: Result<Drainer, Status>) -> http::Response<ResponseBody> {
    match subscribed {
        Ok(drainer) => {
            let mut response = http::Response::new(ResponseBody::Subscription(drainer));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        Err(status) => status.into_http(),
    }
}

impl tonic::server::NamedService for EventService {
    const NAME: &'static str = "tidegate.v1.EventService";
}

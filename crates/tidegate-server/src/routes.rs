//! The services of one connection: events, and beside them the admin service, health (`grpc.health.v1`) for load
//! balancers, and reflection (`grpc.reflection.v1` and `v1alpha`) for tools.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    task::Poll,
    time::Duration,
};

use http::Uri;
use tidegate::{
    Access, Calls, EventService, Reason, ResponseFuture, check_encoding,
    proto::admin_service_server::{AdminServiceServer, SERVICE_NAME as ADMIN_NAME},
    request_timed_out,
};
use tidegate_transport::RequestBody;
use tokio::time::timeout;
use tonic::{Code, Status, body::Body, codec::CompressionEncoding, server::NamedService as _};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::v1::server_reflection_server::ServerReflectionServer;
use tower::Service;

use crate::{
    access_log::{self, CountedBody, Record, RecordedBody, RecordedFuture},
    config::ServerConfig,
    identity::{Authenticator, peer::Peer},
    network::{listener::PeerAddress, tls::Certificates},
    operations::{
        admin::Admin,
        controls::Controls,
        health::Health,
        reflection::{METHOD as REFLECT, OLDER_METHOD as REFLECT_ALPHA, Reflection},
    },
    quotas::Claim,
};

/// The beginning of the admin service's paths.
const ADMIN: &str = "/tidegate.v1.AdminService/";

/// The methods that need no credentials: load balancers have none, and learn only whether to send calls.
const PUBLIC_METHODS: [&str; 2] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];

/// The methods that every principal may call. The event service checks which topics its rights cover. Any method that
/// is in neither list, known or not, is for administrators.
const PRINCIPAL_METHODS: [&str; 5] = [
    REFLECT,
    REFLECT_ALPHA,
    "/tidegate.v1.EventService/Publish",
    "/tidegate.v1.EventService/PublishStream",
    SUBSCRIBE,
];

/// The method whose calls may take over the place of another connection.
const SUBSCRIBE: &str = "/tidegate.v1.EventService/Subscribe";

/// The beginning of the health service's paths.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// The largest request of the services beside the events. tonic keeps the room of the largest message of a stream, and
/// compressed it may take a thousandth of it to send.
const MAX_SIDE_REQUEST_BYTES: usize = 16 << 10;

/// The body of a request.
type RequestBytes = CountedBody<RequestBody>;

/// The services that all connections share.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    events: EventService,
    side: Arc<SideServices>,
    /// `None` if calls need no credentials.
    authenticator: Option<Arc<Authenticator>>,
}

/// The services of one connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionRoutes {
    events: EventService,
    side: Arc<SideServices>,
    calls: Calls,
    /// The remote address of the connection.
    address: SocketAddr,
    /// The protocol of the connection, for the access log.
    protocol: &'static str,
    /// `None` if calls need no credentials.
    peer: Option<Arc<Peer>>,
}

/// The services beside the events, and what they need.
#[derive(Debug)]
struct SideServices {
    /// `None` if the configuration does not serve it.
    admin: Option<AdminServiceServer<Admin>>,
    /// The time that a call of the admin service, or for health, has to send its request.
    request_timeout: Duration,
    /// Count calls whose credentials are not accepted.
    controls: Controls,
    health: Health,
    health_server: HealthServer<Health>,
    reflection: ServerReflectionServer<Reflection>,
}

// ===== impl Routes =====

impl Routes {
    /// The services that `config` asks for. Call [`set_serving`](Self::set_serving) before the first connection.
    pub(crate) fn new(
        events: EventService,
        authenticator: Option<Arc<Authenticator>>,
        controls: Controls,
        config: &ServerConfig,
    ) -> Self {
        let admin = config.serves_admin().then(|| Admin(controls.clone()));
        let mut services = vec![EventService::NAME];
        services.extend(admin.is_some().then_some(ADMIN_NAME));
        let health = Health::new(&services);
        let side = SideServices {
            admin: admin.map(|admin| {
                AdminServiceServer::new(admin)
                    .accept_compressed(CompressionEncoding::Gzip)
                    .max_decoding_message_size(MAX_SIDE_REQUEST_BYTES)
            }),
            request_timeout: config.service.request_timeout,
            controls,
            health_server: health
                .server()
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(MAX_SIDE_REQUEST_BYTES),
            health,
            reflection: Reflection::new(&services)
                .server()
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(MAX_SIDE_REQUEST_BYTES),
        };
        Self {
            events,
            side: Arc::new(side),
            authenticator,
        }
    }

    /// Sets the health of the server and all its services, and tells clients that watch it.
    pub(crate) fn set_serving(&self, is_serving: bool) {
        self.side.health.set_serving(is_serving);
    }

    /// The services of a connection from `address`, whose client showed `certificates`.
    pub(crate) fn for_connection(
        &self,
        address: SocketAddr,
        protocol: &'static str,
        certificates: Option<Certificates>,
    ) -> (ConnectionRoutes, Calls) {
        let (events, calls) = self.events.for_connection();
        let quotas = self.side.controls.quotas();
        let peer = self.authenticator.clone().map(|authenticator| {
            let peer = Peer::new(authenticator, Arc::clone(quotas), address, certificates);
            Arc::new(peer)
        });
        let routes = ConnectionRoutes {
            events,
            side: Arc::clone(&self.side),
            calls: calls.clone(),
            address,
            protocol,
            peer,
        };
        (routes, calls)
    }
}

// ===== impl ConnectionRoutes =====

impl Service<http::Request<RequestBody>> for ConnectionRoutes {
    type Response = http::Response<RecordedBody>;
    type Error = Infallible;
    type Future = RecordedFuture<ResponseFuture>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<RequestBody>) -> Self::Future {
        let record = access_log::is_on().then(|| {
            let path = request.uri().path();
            Box::new(Record::new(path, PeerAddress(self.address), self.protocol))
        });
        let received = record.as_ref().map(|record| record.received());
        let principal = record.as_ref().map(|record| record.principal());
        let request = request.map(|body| CountedBody::new(body, received));
        let response = self.respond(request, principal);
        RecordedFuture::new(response, record, self.side.controls.subscribers())
    }
}

impl ConnectionRoutes {
    /// Answers a call, and notes its principal for the access log.
    fn respond(
        &mut self,
        mut request: http::Request<RequestBytes>,
        principal: Option<Arc<OnceLock<Arc<str>>>>,
    ) -> ResponseFuture {
        // For all services alike, so that each says what is wrong in the same words.
        if let Err(status) = check_encoding(request.headers()) {
            return Box::pin(async { Ok(status.into_http()) });
        }
        let peer = self.peer.clone();
        let Some(peer) = peer.filter(|_| !PUBLIC_METHODS.contains(&request.uri().path())) else {
            return self.route(request, None);
        };
        let mut routes = self.clone();
        Box::pin(async move {
            match routes.authorize(&peer, &request, principal).await {
                Ok(access) => {
                    request.extensions_mut().insert(access.clone());
                    routes.route(request, Some(access)).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }

    /// Authenticates the call, and authorizes its method. Topics, filters and client ids are for the service to check.
    ///
    /// # Errors
    /// The status of [`Peer::identify`], or `NOT_ALLOWED` if the method is for administrators.
    async fn authorize(
        &self,
        peer: &Peer,
        request: &http::Request<RequestBytes>,
        principal: Option<Arc<OnceLock<Arc<str>>>>,
    ) -> Result<Access, Status> {
        let path = request.uri().path();
        let claim = match path {
            SUBSCRIBE => Claim::Subscription,
            _ => Claim::Call,
        };
        let authenticated =
            peer.identify(request.headers(), claim)
                .await
                .inspect_err(|status| {
                    if status.code() == Code::Unauthenticated {
                        self.side.controls.note_auth_failure();
                    }
                })?;
        if let Some(known) = principal {
            // A call has one principal.
            let _ = known.set(Arc::clone(authenticated.access.principal()));
        }
        if PRINCIPAL_METHODS.contains(&path) || authenticated.may_administer() {
            return Ok(authenticated.access);
        }
        let principal = authenticated.access.principal();
        Err(Reason::NotAllowed.status(format!(
            "`{principal}` may not call `{path}`; ask for a rule with `admin = true`"
        )))
    }

    /// Hands the request to its service.
    fn route(
        &mut self,
        mut request: http::Request<RequestBytes>,
        access: Option<Access>,
    ) -> ResponseFuture {
        let path = request.uri().path();
        if let Some(admin) = &self.side.admin
            && path.starts_with(ADMIN)
        {
            let response = admin.clone().call(request);
            return self.in_time(response, access);
        }
        if !path.starts_with("/grpc.") {
            request.extensions_mut().insert(tidegate::Caller {
                address: Some(self.address),
                principal: None,
            });
            return self.events.call(request);
        }
        let calls = self.calls.clone();
        if path.starts_with(HEALTH) {
            let health = self.side.health_server.clone().call(request);
            return self.in_time(health, access);
        }
        if [REFLECT, REFLECT_ALPHA].contains(&path) {
            // The messages of both versions are the same, and the generated service knows the newer path.
            *request.uri_mut() = Uri::from_static(REFLECT);
            let response = self.side.reflection.clone().call(request);
            return Box::pin(async move {
                Ok(calls.respond_until_ended(access.as_ref(), response.await?))
            });
        }
        // An unknown service of gRPC: the event service answers it as it does any unknown method.
        self.events.call(request)
    }

    /// The response of a service to a request that has to come within the time for it.
    fn in_time(
        &self,
        response: impl Future<Output = Result<http::Response<Body>, Infallible>> + Send + 'static,
        access: Option<Access>,
    ) -> ResponseFuture {
        let calls = self.calls.clone();
        let response = timeout(self.side.request_timeout, response);
        Box::pin(async move {
            let response = match response.await {
                Ok(response) => response?,
                Err(_) => request_timed_out().into_http(),
            };
            Ok(calls.respond(access.as_ref(), response))
        })
    }
}

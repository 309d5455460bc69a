//! The services of one connection: events, and beside them the admin service, health (`grpc.health.v1`) for load
//! balancers, and reflection (`grpc.reflection.v1`) for tools.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use tidegate::{
    Access, Calls, EventService, FILE_DESCRIPTOR_SET, Reason, ResponseBody, ResponseFuture,
    check_encoding,
    proto::admin_service_server::{AdminServiceServer, SERVICE_NAME as ADMIN_NAME},
    request_timed_out,
};
use tidegate_transport::RequestBody;
use tokio::time::timeout;
use tonic::{Code, Status, codec::CompressionEncoding, server::NamedService as _};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tonic_reflection::server::Builder;
use tower::{Service, util::BoxCloneSyncService};

use crate::{
    config::ServerConfig,
    identity::{Authenticator, peer::Peer},
    network::tls::Certificates,
    operations::{admin::Admin, controls::Controls},
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
const PRINCIPAL_METHODS: [&str; 4] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/tidegate.v1.EventService/Publish",
    "/tidegate.v1.EventService/PublishStream",
    SUBSCRIBE,
];

/// The method whose calls may take over the place of another connection.
const SUBSCRIBE: &str = "/tidegate.v1.EventService/Subscribe";

/// The beginning of the health service's paths.
const HEALTH: &str = "/grpc.health.v1.Health/";
/// The beginning of the reflection service's paths.
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/";

/// The largest request of the services beside the events. tonic keeps the room of the largest message of a stream, and
/// compressed it may take a thousandth of it to send.
const MAX_SIDE_REQUEST_BYTES: usize = 16 << 10;

/// The reflection service, boxed because its own type cannot be named.
type Reflection = BoxCloneSyncService<
    http::Request<tidegate::RequestBody<RequestBody>>,
    http::Response<tonic::body::Body>,
    Infallible,
>;

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
    /// `None` if calls need no credentials.
    peer: Option<Arc<Peer>>,
}

/// The services beside the events, and what they need.
#[derive(Debug)]
struct SideServices {
    /// `None` if the configuration does not serve it.
    admin: Option<AdminServiceServer<Admin>>,
    /// The time that a call of the admin service has to send its request.
    request_timeout: Duration,
    /// Count calls whose credentials are not accepted.
    controls: Controls,
    /// The names that health is served under: each service, and `""` for the server as a whole.
    names: Vec<&'static str>,
    reporter: HealthReporter,
    health: HealthServer<HealthService>,
    reflection: Reflection,
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
        let reporter = HealthReporter::new();
        let admin = config.serves_admin().then(|| Admin(controls.clone()));
        let mut names = vec![EventService::NAME];
        names.extend(admin.is_some().then_some(ADMIN_NAME));
        let reflection = Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let own_names = [
            tonic_health::pb::health_server::SERVICE_NAME,
            "grpc.reflection.v1.ServerReflection",
        ];
        let reflection = names
            .iter()
            .chain(&own_names)
            .fold(reflection, |builder, name| builder.with_service_name(*name))
            .build_v1()
            .expect("descriptors that the build made can be read")
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(MAX_SIDE_REQUEST_BYTES);
        names.push("");
        let side = SideServices {
            admin: admin.map(|admin| {
                AdminServiceServer::new(admin)
                    .accept_compressed(CompressionEncoding::Gzip)
                    .max_decoding_message_size(MAX_SIDE_REQUEST_BYTES)
            }),
            request_timeout: config.service.request_timeout,
            controls,
            names,
            health: HealthServer::new(HealthService::from_health_reporter(reporter.clone()))
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(MAX_SIDE_REQUEST_BYTES),
            reporter,
            reflection: BoxCloneSyncService::new(reflection),
        };
        Self {
            events,
            side: Arc::new(side),
            authenticator,
        }
    }

    /// Sets the health of the server and all its services, and tells clients that watch it.
    pub(crate) async fn set_serving(&self, is_serving: bool) {
        let status = match is_serving {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        for name in &self.side.names {
            self.side.reporter.set_service_status(name, status).await;
        }
    }

    /// The services of a connection from `address`, whose client showed `certificates`.
    pub(crate) fn for_connection(
        &self,
        address: SocketAddr,
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
            peer,
        };
        (routes, calls)
    }
}

// ===== impl ConnectionRoutes =====

impl Service<http::Request<RequestBody>> for ConnectionRoutes {
    type Response = http::Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<RequestBody>) -> ResponseFuture {
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
            match routes.authorize(&peer, &request).await {
                Ok(access) => {
                    request.extensions_mut().insert(access.clone());
                    routes.route(request, Some(access)).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

impl ConnectionRoutes {
    /// Authenticates the call, and authorizes its method. Topics, filters and client ids are for the service to check.
    ///
    /// # Errors
    /// The status of [`Peer::identify`], or `NOT_ALLOWED` if the method is for administrators.
    async fn authorize(
        &self,
        peer: &Peer,
        request: &http::Request<RequestBody>,
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
        mut request: http::Request<RequestBody>,
        access: Option<Access>,
    ) -> ResponseFuture {
        let path = request.uri().path();
        if let Some(admin) = &self.side.admin
            && path.starts_with(ADMIN)
        {
            let calls = self.calls.clone();
            let response = timeout(self.side.request_timeout, admin.clone().call(request));
            return Box::pin(async move {
                let response = match response.await {
                    Ok(response) => response?,
                    Err(_) => request_timed_out().into_http(),
                };
                Ok(calls.respond(access.as_ref(), response))
            });
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
            let response = self.side.health.clone().call(request);
            return Box::pin(async move { Ok(calls.respond(access.as_ref(), response.await?)) });
        }
        if path.starts_with(REFLECTION) {
            let request = request.map(|body| calls.request(body));
            let response = self.side.reflection.clone().call(request);
            return Box::pin(async move { Ok(calls.respond(access.as_ref(), response.await?)) });
        }
        // An unknown service of gRPC: the event service answers it as it does any unknown method.
        self.events.call(request)
    }
}

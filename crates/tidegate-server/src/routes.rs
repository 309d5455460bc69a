//! The services of one connection: events, and beside them the admin service, if it is served, health (`grpc.health.v1`) and reflection
//! (`grpc.reflection.v1`), for load balancers and for tools.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, task::Poll};

use hyper::body::Incoming;
use tidegate::{
    Caller, Calls, EventService, FILE_DESCRIPTOR_SET, RequestBody, ResponseBody, ResponseFuture,
    proto::admin_service_server::{AdminServiceServer, SERVICE_NAME as ADMIN_NAME},
};
use tonic::server::NamedService as _;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tonic_reflection::server::Builder;
use tower::{Service, util::BoxCloneSyncService};

use crate::admin::Admin;

const ADMIN: &str = "/tidegate.v1.AdminService/";

const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/";

/// Its type has no name.
type Reflection = BoxCloneSyncService<
    http::Request<RequestBody<Incoming>>,
    http::Response<tonic::body::Body>,
    Infallible,
>;

/// What all connections share.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    events: EventService,
    beside: Arc<Beside>,
}

/// The services of one connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionRoutes {
    events: EventService,
    beside: Arc<Beside>,
    calls: Calls,
    caller: Caller,
}

#[derive(Debug)]
struct Beside {
    admin: Option<AdminServiceServer<Admin>>,
    /// The names that health is asked for: the server as a whole, and its services.
    names: Vec<&'static str>,
    reporter: HealthReporter,
    health: HealthServer<HealthService>,
    reflection: Reflection,
}

impl Routes {
    /// `admin` is served if it is there.
    pub(crate) fn new(events: EventService, admin: Option<Admin>) -> Self {
        let reporter = HealthReporter::new();
        let mut names = vec![EventService::NAME];
        names.extend(admin.is_some().then_some(ADMIN_NAME));
        let reflection = Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let beside = [
            tonic_health::pb::health_server::SERVICE_NAME,
            "grpc.reflection.v1.ServerReflection",
        ];
        let reflection = names
            .iter()
            .chain(&beside)
            .fold(reflection, |builder, name| builder.with_service_name(*name))
            .build_v1()
            .expect("descriptors that the build made can be read");
        names.push("");
        let beside = Beside {
            admin: admin.map(AdminServiceServer::new),
            names,
            health: HealthServer::new(HealthService::from_health_reporter(reporter.clone())),
            reporter,
            reflection: BoxCloneSyncService::new(reflection),
        };
        Self {
            events,
            beside: Arc::new(beside),
        }
    }

    /// Tells who asks for health, and who watches it, whether to send calls here.
    pub(crate) async fn set_serving(&self, is_serving: bool) {
        let status = match is_serving {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        for name in &self.beside.names {
            self.beside.reporter.set_service_status(name, status).await;
        }
    }

    pub(crate) fn for_connection(&self, peer: SocketAddr) -> (ConnectionRoutes, Calls) {
        let (events, calls) = self.events.for_connection();
        let routes = ConnectionRoutes {
            events,
            beside: Arc::clone(&self.beside),
            calls: calls.clone(),
            caller: Caller {
                address: Some(peer),
                principal: None,
            },
        };
        (routes, calls)
    }
}

impl Service<http::Request<Incoming>> for ConnectionRoutes {
    type Response = http::Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Incoming>) -> ResponseFuture {
        let path = request.uri().path();
        if let Some(admin) = &self.beside.admin
            && path.starts_with(ADMIN)
        {
            let calls = self.calls.clone();
            let response = admin.clone().call(request);
            return Box::pin(async move { Ok(calls.respond(response.await?)) });
        }
        if !path.starts_with("/grpc.") {
            request.extensions_mut().insert(self.caller.clone());
            return self.events.call(request);
        }
        let calls = self.calls.clone();
        if path.starts_with(HEALTH) {
            let response = self.beside.health.clone().call(request);
            return Box::pin(async move { Ok(calls.respond(response.await?)) });
        }
        if path.starts_with(REFLECTION) {
            let request = request.map(|body| calls.request(body));
            let response = self.beside.reflection.clone().call(request);
            return Box::pin(async move { Ok(calls.respond(response.await?)) });
        }
        // Answered as any method that is not there.
        self.events.call(request)
    }
}

//! Health checking (`grpc.health.v1`), for load balancers and probes.
//!
//! The service of `tonic-health` ends a watch of a name that it does not know with NOT_FOUND, and its clients come back
//! to ask again. health.proto wants SERVICE_UNKNOWN there, in a stream that stays open. So only the messages are from
//! that crate.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_stream::{StreamExt as _, wrappers::WatchStream};
use tonic::{Request, Response, Status, codegen::BoxStream};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{self, HealthServer},
};

/// The health of the server and of its services, which is the same: they begin and end together. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    /// The names that have a health: each service, and `""` for the server as a whole.
    names: Arc<[&'static str]>,
    is_serving: Arc<watch::Sender<bool>>,
}

impl Health {
    /// The health of `services` and of the server as a whole. Nothing serves before the first
    /// [`set_serving`](Self::set_serving).
    pub(crate) fn new(services: &[&'static str]) -> Self {
        Self {
            names: services.iter().copied().chain([""]).collect(),
            is_serving: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Sets the health of everything, and tells clients that watch it.
    pub(crate) fn set_serving(&self, is_serving: bool) {
        self.is_serving.send_replace(is_serving);
    }

    /// The service of it.
    pub(crate) fn server(&self) -> HealthServer<Self> {
        HealthServer::new(self.clone())
    }

    fn has(&self, request: &HealthCheckRequest) -> bool {
        self.names.contains(&&request.service[..])
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !self.has(request.get_ref()) {
            return Err(Status::not_found(format!(
                "no service has this name; the names with a health are {:?}",
                self.names
            )));
        }
        let is_serving = *self.is_serving.borrow();
        Ok(Response::new(response(status(is_serving))))
    }

    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !self.has(request.get_ref()) {
            // Services do not come later here, so nothing follows until the connection ends its calls.
            let unknown = tokio_stream::once(Ok(response(ServingStatus::ServiceUnknown)));
            return Ok(Response::new(Box::pin(
                unknown.chain(tokio_stream::pending()),
            )));
        }
        let changes = WatchStream::new(self.is_serving.subscribe());
        let changes = changes.map(|is_serving| Ok(response(status(is_serving))));
        Ok(Response::new(Box::pin(changes)))
    }
}

fn status(is_serving: bool) -> ServingStatus {
    match is_serving {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

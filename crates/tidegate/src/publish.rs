//! `Publish` and `PublishStream`: tonic's generated service over the hub.

use std::{pin::Pin, sync::Arc, time::Instant};

use tidegate_core::Hub;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    access::Access,
    convert,
    proto::{
        PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse, event_service_server,
    },
    service::PublishLimits,
    status::{Reason, not_published, unreadable},
    wire::Encoded,
};

/// What the generated service calls. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    hub: Hub<Encoded>,
    limits: Arc<PublishLimits>,
}

impl Publisher {
    pub(crate) fn new(hub: Hub<Encoded>, limits: PublishLimits) -> Self {
        Self {
            hub,
            limits: Arc::new(limits),
        }
    }

    /// Publishes one batch: all of it or, with an error, nothing.
    fn publish(
        &self,
        request: PublishRequest,
        access: Option<&Access>,
    ) -> Result<PublishResponse, Status> {
        let events = convert::publish_request(request, &self.limits)?;
        if let Some(access) = access {
            access.check_publish(events.iter().map(|event| &event.topic))?;
        }
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
}

#[tonic::async_trait]
impl event_service_server::EventService for Publisher {
    type SubscribeStream = tokio_stream::Empty<Result<SubscribeResponse, Status>>;
    type PublishStreamStream = Pin<Box<dyn Stream<Item = Result<PublishResponse, Status>> + Send>>;

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        Self::publish(self, request, extensions.get()).map(Response::new)
    }

    /// One response a request, in order. The next request is read when the transport asks for the next
    /// response, so a client that does not read its responses is not read either.
    async fn publish_stream(
        &self,
        requests: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let publisher = self.clone();
        let access = requests.extensions().get::<Access>().cloned();
        let responses = requests.into_inner().map(move |request| {
            let request = request.map_err(|status| unreadable(status, Reason::BatchTooLarge))?;
            Self::publish(&publisher, request, access.as_ref())
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

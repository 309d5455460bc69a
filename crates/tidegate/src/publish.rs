//! `Publish` and `PublishStream`: tonic's generated service over the hub.

use std::{pin::Pin, sync::Arc, time::Instant};

use tidegate_core::{Hub, NewEvent, Payload as _};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    convert,
    gate::{Caller, Gate, caller},
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
    gate: Option<Arc<dyn Gate>>,
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

    /// Publishes one batch: all of it or, with an error, nothing.
    fn publish(&self, request: PublishRequest, caller: &Caller) -> Result<PublishResponse, Status> {
        let events = convert::publish_request(request, &self.limits)?;
        self.pass_gate(&events, caller)?;
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

impl Publisher {
    /// Who calls, if anyone wants to know.
    fn caller(&self, extensions: &http::Extensions) -> Caller {
        match &self.gate {
            Some(_) => caller(extensions),
            None => Caller::default(),
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

#[tonic::async_trait]
impl event_service_server::EventService for Publisher {
    type SubscribeStream = tokio_stream::Empty<Result<SubscribeResponse, Status>>;
    type PublishStreamStream = Pin<Box<dyn Stream<Item = Result<PublishResponse, Status>> + Send>>;

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        let caller = self.caller(request.extensions());
        Self::publish(self, request.into_inner(), &caller).map(Response::new)
    }

    /// One response a request, in order. The next request is read when the transport asks for the next
    /// response, so a client that does not read its responses is not read either.
    async fn publish_stream(
        &self,
        requests: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let publisher = self.clone();
        let caller = self.caller(requests.extensions());
        let responses = requests.into_inner().map(move |request| {
            let request = request.map_err(|status| unreadable(status, Reason::BatchTooLarge))?;
            Self::publish(&publisher, request, &caller)
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

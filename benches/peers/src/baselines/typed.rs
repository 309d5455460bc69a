//! tonic's generated service with a typed hub, as in a service that embeds the library.

use std::{
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use tidegate::typed::{Hub, Publication, Snapshot, Subscription};
use tidegate_proto::v1::{
    PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse, Subscribed,
    subscribe_response::Response as Kind,
};
use tidegate_transport::{Http2Config, Server};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming, service::Routes};

use super::{Failure, TlsArgs};

/// The server of `tidegate.v1`, whose responses are encoded once.
#[allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::use_self,
    reason = "generated code"
)]
mod proto {
    tonic::include_proto!("tidegate.v1");
}

use proto::event_service_server::{EventService, EventServiceServer};

pub(crate) async fn serve(tls: &TlsArgs) -> Result<(), Failure> {
    super::serve(
        tls,
        Routes::new(EventServiceServer::new(Service::default())),
    )
    .await
}

/// The same service over connections of tidegate's own, in place of tonic's server.
pub(crate) async fn serve_on_transport() -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    super::announce(listener.local_addr()?);
    let service = Routes::new(EventServiceServer::new(Service::default()));
    let server = Server::new(Http2Config::default());
    server.serve(listener, service, pending()).await;
    Ok(())
}

#[derive(Default)]
struct Service {
    hub: Hub<SubscribeResponse>,
    /// Number of events published. It is the index of the next for every stream, since there is one topic.
    published: Arc<Mutex<u64>>,
}

impl Service {
    fn publish(&self, request: PublishRequest) -> Result<PublishResponse, Status> {
        let mut published = self
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut events = Vec::with_capacity(request.events.len());
        let response = super::publish(request, |event| {
            let topic = event.topic.clone();
            let index = *published;
            *published += 1;
            let response = super::batch(super::event(event, index + 1), index);
            events.push(Publication::new(response).topic(topic));
        });
        self.hub.publish_all(events)?;
        Ok(response)
    }
}

#[tonic::async_trait]
impl EventService for Service {
    type SubscribeStream = Subscription<SubscribeResponse>;
    type PublishStreamStream = Pin<Box<dyn Stream<Item = Result<PublishResponse, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (hub, published) = (self.hub.clone(), Arc::clone(&self.published));
        let subscription = self
            .hub
            .subscribe()
            .topics(request.into_inner().filters)
            .snapshot(async move |_| {
                let published = published.lock().unwrap_or_else(PoisonError::into_inner);
                let first = super::response(Kind::Subscribed(Subscribed {
                    next_index: *published,
                    ..Subscribed::default()
                }));
                Ok(Snapshot::new(hub.position(), [first]))
            })
            .on_loss(|gap| Some(super::gap(gap.count, gap.first_sequence - 1)));
        Ok(Response::new(subscription.open()?))
    }

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        Self::publish(self, request.into_inner()).map(Response::new)
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let service = Self {
            hub: self.hub.clone(),
            published: Arc::clone(&self.published),
        };
        let answers = request
            .into_inner()
            .map(move |request| Self::publish(&service, request?));
        Ok(Response::new(Box::pin(answers)))
    }
}

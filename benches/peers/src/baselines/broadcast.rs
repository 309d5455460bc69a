//! tonic, with one `tokio::sync::broadcast` for all streams.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tidegate_proto::v1::{
    Event, PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse,
    event_service_server::{EventService, EventServiceServer},
};
use tokio::sync::broadcast;
use tokio_stream::{Stream, StreamExt as _, wrappers::BroadcastStream};
use tonic::{Request, Response, Status, Streaming, service::Routes};

use super::{CAPACITY, Failure, TlsArgs};

pub(crate) async fn serve(tls: &TlsArgs) -> Result<(), Failure> {
    let (events, _) = broadcast::channel(CAPACITY);
    let sequence = Arc::default();
    let service = Service(Arc::new(Shared { events, sequence }));
    super::serve(tls, Routes::new(EventServiceServer::new(service))).await
}

struct Service(Arc<Shared>);

struct Shared {
    events: broadcast::Sender<Event>,
    sequence: Arc<AtomicU64>,
}

impl Shared {
    fn publish(&self, request: PublishRequest) -> PublishResponse {
        super::publish(request, |new| {
            let sequence = self.sequence.fetch_add(1, Relaxed) + 1;
            // This fails when there are no subscribers.
            let _ = self.events.send(super::event(new, sequence));
        })
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl EventService for Service {
    type SubscribeStream = Responses<SubscribeResponse>;
    type PublishStreamStream = Responses<PublishResponse>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let topics = request.into_inner().filters;
        let events = BroadcastStream::new(self.0.events.subscribe());
        let mut index = 0;
        let responses = events.filter_map(move |event| match event {
            Ok(event) if !topics.contains(&event.topic) => None,
            Ok(event) => {
                index += 1;
                Some(Ok(super::batch(event, index - 1)))
            }
            Err(lagged) => {
                let tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged(count) =
                    lagged;
                index += count;
                Some(Ok(super::gap(count, index - count)))
            }
        });
        let first = tokio_stream::once(Ok(super::subscribed()));
        Ok(Response::new(Box::pin(first.chain(responses))))
    }

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        Ok(Response::new(self.0.publish(request.into_inner())))
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let shared = self.0.clone();
        let answers = request
            .into_inner()
            .map(move |request| Ok(shared.publish(request?)));
        Ok(Response::new(Box::pin(answers)))
    }
}

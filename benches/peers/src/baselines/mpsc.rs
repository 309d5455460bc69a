//! tonic, with a `tokio::sync::mpsc` for each stream. An event that does not fit is dropped silently.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use tidegate_proto::v1::{
    Event, PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse,
    event_service_server::{EventService, EventServiceServer},
};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, service::Routes};

use super::{CAPACITY, Failure, TlsArgs};

pub(crate) async fn serve(tls: &TlsArgs) -> Result<(), Failure> {
    super::serve(
        tls,
        Routes::new(EventServiceServer::new(Service(Arc::default()))),
    )
    .await
}

struct Service(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    sequence: u64,
    subscribers: Vec<Subscriber>,
}

struct Subscriber {
    topics: Vec<String>,
    events: mpsc::Sender<Event>,
}

fn publish(state: &Mutex<State>, request: PublishRequest) -> PublishResponse {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    super::publish(request, |new| {
        state.sequence += 1;
        let event = super::event(new, state.sequence);
        state.subscribers.retain(|subscriber| {
            let matches = subscriber.topics.contains(&event.topic);
            !matches
                || !matches!(
                    subscriber.events.try_send(event.clone()),
                    Err(TrySendError::Closed(_))
                )
        });
    })
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
        let (events, received) = mpsc::channel(CAPACITY);
        let subscriber = Subscriber { topics, events };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.subscribers.push(subscriber);
        drop(state);
        let mut index = 0;
        let responses = ReceiverStream::new(received).map(move |event| {
            index += 1;
            Ok(super::batch(event, index - 1))
        });
        let first = tokio_stream::once(Ok(super::subscribed()));
        Ok(Response::new(Box::pin(first.chain(responses))))
    }

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        Ok(Response::new(publish(&self.0, request.into_inner())))
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let state = self.0.clone();
        let answers = request
            .into_inner()
            .map(move |request| Ok(publish(&state, request?)));
        Ok(Response::new(Box::pin(answers)))
    }
}

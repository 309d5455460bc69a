//! The chat server: a hub, and a subscription for each member.

use std::{future::Future, time::Duration};

use tidegate::{
    ClientIdPolicy, Filter,
    typed::{Hub, Publication, Subscription},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::proto::{
    JoinRequest, Message, SayRequest, SayResponse, ServerEvent, WhoRequest, WhoResponse,
    chat_server::{Chat, ChatServer},
    say_request::To,
    server_event::Kind,
};

struct ChatService {
    hub: Hub<ServerEvent>,
}

#[tonic::async_trait]
impl Chat for ChatService {
    type JoinStream = Subscription<ServerEvent>;

    async fn join(
        &self,
        request: Request<JoinRequest>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let JoinRequest { name, room } = request.into_inner();
        let room = topic(&room);
        let subscription = self
            .hub
            .subscribe()
            .client_id(&*name)
            .topic(&*room)
            .on_loss(|gap| Some(event(Kind::Missed(gap.count))))
            .open()?;
        let publish = |kind| Publication::new(event(kind)).topic(&*room);
        self.hub.publish(publish(Kind::Came(name.clone())))?;

        let (hub, went) = (self.hub.clone(), publish(Kind::Went(name)));
        let closed = subscription.closed();
        tokio::spawn(async move {
            closed.await;
            // This fails when the server is ending.
            let _ = hub.publish(went);
        });
        Ok(Response::new(subscription))
    }

    async fn say(&self, request: Request<SayRequest>) -> Result<Response<SayResponse>, Status> {
        let SayRequest { from, text, to } = request.into_inner();
        let message = |is_private| {
            event(Kind::Message(Message {
                from,
                text,
                is_private,
            }))
        };
        let reached = match to.ok_or_else(|| Status::invalid_argument("set `room` or `name`"))? {
            To::Room(room) => {
                let said = Publication::new(message(false)).topic(topic(&room));
                self.hub.publish(said)?.matched
            }
            To::Name(name) => u64::from(self.hub.send(name, message(true))?),
        };
        Ok(Response::new(SayResponse { reached }))
    }

    async fn who(&self, request: Request<WhoRequest>) -> Result<Response<WhoResponse>, Status> {
        let room = Filter::new(&topic(&request.into_inner().room))
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let clients = self.hub.clients().into_iter();
        let names = clients
            .filter(|client| client.filters.contains(&room))
            .map(|client| client.client_id.to_string())
            .collect();
        Ok(Response::new(WhoResponse { names }))
    }
}

fn topic(room: &str) -> String {
    format!("rooms.{room}")
}

fn event(kind: Kind) -> ServerEvent {
    ServerEvent { kind: Some(kind) }
}

/// Serves until `signal`, and then ends every stream with a status.
///
/// # Errors
/// If the server fails, or has not ended ten seconds after the signal.
pub async fn serve(
    listener: TcpListener,
    signal: impl Future<Output = ()>,
) -> Result<(), Box<dyn std::error::Error>> {
    let hub = Hub::builder().client_ids(ClientIdPolicy::Reject).build();
    let service = ChatServer::new(ChatService { hub: hub.clone() });
    let grace = Duration::from_secs(10);
    let served = hub.serve_until(signal, grace, |shutdown| {
        Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown)
    });
    Ok(served.await??)
}

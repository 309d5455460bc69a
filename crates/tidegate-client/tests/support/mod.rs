//! A server that is scripted by the test, over real sockets, and a wire that can be cut, slowed down and stopped.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

pub mod raw;

use std::{net::SocketAddr, time::Duration};

use tidegate_client::{
    Backoff, Client, ClientBuilder, Position, SubscribeOptions, Subscription, Update,
};
use tidegate_proto::v1::{
    self, Batch, CaughtUp, Event, Gap, GapReason, GoingAway, Heartbeat, PublishRequest,
    PublishResponse, SubscribeRequest, SubscribeResponse, Subscribed,
    event_service_server::{EventService, EventServiceServer},
    subscribe_response::Response as Kind,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

pub const EPOCH: u64 = 7;

type Responses<T> = mpsc::Sender<Result<T, Status>>;

/// A server that hands the calls of clients to the test, in order.
pub struct FakeServer {
    pub address: SocketAddr,
    subscribes: mpsc::Receiver<SubscribeCall>,
    publishes: mpsc::Receiver<PublishCall>,
    _tasks: JoinSet<()>,
}

/// A call of `Subscribe` that waits for its answer.
pub struct SubscribeCall {
    pub request: SubscribeRequest,
    /// The header `authorization`.
    pub credentials: Option<String>,
    answer: oneshot::Sender<Result<ReceiverStream<Result<SubscribeResponse, Status>>, Status>>,
}

/// A call of `PublishStream`.
pub struct PublishCall {
    pub requests: Streaming<PublishRequest>,
    pub responses: Responses<PublishResponse>,
}

struct Service {
    subscribes: mpsc::Sender<SubscribeCall>,
    publishes: mpsc::Sender<PublishCall>,
}

impl FakeServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (subscribe_sender, subscribes) = mpsc::channel(16);
        let (publish_sender, publishes) = mpsc::channel(16);
        let service = Service {
            subscribes: subscribe_sender,
            publishes: publish_sender,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            Server::builder()
                .add_service(EventServiceServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            address,
            subscribes,
            publishes,
            _tasks: tasks,
        }
    }

    pub fn client(&self) -> Client {
        Client::connect_lazy(format!("http://{}", self.address)).unwrap()
    }

    pub async fn subscribe_call(&mut self) -> SubscribeCall {
        self.subscribes.recv().await.unwrap()
    }

    pub async fn publish_call(&mut self) -> PublishCall {
        self.publishes.recv().await.unwrap()
    }

    /// Whether a call of `Subscribe` waits to be taken.
    pub fn has_subscribe_call(&self) -> bool {
        !self.subscribes.is_empty()
    }
}

impl SubscribeCall {
    pub fn resume_after(&self) -> Option<Position> {
        self.request.resume_after.map(Into::into)
    }

    /// Opens the stream; it ends when the sender is dropped.
    pub fn accept(self) -> Responses<SubscribeResponse> {
        let (sender, receiver) = mpsc::channel(64);
        let _ = self.answer.send(Ok(ReceiverStream::new(receiver)));
        sender
    }

    /// Opens the stream and begins it, with the head at `sequence`.
    pub async fn begin(self, sequence: u64) -> Responses<SubscribeResponse> {
        let responses = self.accept();
        responses.send(Ok(subscribed(sequence))).await.unwrap();
        responses
    }

    pub fn refuse(self, status: Status) {
        let _ = self.answer.send(Err(status));
    }
}

#[tonic::async_trait]
impl EventService for Service {
    type SubscribeStream = ReceiverStream<Result<SubscribeResponse, Status>>;
    type PublishStreamStream = ReceiverStream<Result<PublishResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (answer, answered) = oneshot::channel();
        let credentials = request.metadata().get("authorization");
        let credentials = credentials.map(|value| value.to_str().unwrap().into());
        let call = SubscribeCall {
            request: request.into_inner(),
            credentials,
            answer,
        };
        let _ = self.subscribes.send(call).await;
        let refused = |_| Err(Status::unavailable("the test dropped the call"));
        answered.await.unwrap_or_else(refused).map(Response::new)
    }

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        match request.into_inner().events.as_slice() {
            [] => Err(Status::invalid_argument("nothing to publish")),
            events => Ok(Response::new(acknowledgment(events.len()))),
        }
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let (responses, receiver) = mpsc::channel(64);
        let requests = request.into_inner();
        let call = PublishCall {
            requests,
            responses,
        };
        let _ = self.publishes.send(call).await;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// A TCP relay to the server, whose connections can be cut abruptly, or stop to carry anything.
pub struct Wire {
    pub address: SocketAddr,
    cut: mpsc::Sender<oneshot::Sender<()>>,
    stopped: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

/// The speed of a [`Wire`], in both directions: a piece at a time, and a pause after it.
#[derive(Clone, Copy)]
pub struct Pace {
    pub piece: usize,
    pub pause: Duration,
}

impl Wire {
    pub async fn to(server: SocketAddr) -> Self {
        let pace = Pace {
            piece: 64 * 1024,
            pause: Duration::ZERO,
        };
        Self::slow(server, pace).await
    }

    pub async fn slow(server: SocketAddr, pace: Pace) -> Self {
        let listener = TcpSocket::new_v4().unwrap();
        if !pace.pause.is_zero() {
            // What the kernel stores for the relay has left the client, whatever the pace.
            listener.set_recv_buffer_size(4096).unwrap();
        }
        listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listener.listen(16).unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, mut cuts) = mpsc::channel::<oneshot::Sender<()>>(1);
        let (stopped, is_stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let client = accepted.unwrap().0;
                        connections.spawn(relay(client, server, pace, is_stopped.clone()));
                    }
                    Some(done) = cuts.recv() => {
                        connections.shutdown().await;
                        let _ = done.send(());
                    }
                }
            }
        });
        Self {
            address,
            cut,
            stopped,
            _tasks: tasks,
        }
    }

    pub fn client(&self) -> Client {
        self.builder().connect_lazy().unwrap()
    }

    pub fn builder(&self) -> ClientBuilder {
        Client::builder(format!("http://{}", self.address))
    }

    /// Closes every connection.
    pub async fn cut(&self) {
        let (done, is_done) = oneshot::channel();
        self.cut.send(done).await.unwrap();
        is_done.await.unwrap();
    }

    /// Carries nothing more, as if the hosts could no longer reach each other. Connections stay open.
    pub fn stop(&self) {
        self.stopped.send_replace(true);
    }
}

async fn relay(client: TcpStream, server: SocketAddr, pace: Pace, stopped: watch::Receiver<bool>) {
    let server = TcpStream::connect(server).await.unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = carry(from_client, to_server, pace, stopped.clone());
    let down = carry(from_server, to_client, pace, stopped);
    tokio::join!(up, down);
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    pace: Pace,
    mut stopped: watch::Receiver<bool>,
) {
    let mut piece = vec![0; pace.piece];
    loop {
        let count = tokio::select! {
            biased;
            () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
                std::future::pending().await
            }
            read = from.read(&mut piece) => read.unwrap_or(0),
        };
        if count == 0 || to.write_all(&piece[..count]).await.is_err() {
            return;
        }
        if !pace.pause.is_zero() {
            tokio::time::sleep(pace.pause).await;
        }
    }
}

// ===== Options and responses =====

/// Options that reconnect at once.
pub fn options() -> SubscribeOptions {
    SubscribeOptions::new(["a.>"]).backoff(Backoff {
        base: Duration::from_millis(1),
        max: Duration::from_millis(5),
    })
}

pub fn at(sequence: u64) -> Position {
    Position {
        epoch: EPOCH,
        sequence,
    }
}

fn response(kind: Kind) -> SubscribeResponse {
    SubscribeResponse {
        response: Some(kind),
    }
}

pub fn subscribed(sequence: u64) -> SubscribeResponse {
    subscribed_at(at(sequence))
}

pub fn subscribed_at(position: Position) -> SubscribeResponse {
    response(Kind::Subscribed(Subscribed {
        client_id: "made-by-server".into(),
        position: Some(position.into()),
        ..Default::default()
    }))
}

pub fn batch(first_index: u64, sequences: &[u64]) -> SubscribeResponse {
    let event = |&sequence| Event {
        sequence,
        topic: "a.b".into(),
        ..Default::default()
    };
    response(Kind::Batch(Batch {
        events: sequences.iter().map(event).collect(),
        first_index,
    }))
}

pub fn gap(reason: GapReason, first: u64, last: u64, count: u64) -> SubscribeResponse {
    response(Kind::Gap(Gap {
        first_sequence: first,
        last_sequence: last,
        count,
        reason: reason.into(),
        first_index: 0,
    }))
}

pub fn heartbeat(sequence: u64) -> SubscribeResponse {
    let position: v1::Position = at(sequence).into();
    response(Kind::Heartbeat(Heartbeat {
        position: Some(position),
    }))
}

pub fn caught_up(sequence: u64) -> SubscribeResponse {
    response(Kind::CaughtUp(CaughtUp {
        position: Some(at(sequence).into()),
    }))
}

pub fn going_away(sequence: u64, reconnect_after: Duration) -> SubscribeResponse {
    response(Kind::GoingAway(GoingAway {
        resume_after: Some(at(sequence).into()),
        reconnect_after: Some(reconnect_after.try_into().unwrap()),
        reason: "drain".into(),
    }))
}

pub fn acknowledgment(count: usize) -> PublishResponse {
    PublishResponse {
        count: count.try_into().unwrap(),
        ..Default::default()
    }
}

// ===== What the client yields =====

/// Polls the subscription, which works only while it is polled, until the server has its call.
pub async fn call(server: &mut FakeServer, subscription: &mut Subscription) -> SubscribeCall {
    tokio::select! {
        call = server.subscribe_call() => call,
        update = subscription.next() => panic!("{update:?}"),
    }
}

/// The next update, in one word and its number.
pub async fn next(subscription: &mut Subscription) -> String {
    match subscription.next().await.unwrap().unwrap() {
        Update::Subscribed(_) => "subscribed".into(),
        Update::Event(event) => format!("event {}", event.sequence),
        Update::Gap(gap) => format!("gap {} {}", gap.reason().as_str_name(), gap.count),
        Update::Heartbeat(position) => format!("heartbeat {}", position.sequence),
        Update::CaughtUp(position) => format!("caught up {}", position.sequence),
        Update::GoingAway(_) => "going away".into(),
        Update::Reconnecting { .. } => "reconnecting".into(),
        other => panic!("{other:?}"),
    }
}

/// Fails unless the next updates are these.
pub async fn expect(subscription: &mut Subscription, updates: &[&str]) {
    for expected in updates {
        assert_eq!(next(subscription).await, *expected);
    }
}

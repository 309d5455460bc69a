//! A server that answers `Subscribe` with any bytes, trailers and resets.

use std::{future::poll_fn, net::SocketAddr};

use bytes::Bytes;
use h2::{
    Reason, SendStream,
    server::{self, SendResponse},
};
use http::{HeaderMap, Request, Response};
use prost::Message as _;
use tidegate_client::{Client, ClientBuilder, Subscription};
use tidegate_proto::v1::{SubscribeRequest, SubscribeResponse};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

/// A server that hands each call of clients to the test, in order.
pub struct RawServer {
    pub address: SocketAddr,
    calls: mpsc::Receiver<RawCall>,
    _tasks: JoinSet<()>,
}

/// A call of `Subscribe` that waits for its answer.
pub struct RawCall {
    pub request: SubscribeRequest,
    respond: SendResponse<Bytes>,
    connection: mpsc::Sender<()>,
}

/// The stream of a call.
pub struct RawStream {
    body: SendStream<Bytes>,
    connection: mpsc::Sender<()>,
}

impl RawServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, calls) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(serve(socket, sender.clone()));
            }
        });
        Self {
            address,
            calls,
            _tasks: tasks,
        }
    }

    pub fn builder(&self) -> ClientBuilder {
        Client::builder(format!("http://{}", self.address))
    }

    pub fn client(&self) -> Client {
        self.builder().connect_lazy().unwrap()
    }

    /// Polls the subscription until its call is here.
    pub async fn call(&mut self, subscription: &mut Subscription) -> RawCall {
        tokio::select! {
            call = self.calls.recv() => call.unwrap(),
            update = subscription.next() => panic!("{update:?}"),
        }
    }

    /// Whether a call waits to be taken.
    pub fn has_call(&self) -> bool {
        !self.calls.is_empty()
    }
}

/// Serves one connection until the client, or the test, closes it.
async fn serve(socket: TcpStream, calls: mpsc::Sender<RawCall>) {
    let mut connection = server::handshake(socket).await.unwrap();
    let (close, mut closed) = mpsc::channel(1);
    let mut readers = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            _ = closed.recv() => return,
        };
        let Some(Ok((request, respond))) = accepted else {
            return;
        };
        let (calls, close) = (calls.clone(), close.clone());
        readers.spawn(async move {
            let request = read(request).await;
            let call = RawCall {
                request,
                respond,
                connection: close,
            };
            let _ = calls.send(call).await;
        });
    }
}

async fn read(request: Request<h2::RecvStream>) -> SubscribeRequest {
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    SubscribeRequest::decode(&bytes[5..]).unwrap()
}

impl RawCall {
    /// Answers with headers alone, in any HTTP status.
    pub fn answer(mut self, status: u16, headers: &[(&'static str, &str)]) {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let response = response.body(()).unwrap();
        self.respond.send_response(response, true).unwrap();
    }

    /// Opens the stream.
    pub fn open(mut self) -> RawStream {
        let response = Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        RawStream {
            body: self.respond.send_response(response, false).unwrap(),
            connection: self.connection,
        }
    }

    pub fn reset(mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }
}

impl RawStream {
    /// Sends a response.
    pub fn send(&mut self, response: &SubscribeResponse) {
        self.bytes(message(response));
    }

    /// Sends bytes, in a DATA frame or as many as they need.
    pub fn bytes(&mut self, bytes: impl Into<Bytes>) {
        self.body.send_data(bytes.into(), false).unwrap();
    }

    /// Waits until the client has taken what was sent before, and the rest has `room` bytes of its windows.
    pub async fn has_room(&mut self, room: usize) {
        self.body.reserve_capacity(room);
        while self.body.capacity() < room {
            poll_fn(|cx| self.body.poll_capacity(cx))
                .await
                .unwrap()
                .unwrap();
        }
    }

    /// Ends the stream with these trailers.
    pub fn end(mut self, trailers: &[(&'static str, &str)]) {
        let trailers: HeaderMap = trailers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        self.body.send_trailers(trailers).unwrap();
    }

    /// Ends the stream without trailers.
    pub fn end_without_trailers(mut self) {
        self.body.send_data(Bytes::new(), true).unwrap();
    }

    pub fn reset(mut self, reason: Reason) {
        self.body.send_reset(reason);
    }

    /// Closes the connection.
    pub async fn close_connection(self) {
        self.connection.send(()).await.unwrap();
    }
}

/// A response, as gRPC frames it.
pub fn message(response: &SubscribeResponse) -> Bytes {
    framed(&response.encode_to_vec())
}

/// A message of any bytes, as gRPC frames it.
pub fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], message].concat().into()
}

//! A server of HTTP/2 that hands over each call, to be answered in any way.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{self, SendResponse},
};
use http::{HeaderMap, Request, Response};
use prost::Message as _;
use tidegate_proto::v1::SubscribeRequest;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::Instant,
};

/// The one method that is played.
const SUBSCRIBE: &str = "/tidegate.v1.EventService/Subscribe";

/// Bytes of a request that are read. The largest that a scenario asks for has a few hundred.
const MAX_REQUEST: usize = 64 * 1024;

/// Streams of a connection that may be open at once. A client needs one.
const MAX_STREAMS: u32 = 100;

/// Calls that wait to be taken. A client that opens more waits.
const WAITING: usize = 64;

/// The server of one scenario.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    pub(crate) calls: mpsc::Receiver<Call>,
    _tasks: JoinSet<()>,
}

/// A call of `Subscribe` that waits for its answer.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) arrived: Instant,
    /// Number of its connection.
    pub(crate) connection: u64,
    pub(crate) headers: HeaderMap,
    /// The request, or the problem with it.
    pub(crate) request: Result<SubscribeRequest, String>,
    pub(crate) respond: SendResponse<Bytes>,
    pub(crate) control: Control,
}

/// The connection of a call.
#[derive(Clone, Debug)]
pub(crate) struct Control(mpsc::Sender<Command>);

#[derive(Debug)]
enum Command {
    Close,
    GoAway(Option<Reason>),
}

impl Listener {
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (sender, calls) = mpsc::channel(WAITING);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            let mut number = 0;
            loop {
                // A connection that fails before it is accepted is the client's to try again.
                if let Ok((socket, _)) = listener.accept().await {
                    number += 1;
                    connections.spawn(serve(socket, number, sender.clone()));
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            calls,
            _tasks: tasks,
        })
    }
}

impl Control {
    /// Closes the connection, without a word.
    pub(crate) async fn close(&self) {
        // It fails if the client was faster.
        let _ = self.0.send(Command::Close).await;
    }

    /// Ends the connection with `GOAWAY`: at once with this code, or without one in good order.
    pub(crate) async fn go_away(&self, reason: Option<Reason>) {
        let _ = self.0.send(Command::GoAway(reason)).await;
    }
}

/// Serves one connection until one side closes it.
async fn serve(socket: TcpStream, number: u64, calls: mpsc::Sender<Call>) {
    let _ = socket.set_nodelay(true);
    let mut builder = server::Builder::new();
    builder.max_concurrent_streams(MAX_STREAMS);
    let Ok(mut connection) = builder.handshake(socket).await else {
        return;
    };
    let (control, mut commands) = mpsc::channel(1);
    let mut readers = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            // A command first: the stream that is dropped after it would be reset otherwise, and a connection that is to
            // break would end in good order.
            biased;
            Some(command) = commands.recv() => match command {
                Command::Close => return,
                Command::GoAway(None) => {
                    connection.graceful_shutdown();
                    continue;
                }
                Command::GoAway(Some(reason)) => {
                    connection.abrupt_shutdown(reason);
                    continue;
                }
            },
            accepted = connection.accept() => accepted,
        };
        let Some(Ok((request, respond))) = accepted else {
            return;
        };
        let control = Control(control.clone());
        readers.spawn(take(request, respond, number, control, calls.clone()));
        while readers.try_join_next().is_some() {}
    }
}

async fn take(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    connection: u64,
    control: Control,
    calls: mpsc::Sender<Call>,
) {
    let arrived = Instant::now();
    let (head, body) = request.into_parts();
    if head.uri.path() != SUBSCRIBE {
        // Such as health checks and reflection.
        let unimplemented = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "12")
            .header("grpc-message", "the conformance server has Subscribe only")
            .body(())
            .expect("is well formed");
        let _ = respond.send_response(unimplemented, true);
        return;
    }
    let request = read(body).await;
    let call = Call {
        arrived,
        connection,
        headers: head.headers,
        request,
        respond,
        control,
    };
    let _ = calls.send(call).await;
}

async fn read(mut body: RecvStream) -> Result<SubscribeRequest, String> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| format!("the request broke off: {error}"))?;
        // It fails if the stream is gone, which the next read tells.
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
        if bytes.len() > MAX_REQUEST {
            return Err(format!("the request has more than {MAX_REQUEST} bytes"));
        }
    }
    let (prefix, message) = bytes
        .split_at_checked(5)
        .ok_or("the request has no message")?;
    if prefix[0] != 0 {
        return Err("the request is compressed, which a server may refuse".into());
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if length as usize != message.len() {
        let found = message.len();
        return Err(format!(
            "the request promises {length} bytes and has {found}"
        ));
    }
    SubscribeRequest::decode(message)
        .map_err(|error| format!("the request is no protobuf: {error}"))
}

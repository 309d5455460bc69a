//! A lean client of `tidegate.v1.EventService`, on h2 directly.
//!
//! No layer copies a payload, builds a message from it, or passes it from task to task: the bytes of a DATA frame are
//! parsed where h2 put them. The windows are large and returned as they are used, so that the client never delays a
//! server that could send.

mod publisher;
mod returning;
mod subscriber;

use std::{fmt, net::SocketAddr, rc::Rc};

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use percent_encoding::percent_decode_str;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};

pub use publisher::GrpcPublisher;
pub use returning::GrpcReturned;
pub use subscriber::GrpcConnection;
pub(crate) use subscriber::Reader;

use crate::{
    Error, Server,
    stream::Stream,
    target::{Position, Target},
    tls::Tls,
    wire::subscribe_request,
};

/// The most unanswered requests of a publisher, by default.
const IN_FLIGHT: usize = 8;

/// A Tidegate server, or another server of its protocol.
#[derive(Debug, Clone)]
pub struct Grpc {
    address: SocketAddr,
    authority: String,
    /// The header `authorization` of each call.
    authorization: Option<HeaderValue>,
    tls: Option<Tls>,
    /// Window of each stream in bytes: how much the server may send before the client reads.
    window: u32,
    /// The most unanswered requests of a publisher.
    in_flight: usize,
}

/// A local task that is aborted on drop.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

/// Makes calls on one HTTP/2 connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    authority: String,
    authorization: Option<HeaderValue>,
    scheme: &'static str,
    send: SendRequest<Bytes>,
}

/// Drives a connection, and ends it on drop.
pub(crate) struct Driver {
    _task: Task,
    halt: Rc<std::cell::Cell<bool>>,
}

// ===== impl Grpc =====

impl Grpc {
    /// The default window of a stream: 1 MiB, enough for 10 GB/s at a round trip of 100 us.
    pub const WINDOW: u32 = 1 << 20;

    /// Creates a target for `server`, with its credentials.
    #[must_use]
    pub fn new(server: &Server) -> Self {
        Self {
            address: server.address(),
            authority: server.authority().to_owned(),
            authorization: server.authorization().cloned(),
            tls: server.tls().cloned(),
            window: Self::WINDOW,
            in_flight: IN_FLIGHT,
        }
    }

    /// Sets the window of each stream, in bytes. Default: [`Grpc::WINDOW`].
    #[must_use]
    pub const fn with_window(mut self, window: u32) -> Self {
        self.window = window;
        self
    }

    /// Sets the most unanswered requests of a publisher; at least 1. Default: 8.
    #[must_use]
    pub const fn with_in_flight(mut self, in_flight: usize) -> Self {
        self.in_flight = in_flight;
        self
    }

    /// Opens the socket, without TLS.
    async fn socket(&self) -> Result<TcpStream, Error> {
        let connect = |error: std::io::Error| Error::Connect {
            address: self.authority.clone(),
            reason: match error.raw_os_error() {
                Some(errno) if errno == rustix::io::Errno::MFILE.raw_os_error() => {
                    format!("{error}; raise the limit with `ulimit -n`")
                }
                _ => error.to_string(),
            },
        };
        let socket = TcpStream::connect(self.address).await.map_err(connect)?;
        socket.set_nodelay(true).map_err(connect)?;
        Ok(socket)
    }

    /// Returns a builder with a connection window for `streams` streams, up to 1 GiB.
    fn builder(&self, streams: usize) -> h2::client::Builder {
        let streams = u32::try_from(streams).unwrap_or(u32::MAX);
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(self.window)
            .initial_connection_window_size(self.window.saturating_mul(streams).min(1 << 30));
        builder
    }
}

impl Target for Grpc {
    type Connection = GrpcConnection;
    type Publisher = GrpcPublisher;

    async fn subscribe(
        &self,
        streams: Vec<Rc<Stream>>,
        stalled: bool,
    ) -> Result<GrpcConnection, Error> {
        GrpcConnection::open(self, streams, stalled).await
    }

    async fn publisher(&self) -> Result<GrpcPublisher, Error> {
        GrpcPublisher::open(self).await
    }
}

// ===== impl Client =====

impl Client {
    /// Calls `Subscribe`, and returns the reader of its responses.
    pub(crate) async fn subscribe(&mut self, filters: &[String]) -> Result<Reader, Error> {
        Ok(Reader::new(self.resume(filters, None).await?))
    }

    /// Calls `Subscribe` to resume after a position, if there is one. Returns the body of the response.
    pub(crate) async fn resume(
        &mut self,
        filters: &[String],
        after: Option<Position>,
    ) -> Result<RecvStream, Error> {
        let (response, mut body) = self.call("Subscribe").await?;
        let request = Bytes::from(subscribe_request(filters, after));
        body.send_data(request, true)
            .map_err(|error| Error::broken("Subscribe", error))?;
        let response = response
            .await
            .map_err(|error| Error::broken("Subscribe", error))?;
        accepted("Subscribe", response)
    }

    async fn call(
        &mut self,
        method: &'static str,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), Error> {
        let broken = |error: h2::Error| Error::broken(method, error);
        let uri = format!(
            "{}://{}/tidegate.v1.EventService/{method}",
            self.scheme, self.authority
        );
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(CONTENT_TYPE, "application/grpc")
            .header("te", "trailers")
            .body(());
        let mut request = request.map_err(|error| Error::broken(method, error))?;
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        let mut ready = self.send.clone().ready().await.map_err(broken)?;
        ready.send_request(request, false).map_err(broken)
    }
}

/// Returns the body of a response, or an error if the response is a refusal or no gRPC.
fn accepted(method: &'static str, response: Response<RecvStream>) -> Result<RecvStream, Error> {
    if response.status() != http::StatusCode::OK {
        return Err(Error::Status {
            call: method,
            code: format!("none (HTTP {})", response.status()),
            message: "this is not a Tidegate server, or a proxy in front of it answered".into(),
        });
    }
    match response.headers().contains_key("grpc-status") {
        true => Err(status(method, response.headers())),
        false => Ok(response.into_body()),
    }
}

/// Returns the end of a stream as an error, since no stream of a benchmark ends by itself.
fn status(call: &'static str, trailers: &HeaderMap) -> Error {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    let message = text("grpc-message").unwrap_or_default();
    Error::Status {
        call,
        code: text("grpc-status").unwrap_or("none").to_owned(),
        message: percent_decode_str(message).decode_utf8_lossy().into_owned(),
    }
}

// ===== impl Task =====

impl Task {
    /// Spawns a task on this thread.
    pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) -> Self {
        Self(tokio::task::spawn_local(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Driver {
    /// Opens a connection for `streams` streams.
    pub(crate) async fn open(grpc: &Grpc, streams: usize) -> Result<(Client, Self), Error> {
        Self::over(grpc.socket().await?, grpc, streams).await
    }

    /// The same, over an open socket.
    pub(crate) async fn over(
        socket: TcpStream,
        grpc: &Grpc,
        streams: usize,
    ) -> Result<(Client, Self), Error> {
        match &grpc.tls {
            None => Self::on(socket, grpc, streams, "http").await,
            Some(tls) => Self::on(tls.connect(socket).await?, grpc, streams, "https").await,
        }
    }

    /// The same, on an open transport. Generic over the transport, so that without TLS no read has to branch on it.
    async fn on(
        transport: impl AsyncRead + AsyncWrite + Unpin + 'static,
        grpc: &Grpc,
        streams: usize,
        scheme: &'static str,
    ) -> Result<(Client, Self), Error> {
        let handshake = grpc.builder(streams).handshake::<_, Bytes>(transport).await;
        let (send, connection) =
            handshake.map_err(|error| Error::broken("the handshake", error))?;
        let halt = Rc::new(std::cell::Cell::new(false));
        let halted = halt.clone();
        let mut connection = Box::pin(connection);
        let task = Task::spawn(async move {
            // An error reaches the streams too, which report it.
            let _ = std::future::poll_fn(|cx| match halted.get() {
                true => std::task::Poll::Pending,
                false => connection.as_mut().poll(cx),
            })
            .await;
        });
        let client = Client {
            authority: grpc.authority.clone(),
            authorization: grpc.authorization.clone(),
            scheme,
            send,
        };
        Ok((client, Self { _task: task, halt }))
    }

    /// Stops reading and writing, and keeps the socket open.
    pub(crate) fn halt(&self) {
        self.halt.set(true);
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Driver")
            .field("halted", &self.halt)
            .finish()
    }
}

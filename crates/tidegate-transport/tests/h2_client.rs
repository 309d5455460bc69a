//! The client of the crate `h2` against both engines: windows, many streams, header lists, resets, and the end of a
//! connection.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    client::{self, ResponseFuture, SendRequest},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tidegate_http2::StreamHandle;
use tidegate_transport::{Http2Config, Http2Engine, RequestBody, Server};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tower::service_fn;

const ENGINES: [Http2Engine; 2] = [Http2Engine::Tidegate, Http2Engine::Hyper];

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A chunk of a response, which shares its memory with all others.
const CHUNK: Bytes = Bytes::from_static(&[b'x'; 16 << 10]);

/// A body that sends some chunks and trailers, or stays open. It tells when it is dropped.
struct Chunks {
    left: usize,
    trailers: Option<HeaderMap>,
    stays_open: bool,
    _dropped: Option<oneshot::Sender<Infallible>>,
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left > 0 {
            self.left -= 1;
            return Poll::Ready(Some(Ok(Frame::data(CHUNK))));
        }
        if self.stays_open {
            return Poll::Pending;
        }
        Poll::Ready(
            self.trailers
                .take()
                .map(|trailers| Ok(Frame::trailers(trailers))),
        )
    }
}

/// The calls at the service, as a test knows them.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<Call>>>);

/// A call at the service.
struct Call {
    handle: StreamHandle,
    dropped: oneshot::Receiver<Infallible>,
}

/// A connection between h2's client and a server.
struct Pair {
    client: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
    calls: Calls,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Calls {
    /// `/echo` answers with the body and the trailers, `/headers/N` with N header fields, `/chunks/N` with N chunks, and
    /// `/open/N` with N chunks and no end.
    async fn answer(self, request: Request<RequestBody>) -> Result<Response<Chunked>, Infallible> {
        let handle: StreamHandle = request.extensions().get().cloned().unwrap();
        let path = request.uri().path().to_owned();
        let (what, number) = path[1..].split_once('/').unwrap_or((&path[1..], "0"));
        let number: usize = number.parse().unwrap();
        let (telling, dropped) = oneshot::channel();
        self.0.lock().unwrap().push(Call { handle, dropped });
        let mut chunks = Chunks {
            left: 0,
            trailers: None,
            stays_open: false,
            _dropped: Some(telling),
        };
        let mut response = Response::builder();
        match what {
            "echo" => {
                let fields = request.headers().len();
                let collected = request.into_body().collect().await.unwrap();
                let trailers = collected.trailers().cloned();
                return Ok(response
                    .header("fields", fields)
                    .body(Chunked::Echo(collected.to_bytes(), trailers))
                    .unwrap());
            }
            "headers" => {
                for at in 0..number {
                    response = response.header(format!("field-{at}"), "v".repeat(100));
                }
            }
            _ => {
                chunks.left = number;
                chunks.stays_open = what == "open";
                chunks.trailers = Some(trailers(&[("end", "1")]));
            }
        }
        Ok(response.body(Chunked::Chunks(chunks)).unwrap())
    }

    /// Takes the call that came as number `at`.
    fn take(&self, at: usize) -> Call {
        self.0.lock().unwrap().remove(at)
    }
}

/// Body of a response.
enum Chunked {
    Echo(Bytes, Option<HeaderMap>),
    Chunks(Chunks),
}

impl Body for Chunked {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Chunks(chunks) => Pin::new(chunks).poll_frame(cx),
            Self::Echo(body, trailers) => {
                Poll::Ready(match body.split_to(body.len().min(40_000)) {
                    piece if piece.is_empty() => {
                        trailers.take().map(|all| Ok(Frame::trailers(all)))
                    }
                    piece => Some(Ok(Frame::data(piece))),
                })
            }
        }
    }
}

fn trailers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let fields = fields.iter().map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    });
    fields.collect()
}

fn builder() -> client::Builder {
    let mut builder = client::Builder::new();
    builder.max_header_list_size(1 << 20);
    // Before it has the settings of the server.
    builder.initial_max_send_streams(100);
    builder
}

impl Pair {
    async fn new(engine: Http2Engine, builder: &client::Builder) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let calls = Calls::default();
        let (stop, stopped) = oneshot::channel();
        let http2 = Http2Config {
            engine,
            ..Http2Config::default()
        };
        let service = calls.clone();
        let service = service_fn(move |request| service.clone().answer(request));
        let served = tokio::spawn(Server::new(http2).serve(listener, service, async {
            // A test that fails drops the sender.
            _ = stopped.await;
        }));
        let stream = TcpStream::connect(address).await.unwrap();
        let (client, connection) = builder.handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        Self {
            client,
            connection,
            calls,
            stop,
            served,
        }
    }

    /// Begins a call without a body.
    async fn get(&self, path: &str) -> ResponseFuture {
        let mut client = in_time(self.client.clone().ready()).await.unwrap();
        client.send_request(request(path), true).unwrap().0
    }

    /// Makes a call with that body.
    async fn echo(&self, body: Bytes, end: Option<HeaderMap>) -> Response<RecvStream> {
        let mut client = in_time(self.client.clone().ready()).await.unwrap();
        let (response, mut sending) = client.send_request(request("/echo"), false).unwrap();
        sending.send_data(body, end.is_none()).unwrap();
        if let Some(end) = end {
            sending.send_trailers(end).unwrap();
        }
        in_time(response).await.unwrap()
    }

    /// Ends the server, and returns how the connection ended.
    async fn end(self) -> Result<(), h2::Error> {
        drop(self.client);
        self.stop.send(()).unwrap();
        in_time(self.served).await.unwrap();
        in_time(self.connection).await.unwrap()
    }
}

fn request(path: &str) -> Request<()> {
    let uri = format!("http://localhost{path}");
    Request::post(uri).body(()).unwrap()
}

async fn in_time<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

/// Reads a body to its end, and gives its window back in steps. Returns its length and trailers.
async fn read(mut body: RecvStream, step: usize) -> Result<(usize, Option<HeaderMap>), h2::Error> {
    let mut length = 0;
    while let Some(data) = in_time(body.data()).await {
        let data = data?;
        assert!(data.iter().all(|byte| *byte == b'x'));
        length += data.len();
        for piece in data.chunks(step) {
            body.flow_control().release_capacity(piece.len())?;
        }
    }
    Ok((length, in_time(body.trailers()).await?))
}

#[tokio::test]
async fn bodies_pass_in_both_directions_through_windows_of_any_size() {
    for engine in ENGINES {
        for window in [1_000, 65_535, 1 << 20] {
            let mut builder = builder();
            builder.initial_window_size(window);
            let pair = Pair::new(engine, &builder).await;
            let (length, end) = read(
                in_time(pair.get("/chunks/40").await)
                    .await
                    .unwrap()
                    .into_body(),
                700,
            )
            .await
            .unwrap();
            assert_eq!(length, 40 * CHUNK.len());
            assert_eq!(end, Some(trailers(&[("end", "1")])));

            let sent = Bytes::from(vec![b'x'; 700_000]);
            for end in [None, Some(trailers(&[("sum", "7")]))] {
                let response = pair.echo(sent.clone(), end.clone()).await;
                let (length, received) = read(response.into_body(), 9_000).await.unwrap();
                assert_eq!((length, received), (sent.len(), end));
            }
            assert!(pair.end().await.is_ok());
        }
    }
}

#[tokio::test]
async fn many_streams_of_one_connection_are_all_served() {
    for engine in ENGINES {
        let mut builder = builder();
        // With windows that are small for so many streams, h2 takes the frames of its own server for a flood.
        builder.initial_connection_window_size(1 << 20);
        let pair = Arc::new(Pair::new(engine, &builder).await);
        let mut streams = Vec::new();
        // More than the server has at once: h2 begins the others when there is room.
        for at in 0..1_000 {
            let pair = Arc::clone(&pair);
            streams.push(tokio::spawn(async move {
                let length = at * 37;
                let response = pair.echo(Bytes::from(vec![b'x'; length]), None).await;
                assert_eq!(read(response.into_body(), 4_000).await.unwrap().0, length);
            }));
        }
        for stream in streams {
            in_time(stream).await.unwrap();
        }
        let pair = Arc::into_inner(pair).unwrap();
        assert!(pair.end().await.is_ok());
    }
}

#[tokio::test]
async fn header_lists_of_many_frames_pass_and_those_beyond_the_limit_cost_their_call_alone() {
    for engine in ENGINES {
        let pair = Pair::new(engine, &builder()).await;
        // 80 KiB of them, in more than one frame.
        let response = in_time(pair.get("/headers/600").await).await.unwrap();
        let fields = response.headers().keys();
        assert_eq!(
            fields
                .filter(|name| name.as_str().starts_with("field-"))
                .count(),
            600
        );

        let call = |count: usize| {
            let mut request = request("/echo");
            for at in 0..count {
                let name: HeaderName = format!("field-{at}").parse().unwrap();
                request
                    .headers_mut()
                    .insert(name, HeaderValue::from_static("value"));
            }
            pair.client.clone().send_request(request, true).unwrap().0
        };
        // As large as it may be, with 32 bytes for each field.
        let response = in_time(call(300)).await.unwrap();
        assert_eq!(response.headers()["fields"], "300");
        let refused = in_time(call(400)).await.unwrap();
        assert_eq!(
            refused.status(),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        );
        assert_eq!(in_time(call(10)).await.unwrap().status(), StatusCode::OK);
        assert!(pair.end().await.is_ok());
    }
}

#[tokio::test]
async fn stream_that_is_not_read_delays_no_other_and_leaves_nothing_when_it_is_reset() {
    for engine in ENGINES {
        let pair = Pair::new(engine, &builder()).await;
        let mut unread = in_time(pair.get("/open/1000").await)
            .await
            .unwrap()
            .into_body();
        let read_all = in_time(pair.get("/chunks/100").await)
            .await
            .unwrap()
            .into_body();
        // The window of the connection is used up by neither.
        let first = in_time(unread.data()).await.unwrap().unwrap();
        unread.flow_control().release_capacity(first.len()).unwrap();
        drop(unread);
        assert_eq!(read(read_all, 4_000).await.unwrap().0, 100 * CHUNK.len());
        assert!(
            in_time(pair.calls.take(0).dropped).await.is_err(),
            "it is dropped"
        );
        assert!(pair.end().await.is_ok());
    }
}

#[tokio::test]
async fn handle_resets_the_stream_of_its_own_call() {
    for engine in ENGINES {
        let pair = Pair::new(engine, &builder()).await;
        let mut bodies = Vec::new();
        for _ in 0..3 {
            // One that is not read, and one that has nothing to read.
            bodies.push(
                in_time(pair.get("/open/1000").await)
                    .await
                    .unwrap()
                    .into_body(),
            );
            bodies.push(
                in_time(pair.get("/open/0").await)
                    .await
                    .unwrap()
                    .into_body(),
            );
        }
        for at in [3, 2] {
            let call = pair.calls.take(at);
            call.handle.reset();
            assert!(
                in_time(call.dropped).await.is_err(),
                "{engine:?}: {at} is dropped"
            );
            let ended = read(bodies.remove(at), 16_000).await.unwrap_err();
            assert_eq!(ended.reason(), Some(Reason::CANCEL), "{engine:?}: {at}");
        }
        for mut call in pair.calls.0.lock().unwrap().drain(..) {
            assert!(
                call.dropped
                    .try_recv()
                    .is_err_and(|error| error == oneshot::error::TryRecvError::Empty)
            );
        }
        pair.connection.abort();
    }
}

#[tokio::test]
async fn end_in_good_order_lets_open_streams_go_on_and_begins_no_more() {
    for engine in ENGINES {
        let pair = Pair::new(engine, &builder()).await;
        let open = in_time(pair.get("/chunks/100").await)
            .await
            .unwrap()
            .into_body();
        pair.stop.send(()).unwrap();
        // The second GOAWAY has come when a new call is refused.
        let calling = async {
            loop {
                let mut client = pair.client.clone().ready().await?;
                client.send_request(request("/chunks/0"), true)?.0.await?;
            }
        };
        let refused: Result<Infallible, h2::Error> = in_time(calling).await;
        let refused = refused.unwrap_err();
        assert!(
            refused.is_go_away() && refused.reason() == Some(Reason::NO_ERROR),
            "{refused}"
        );
        assert!(!pair.served.is_finished(), "a stream is open");
        assert_eq!(read(open, 9_000).await.unwrap().0, 100 * CHUNK.len());
        in_time(pair.served).await.unwrap();
        drop(pair.client);
        assert!(in_time(pair.connection).await.unwrap().is_ok());
    }
}

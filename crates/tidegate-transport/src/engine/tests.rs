//! A connection on the engine, by the bytes of its peer. The clock is paused, and skips what nobody does anything in.

use std::{
    convert::Infallible,
    future::{Future as _, Ready, pending, poll_fn, ready},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use tidegate_http2::StreamHandle;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex},
    net::{TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    task::{JoinHandle, coop::poll_proceed},
    time::{Instant, sleep, timeout},
};
use tower::{Service, service_fn};

use super::Engine;
use crate::{
    RequestBody,
    service::{BoxError, Http2Service, Serve as _},
};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

type AnyBody = UnsyncBoxBody<Bytes, Infallible>;
type Outcome = Result<Response<AnyBody>, Infallible>;

/// A peer of a connection, on bytes that wait in memory.
struct Peer(DuplexStream);

/// A frame that came.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// A request for `path`, which has at most 126 bytes.
fn request(stream: u32, flags: u8, path: &str) -> Vec<u8> {
    // `:method: POST`, `:scheme: http`, `:path`
    let block = [&[0x83, 0x86, 0x04, path.len() as u8], path.as_bytes()].concat();
    frame(HEADERS, END_HEADERS | flags, stream, &block)
}

fn window_update(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

impl Peer {
    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Returns the next frame, or `None` when the connection was closed.
    async fn next(&mut self) -> Option<Seen> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Seen {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
    }

    /// Returns the next frame of a kind, and forgets those before it.
    async fn find(&mut self, kind: u8) -> Seen {
        loop {
            let seen = self.next().await.expect("the connection goes on");
            if seen.kind == kind {
                return seen;
            }
        }
    }

    /// Reads the body of a response to its end. Returns its length, and whether it ended with a reset.
    async fn body(&mut self, stream: u32) -> (usize, bool) {
        let mut length = 0;
        loop {
            let seen = self.next().await.expect("the connection goes on");
            if seen.stream != stream {
                continue;
            }
            if seen.kind == DATA {
                length += seen.payload.len();
            }
            match seen.kind {
                RST_STREAM => return (length, true),
                DATA | HEADERS if seen.flags & END_STREAM != 0 => return (length, false),
                _ => {}
            }
        }
    }

    /// Sends a PING and reads up to its answer. What was asked for before has had its turn then.
    async fn ping(&mut self) {
        self.send(&frame(PING, 0, 0, b"12345678")).await;
        while self.find(PING).await.flags == 0 {}
    }
}

/// Serves a connection on `transport`, whose peer has sent its preface.
pub(super) async fn drive<T, S>(mut engine: Engine<T, S>) -> Result<(), BoxError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Http2Service,
{
    poll_fn(|cx| Pin::new(&mut engine).poll_turn(cx)).await
}

/// Begins a connection with room for this many bytes each way, and greets it.
async fn connect_with<S: Http2Service>(
    bytes: usize,
    service: S,
) -> (Peer, JoinHandle<Result<(), BoxError>>) {
    let (peer, transport) = duplex(bytes);
    let engine = Engine::new(transport, service, Arc::default());
    let served = tokio::spawn(drive(engine));
    let mut peer = Peer(peer);
    peer.send(&frame(SETTINGS, 0, 0, &[])).await;
    (peer, served)
}

async fn connect<S: Http2Service>(service: S) -> Peer {
    connect_with(1 << 20, service).await.0
}

fn full(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into()).boxed_unsync()
}

/// A body of what a poll function says.
struct PollBody<F>(F);

impl<F> Body for PollBody<F>
where
    F: FnMut(&mut Context<'_>) -> Poll<Option<Bytes>> + Unpin,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        (self.0)(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

fn polled<F>(poll: F) -> AnyBody
where
    F: FnMut(&mut Context<'_>) -> Poll<Option<Bytes>> + Send + Unpin + 'static,
{
    PollBody(poll).boxed_unsync()
}

/// Answers each call with what `answer` makes of its path.
fn by_path<F>(answer: F) -> impl Http2Service
where
    F: Fn(&str, Request<RequestBody>) -> AnyBody + Clone + Send + 'static,
{
    service_fn(move |request: Request<RequestBody>| {
        let path = request.uri().path().to_owned();
        ready(Outcome::Ok(Response::new(answer(&path, request))))
    })
}

// ===== Turns =====

/// The answers to a flood fill the output, so that nothing more is read. When the peer takes them, it is.
#[tokio::test(start_paused = true)]
async fn connection_reads_on_when_its_peer_has_taken_the_answers() {
    const PINGS: usize = 30_000;
    let (peer, _served) = connect_with(200_000, by_path(|_, _| full("x"))).await;
    let began = Instant::now();
    let (mut read, mut write) = tokio::io::split(peer.0);
    let flood = tokio::spawn(async move {
        let ping = frame(PING, 0, 0, &[0; 8]);
        write.write_all(&ping.repeat(PINGS)).await.unwrap();
        write
    });
    let mut answers = 0;
    let mut bytes = vec![0; 200_000];
    while answers < PINGS * 17 {
        // The others have done what they can.
        sleep(Duration::from_millis(1)).await;
        let length = timeout(Duration::from_secs(1), read.read(&mut bytes)).await;
        let length = length.expect("it goes on").unwrap();
        assert!(length > 0);
        answers += length;
    }
    let mut peer = Peer(read.unsplit(flood.await.unwrap()));
    peer.ping().await;
    assert!(began.elapsed() < Duration::from_secs(1));
}

/// A process that stood still for longer than any of its times finds the answers of its peers, and not that they are late.
#[tokio::test(start_paused = true)]
async fn peer_is_not_given_up_for_an_answer_that_is_there() {
    let mut peer = connect(by_path(|_, _| full("x"))).await;
    for _ in 0..3 {
        let ping = peer.find(PING).await;
        // No other task has a turn in between.
        peer.send(&frame(PING, ACK, 0, &ping.payload)).await;
        tokio::time::advance(Duration::from_secs(20)).await;
    }
    peer.send(&request(1, END_STREAM, "/")).await;
    assert_eq!(peer.body(1).await, (1, false));
}

/// A stream whose share uses up what a task may do in a turn leaves the next turn to the others.
#[tokio::test(start_paused = true)]
async fn streams_share_the_budget_of_the_task() {
    // One of them takes as many polls for a share as a task has.
    for chunk in 100..180 {
        let mut receivers = Vec::new();
        for _ in 0..2 {
            let (sender, receiver) = mpsc::channel(4_000);
            for _ in 0..4_000 {
                sender.try_send(Bytes::from(vec![7; chunk])).unwrap();
            }
            receivers.push(receiver);
        }
        let receivers = Arc::new(Mutex::new(receivers));
        let service = by_path(move |_, _| {
            let mut receiver = receivers.lock().unwrap().remove(0);
            polled(move |cx| receiver.poll_recv(cx))
        });
        let mut peer = connect(service).await;
        // Windows for all of it.
        peer.send(&frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]))
            .await;
        peer.send(&window_update(0, 1 << 30)).await;
        peer.send(&[request(1, END_STREAM, "/a"), request(3, END_STREAM, "/b")].concat())
            .await;
        let mut received = [0_usize; 2];
        while received[0].max(received[1]) < 300_000 {
            let seen = peer.find(DATA).await;
            received[seen.stream as usize / 2] += seen.payload.len();
        }
        assert!(
            received[0].abs_diff(received[1]) <= 60_000,
            "{chunk}: {received:?}"
        );
    }
}

/// A body that brings nothing, again and again, has no turn without end.
#[tokio::test(start_paused = true)]
async fn body_of_empty_chunks_leaves_their_turns_to_others() {
    const POLLS: u32 = 1_000_000;
    let polls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&polls);
    let service = by_path(move |path, _| {
        let polls = Arc::clone(&counted);
        match path {
            "/empty" => polled(move |_| {
                // An end all the same, or this test would have none if it failed.
                let is_left = polls.fetch_add(1, Relaxed) < POLLS;
                Poll::Ready(is_left.then(Bytes::new))
            }),
            _ => full("x"),
        }
    });
    let mut peer = connect(service).await;
    peer.send(&request(1, END_STREAM, "/empty")).await;
    peer.ping().await;
    peer.send(&request(3, END_STREAM, "/")).await;
    assert_eq!(peer.body(3).await, (1, false));
    let polls = polls.load(Relaxed);
    assert!((3..1_000).contains(&polls), "{polls}");
}

/// However many calls come at once: a few of them, and other tasks have their turns.
#[tokio::test(start_paused = true)]
async fn flood_of_calls_leaves_their_turns_to_other_tasks() {
    const CALLS: u32 = 5_000;
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let service = by_path(move |_, _| {
        counted.fetch_add(1, Relaxed);
        full("x")
    });
    let mut peer = connect(service).await;
    peer.ping().await;
    let flood: Vec<u8> = (0..CALLS)
        .flat_map(|at| request(2 * at + 1, END_STREAM, "/"))
        .collect();
    peer.send(&flood).await;
    let (mut last, mut most) = (0, 0);
    while last < CALLS {
        tokio::task::yield_now().await;
        let now = calls.load(Relaxed);
        most = most.max(now - last);
        last = now;
        // Its answers make room for more.
        let _ = peer
            .0
            .read_buf(&mut Vec::with_capacity(1 << 20))
            .now_or_never();
    }
    assert!((1..=256).contains(&most), "{most} calls in one turn");
}

/// Uses up the budget of the turn when it is dropped, as a subscription with many filters does.
struct Heavy(Arc<AtomicU32>);

impl Drop for Heavy {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(unit) = poll_proceed(&mut cx) {
            unit.made_progress();
        }
    }
}

/// Returns the number of calls of 5 that were dropped after each turn, if `end` ends all of them at once.
async fn dropped_in_turns(end: impl Fn(u32) -> Vec<u8>, then: impl Fn(&StreamHandle)) -> Vec<u32> {
    const CALLS: u32 = 5;
    let dropped = Arc::new(AtomicU32::new(0));
    let handles = Arc::new(Mutex::new(Vec::new()));
    let (counted, kept) = (Arc::clone(&dropped), Arc::clone(&handles));
    let service = service_fn(move |request: Request<RequestBody>| {
        let handle = request.extensions().get::<StreamHandle>();
        kept.lock().unwrap().push(handle.cloned().unwrap());
        let heavy = Heavy(Arc::clone(&counted));
        async move {
            let _heavy = heavy;
            pending::<Outcome>().await
        }
    });
    let (peer, transport) = duplex(1 << 20);
    let mut engine = Engine::new(transport, service, Arc::default());
    let mut peer = Peer(peer);
    let streams = (0..CALLS).map(|at| 2 * at + 1);
    let calls: Vec<u8> = streams.clone().flat_map(|id| request(id, 0, "/")).collect();
    peer.send(&[frame(SETTINGS, 0, 0, &[]), calls].concat())
        .await;
    poll_fn(|cx| {
        assert!(Pin::new(&mut engine).poll_turn(cx).is_pending());
        let called = handles.lock().unwrap().len() as u32;
        if called < CALLS {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    peer.send(&streams.flat_map(end).collect::<Vec<u8>>()).await;
    handles.lock().unwrap().iter().for_each(then);
    let mut seen = Vec::new();
    poll_fn(|cx| {
        assert!(Pin::new(&mut engine).poll_turn(cx).is_pending());
        let now = dropped.load(Relaxed);
        seen.push(now);
        if now < CALLS {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    seen
}

/// However its calls end: one that leaves much uses up the turn, and other connections have theirs before the next.
#[tokio::test(start_paused = true)]
async fn calls_that_end_at_once_do_so_in_as_many_turns_as_they_take() {
    let one_by_one = [1, 2, 3, 4, 5];
    let reset = |id| frame(RST_STREAM, 0, id, &[0, 0, 0, 8]);
    assert_eq!(dropped_in_turns(reset, |_| {}).await, one_by_one);
    let fault = |id| window_update(id, 0);
    assert_eq!(dropped_in_turns(fault, |_| {}).await, one_by_one);
    // Trailers that have no end.
    let malformed = |id| frame(HEADERS, END_HEADERS, id, &[]);
    assert_eq!(dropped_in_turns(malformed, |_| {}).await, one_by_one);
    assert_eq!(
        dropped_in_turns(|_| Vec::new(), StreamHandle::reset).await,
        one_by_one
    );
}

// ===== Services =====

/// A service that answers calls one at a time, and panics if it is called while it is not ready.
#[derive(Clone)]
struct OneAtATime {
    permits: tokio_util::sync::PollSemaphore,
    permit: Option<Arc<tokio::sync::OwnedSemaphorePermit>>,
}

impl Service<Request<RequestBody>> for OneAtATime {
    type Response = Response<AnyBody>;
    type Error = Infallible;
    type Future = Ready<Outcome>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.permits.poll_acquire(cx).map(|permit| {
            self.permit = permit.map(Arc::new);
            Ok(())
        })
    }

    fn call(&mut self, _: Request<RequestBody>) -> Self::Future {
        let permit = self.permit.take().expect("it is ready");
        let mut sent = false;
        ready(Ok(Response::new(polled(move |_| {
            let _permit = &permit;
            Poll::Ready((!std::mem::replace(&mut sent, true)).then(|| Bytes::from_static(b"x")))
        }))))
    }
}

#[tokio::test(start_paused = true)]
async fn service_is_called_when_it_is_ready() {
    let permits = Arc::new(tokio::sync::Semaphore::new(1));
    let busy = Arc::clone(&permits).acquire_owned().await.unwrap();
    let mut peer = connect(OneAtATime {
        permits: tokio_util::sync::PollSemaphore::new(permits),
        permit: None,
    })
    .await;
    for stream in [1, 3, 5] {
        peer.send(&request(stream, END_STREAM, "/")).await;
    }
    // One that nobody waits for any more.
    peer.send(&frame(RST_STREAM, 0, 3, &[0, 0, 0, 8])).await;
    peer.ping().await;
    drop(busy);
    assert_eq!(peer.body(1).await, (1, false));
    assert_eq!(peer.body(5).await, (1, false));
}

/// A status of success would say that there is a tunnel (RFC 9110, section 9.3.6).
#[tokio::test(start_paused = true)]
async fn tunnel_is_refused_and_no_service_sees_it() {
    let service = by_path(|path, _| {
        assert_eq!(path, "/");
        full("x")
    });
    let mut peer = connect(service).await;
    // `:method: CONNECT`, `:authority: a`
    let connect = [&[0x02, 7][..], b"CONNECT", &[0x01, 1, b'a']].concat();
    peer.send(&frame(HEADERS, END_HEADERS, 1, &connect)).await;
    let refused = peer.find(HEADERS).await;
    assert_eq!(
        (refused.stream, refused.flags),
        (1, END_HEADERS | END_STREAM)
    );
    // A literal value of the indexed name `:status`.
    assert_eq!(refused.payload, b"\x08\x03501");
    peer.send(&request(3, END_STREAM, "/")).await;
    assert_eq!(peer.body(3).await, (1, false));
}

/// It would wait for more of it forever.
#[tokio::test(start_paused = true)]
async fn reader_of_a_request_ends_when_its_stream_does() {
    let (ends, mut ended) = mpsc::channel(8);
    let service = by_path(move |path, request| {
        let (ends, name) = (ends.clone(), path.to_owned());
        tokio::spawn(async move {
            let read = request.into_body().collect().await;
            let read = read
                .map(|body| body.to_bytes())
                .map_err(|error| error.to_string());
            ends.try_send((name, read)).unwrap();
        });
        assert_ne!(path, "/panics");
        full("x")
    });
    let (mut peer, served) = connect_with(1 << 20, service).await;
    peer.send(&[request(1, 0, "/answered"), frame(DATA, 0, 1, b"data")].concat())
        .await;
    let last = Duration::from_secs(60);
    let read = timeout(last, ended.recv()).await;
    let (path, read) = read.expect("it ends").unwrap();
    assert_eq!(path, "/answered");
    let error = read.unwrap_err();
    assert!(error.contains("before its request was complete"), "{error}");
    peer.send(
        &[
            request(3, 0, "/cut"),
            frame(RST_STREAM, 0, 3, &[0, 0, 0, 8]),
        ]
        .concat(),
    )
    .await;
    assert!(ended.recv().await.unwrap().1.is_err());
    peer.send(&request(5, 0, "/panics")).await;
    let read = timeout(last, ended.recv()).await;
    assert!(read.expect("it ends").unwrap().1.is_err());
    drop(peer);
    served.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn slow_peer_gets_all_of_the_last_response() {
    const LENGTH: usize = 60_000;
    let (peer, transport) = duplex(1_000);
    let service = by_path(|_, _| full(vec![7; LENGTH]));
    let mut engine = Engine::new(transport, service, Arc::default());
    let (end, mut ending) = oneshot::channel::<()>();
    let served = tokio::spawn(async move {
        let mut is_ending = false;
        poll_fn(|cx| {
            if !is_ending && Pin::new(&mut ending).poll(cx).is_ready() {
                is_ending = true;
                Pin::new(&mut engine).graceful_shutdown();
            }
            Pin::new(&mut engine).poll_turn(cx)
        })
        .await
    });
    let mut peer = Peer(peer);
    peer.send(&[frame(SETTINGS, 0, 0, &[]), request(1, END_STREAM, "/")].concat())
        .await;
    end.send(()).unwrap();
    let mut received = 0;
    loop {
        sleep(Duration::from_millis(500)).await;
        let seen = peer.next().await.expect("all of it comes");
        match (seen.kind, seen.flags) {
            (DATA, flags) => {
                received += seen.payload.len();
                if flags & END_STREAM != 0 {
                    break;
                }
            }
            (PING, 0) => peer.send(&frame(PING, 1, 0, &seen.payload)).await,
            _ => {}
        }
    }
    assert_eq!(received, LENGTH);
    while peer.next().await.is_some() {}
    served.await.unwrap().unwrap();
}

/// Begins a connection that is about to end, with a response of `length` bytes behind which nothing follows. The buffers of its
/// sockets are small.
async fn end_with(length: usize) -> (TcpStream, JoinHandle<Result<(), BoxError>>) {
    let listener = TcpSocket::new_v4().unwrap();
    // Those that it accepts have the same.
    listener.set_send_buffer_size(64 << 10).unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(1).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 << 10).unwrap();
    let connected = socket.connect(listener.local_addr().unwrap());
    let (peer, accepted) = tokio::join!(connected, listener.accept());
    let (mut peer, (transport, _)) = (peer.unwrap(), accepted.unwrap());
    let mut engine = Engine::new(
        transport,
        by_path(move |_, _| full(vec![7; length])),
        Arc::default(),
    );
    Pin::new(&mut engine).graceful_shutdown();
    let served = tokio::spawn(drive(engine));
    let window = [0, 4, 0x7f, 0xff, 0xff, 0xff];
    let bytes = [
        frame(SETTINGS, 0, 0, &window),
        window_update(0, 1 << 30),
        request(1, END_STREAM, "/"),
        // The answer by which the server knows that nothing more comes.
        frame(PING, 1, 0, b"the end?"),
    ];
    peer.write_all(&bytes.concat()).await.unwrap();
    (peer, served)
}

/// A socket that is closed while its peer still sends something throws away what the peer has not received: this one opens
/// windows as it reads, as every client does.
#[tokio::test]
async fn last_response_is_not_lost_to_a_socket_that_is_closed() {
    const LENGTH: usize = 1 << 20;
    let (mut peer, served) = end_with(LENGTH).await;
    let mut received = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = peer.read(&mut buffer).await.expect("all of it comes");
        if length == 0 {
            break;
        }
        received += length;
        // The server is about to end, or has.
        let _ = peer.write_all(&window_update(0, 1)).await;
        sleep(Duration::from_millis(1)).await;
    }
    assert!(received > LENGTH, "{received}");
    drop(peer);
    served.await.unwrap().unwrap();
}

/// A peer that reads slowly opens its windows seldom: it has longer for what the kernel still has for it.
#[tokio::test]
async fn last_response_is_not_lost_to_a_peer_that_is_slow() {
    const LENGTH: usize = 1 << 20;
    let (mut peer, served) = end_with(LENGTH).await;
    let mut received = 0;
    let mut buffer = vec![0; 4 << 10];
    while received < LENGTH - (40 << 10) {
        received += peer.read(&mut buffer).await.unwrap();
    }
    // All of the rest is in the buffers of the sockets, so the server has ended. It is longer silent than a fast one may be.
    sleep(Duration::from_millis(1_500)).await;
    loop {
        // If the server had closed its socket, this would reset the connection.
        let _ = peer.write_all(&window_update(0, 1)).await;
        let length = peer.read(&mut buffer).await.expect("all of it comes");
        if length == 0 {
            break;
        }
        received += length;
    }
    assert!(received > LENGTH, "{received}");
    drop(peer);
    served.await.unwrap().unwrap();
}

/// A peer that has not closed its end when it was told everything has a second for it, and 20 s if it had not read before.
#[tokio::test(start_paused = true)]
async fn peer_that_was_slow_has_longer_to_close_its_end() {
    for (room, expected) in [(1 << 20, 1), (1_000, 20)] {
        let (peer, transport) = duplex(room);
        let service = by_path(|_, _| full(vec![7; 10_000]));
        let mut engine = Engine::new(transport, service, Arc::default());
        Pin::new(&mut engine).graceful_shutdown();
        let served = tokio::spawn(drive(engine));
        let mut peer = Peer(peer);
        let bytes = [
            frame(SETTINGS, 0, 0, &[]),
            request(1, END_STREAM, "/"),
            frame(PING, 1, 0, b"the end?"),
        ];
        peer.send(&bytes.concat()).await;
        while peer.next().await.is_some() {}
        let told = Instant::now();
        served.await.unwrap().unwrap();
        assert_eq!(told.elapsed().as_secs(), expected, "{room}");
    }
}

/// Wherever a call panics, its stream ends alone.
#[tokio::test(start_paused = true)]
async fn call_that_panics_is_reset_alone() {
    struct PanicsWhenDropped;
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let service = service_fn(|request: Request<RequestBody>| {
        let path = request.uri().path().to_owned();
        assert_ne!(path, "/call");
        let guard = (path == "/drop-of-future").then(|| PanicsWhenDropped);
        async move {
            let _guard = guard;
            match &*path {
                "/future" => panic!("in the future"),
                "/drop-of-future" => return pending().await,
                "/request" => {
                    let mut body = request.into_body();
                    body.frame().await;
                    panic!("with the request");
                }
                _ => {}
            }
            let guard = (path == "/drop-of-body").then(|| PanicsWhenDropped);
            let mut polls = 0;
            Outcome::Ok(Response::new(polled(move |_| {
                let _guard = &guard;
                polls += 1;
                assert!(path != "/body" || polls < 2, "in the body");
                match &*path {
                    "/drop-of-body" | "/stays" => Poll::Pending,
                    _ => Poll::Ready((polls == 1).then(|| Bytes::from_static(b"data"))),
                }
            })))
        }
    });
    let (mut peer, served) = connect_with(1 << 20, service).await;
    peer.send(&request(1, END_STREAM, "/stays")).await;
    assert_eq!(peer.find(HEADERS).await.stream, 1);
    let mut stream = 1;
    for path in ["/call", "/future", "/body", "/request"] {
        stream += 2;
        peer.send(&[request(stream, 0, path), frame(DATA, 0, stream, b"data")].concat())
            .await;
        let reset = peer.find(RST_STREAM).await;
        assert_eq!(
            (reset.stream, &*reset.payload),
            (stream, &[0, 0, 0, 2][..]),
            "{path}"
        );
    }
    for path in ["/drop-of-future", "/drop-of-body"] {
        stream += 2;
        peer.send(&request(stream, 0, path)).await;
        peer.ping().await;
        peer.send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]))
            .await;
        // Of what is dropped with the connection, nothing keeps the others either.
        stream += 2;
        peer.send(&request(stream, 0, path)).await;
    }
    stream += 2;
    peer.send(&request(stream, END_STREAM, "/fine")).await;
    assert_eq!(peer.body(stream).await, (4, false));
    drop(peer);
    served.await.unwrap().unwrap();
}

/// A request that nobody reads holds its window, and no more of the connection's when it ends.
#[tokio::test(start_paused = true)]
async fn service_that_reads_nothing_of_a_request_holds_its_stream_alone() {
    let service = by_path(|path, request| match path {
        "/holds" => polled(move |_| {
            let _held = &request;
            Poll::Pending
        }),
        _ => full("x"),
    });
    let mut peer = connect(service).await;
    peer.send(&frame(SETTINGS, 1, 0, &[])).await;
    let piece = [7; 16_384];
    // More than the window of the connection.
    for stream in (1..81).step_by(4) {
        peer.send(&request(stream, 0, "/holds")).await;
        for _ in 0..16 {
            peer.send(&frame(DATA, 0, stream, &piece)).await;
        }
        peer.send(&request(stream + 2, END_STREAM, "/")).await;
        assert_eq!(peer.body(stream + 2).await, (1, false));
        peer.send(&frame(DATA, 0, stream, b"x")).await;
        let reset = peer.find(RST_STREAM).await;
        assert_eq!((reset.stream, &*reset.payload), (stream, &[0, 0, 0, 3][..]));
    }
}

/// Its body would follow a status behind which another has to come.
#[tokio::test(start_paused = true)]
async fn response_that_is_none_resets_its_stream() {
    let service = service_fn(|request: Request<RequestBody>| {
        let mut response = Response::new(full("x"));
        if request.uri().path() == "/continue" {
            *response.status_mut() = http::StatusCode::CONTINUE;
        }
        ready(Outcome::Ok(response))
    });
    let mut peer = connect(service).await;
    peer.send(&request(1, END_STREAM, "/continue")).await;
    assert_eq!(peer.body(1).await, (0, true));
    peer.send(&request(3, END_STREAM, "/")).await;
    assert_eq!(peer.body(3).await, (1, false));
}

/// A handle that outlives its connection holds nothing of the task.
#[tokio::test]
async fn task_of_a_connection_is_free_when_it_ends() {
    struct Task;
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let (peer, transport) = duplex(1_000);
    let handles = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&handles);
    let service = by_path(move |_, request| {
        let handle = request.extensions().get::<StreamHandle>();
        kept.lock().unwrap().push(handle.cloned().unwrap());
        full("x")
    });
    let mut engine = Engine::new(transport, service, Arc::default());
    let mut peer = Peer(peer);
    peer.send(&[frame(SETTINGS, 0, 0, &[]), request(1, 0, "/")].concat())
        .await;
    let task = Arc::new(Task);
    let waker = Waker::from(Arc::clone(&task));
    let _ = Pin::new(&mut engine).poll_turn(&mut Context::from_waker(&waker));
    assert_eq!(handles.lock().unwrap().len(), 1);
    drop((waker, engine, peer));
    assert_eq!(Arc::strong_count(&task), 1);
    // It says nothing to nobody.
    handles.lock().unwrap()[0].reset();
}

//! The memory that a peer can make one connection hold, and that of one on which nothing happens.

use std::{
    convert::Infallible,
    future::{Future as _, ready},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use tidegate_transport::{Connection, Http2Config, Http2Service, RequestBody, read_preface};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    time::timeout,
};
use tower::service_fn;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Bytes that the pipe between the two holds.
const PIPE: usize = 64 << 10;

/// A response that never ends and holds its request.
struct Holding {
    _request: Request<RequestBody>,
}

impl Body for Holding {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

fn holding() -> impl Http2Service {
    service_fn(|request: Request<RequestBody>| {
        ready(Ok::<_, Infallible>(Response::new(Holding {
            _request: request,
        })))
    })
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// `:method: POST`, `:scheme: http`, `:path: /`.
const REQUEST: [u8; 3] = [0x83, 0x86, 0x84];

/// A connection that is polled by hand, and the bytes that it holds.
struct Held {
    connection: Connection,
    peer: DuplexStream,
    bytes: i64,
}

impl Held {
    /// A connection that has greeted, and whose pipe has grown to all of its size.
    async fn new() -> Self {
        let mut held = Self::idle().await;
        let pings = frame(PING, 0, 0, &[0; 8]).repeat(PIPE / 17);
        held.send(&pings).await;
        held.read().await;
        held
    }

    /// A connection that has greeted.
    async fn idle() -> Self {
        // What the thread lends to all of its connections is there then.
        drop(Self::first().await);
        Self::first().await
    }

    async fn first() -> Self {
        let (mut peer, transport) = duplex(PIPE);
        peer.write_all(PREFACE).await.unwrap();
        let prefaced = read_preface(transport).await.unwrap();
        let mut connection = None;
        let made = measure(|| {
            connection = Some(Connection::new(
                prefaced,
                holding(),
                &Http2Config::default(),
            ));
        });
        let mut held = Self {
            connection: connection.expect("it was made"),
            peer,
            bytes: made.bytes_current,
        };
        let greeting = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, 1, 0, &[])].concat();
        held.send(&greeting).await;
        held.read().await;
        held
    }

    async fn send(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(PIPE) {
            self.peer.write_all(part).await.unwrap();
            self.poll();
        }
    }

    /// Polls until nothing happens.
    fn poll(&mut self) {
        for _ in 0..20 {
            let mut is_over = false;
            let held = measure(|| {
                let mut cx = Context::from_waker(Waker::noop());
                is_over = Pin::new(&mut self.connection).poll(&mut cx).is_ready();
            });
            self.bytes += held.bytes_current;
            assert!(!is_over);
        }
    }

    /// Reads all that comes.
    async fn read(&mut self) {
        let mut bytes = vec![0; PIPE];
        while timeout(Duration::ZERO, self.peer.read(&mut bytes))
            .await
            .is_ok()
        {
            self.poll();
        }
    }

    /// Reads what has come. Returns the bytes that are held more than `before`.
    async fn more_than(&mut self, before: i64) -> i64 {
        self.read().await;
        self.bytes - before
    }
}

#[tokio::test]
async fn idle_connection_holds_no_buffer() {
    let held = Held::idle().await;
    assert!((1..2_000).contains(&held.bytes), "{}", held.bytes);
}

#[tokio::test]
async fn memory_of_calls_is_bounded() {
    let mut held = Held::new().await;
    let before = held.bytes;
    for stream in (1..512).step_by(2) {
        held.send(&frame(HEADERS, END_HEADERS, stream, &REQUEST))
            .await;
    }
    let calls = held.more_than(before).await;
    assert!((100_000..300_000).contains(&calls), "{calls}");
    // Bodies that nobody reads, in many frames.
    let before = held.bytes;
    for stream in (1..33).step_by(2) {
        for _ in 0..262 {
            held.send(&frame(DATA, 0, stream, &[7; 1_000])).await;
        }
    }
    let bodies = held.more_than(before).await;
    assert!((4_000_000..5_400_000).contains(&bodies), "{bodies}");
}

#[tokio::test]
async fn memory_of_header_lists_is_bounded() {
    let mut held = Held::new().await;
    let before = held.bytes;
    // As many fields as a list may have, and more names than half of the map that they need: those above it are in a list of
    // their own, which has room for more too.
    let mut block = REQUEST.to_vec();
    for at in 0..470_u32 {
        let name = at % 390;
        block.extend([0, 2, b'a' + (name / 26) as u8, b'a' + (name % 26) as u8, 0]);
    }
    for stream in (1..512).step_by(2) {
        let headers = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
        held.send(&headers).await;
    }
    let lists = held.more_than(before).await;
    assert!((20_000_000..25_000_000).contains(&lists), "{lists}");
}

#[tokio::test]
async fn memory_of_what_is_under_way_is_bounded() {
    let mut held = Held::new().await;
    let before = held.bytes;
    // The table for compression.
    let mut block = REQUEST.to_vec();
    for at in 0..120_u8 {
        block.extend([0x40, 1, b'a' + at % 26, 1, b'x']);
    }
    held.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
    let table = held.more_than(before).await;
    assert!(table < 30_000, "{table}");
    // Answers that the peer does not read. It is not read then, either.
    let before = held.bytes;
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(1_000);
    while timeout(Duration::ZERO, held.peer.write_all(&pings))
        .await
        .is_ok()
    {
        held.poll();
    }
    let answers = held.bytes - before;
    assert!((100_000..400_000).contains(&answers), "{answers}");
    // A header block and a frame that have come in part.
    let mut held = Held::new().await;
    let before = held.bytes;
    held.send(&frame(HEADERS, 0, 1, &[0; 16_384])).await;
    held.send(&frame(CONTINUATION, 0, 1, &[0; 8_000])).await;
    let part = frame(CONTINUATION, 0, 1, &[0; 16_384]);
    held.send(&part[..16_000]).await;
    let parts = held.more_than(before).await;
    assert!((30_000..70_000).contains(&parts), "{parts}");
}

//! A connection by the bytes of its peer.

mod bodies;
mod budgets;
mod requests;
mod responses;
mod times;

use std::{
    io::IoSlice,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::{
    error::{Code, Error},
    frame::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEAD_BYTES, HEADERS, Head,
        PADDED, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    },
    hpack,
    stream::Known,
};

/// The bytes of a stream that left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sent(pub(super) usize);

impl StreamState for Sent {
    fn sent(&mut self, bytes: usize) {
        self.0 += bytes;
    }
}

/// A connection with its peer.
pub(super) struct Pair {
    pub(super) server: Connection<Sent>,
    now: Instant,
}

/// An event, without what it borrows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Request(u32, String, bool),
    Data(u32, Vec<u8>, bool),
    Trailers(u32, HeaderMap),
    Reset(u32, Code, bool),
}

pub(super) type Frame = (Head, Vec<u8>);

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Head {
        length: payload.len(),
        kind,
        flags,
        stream,
    }
    .put(&mut out);
    out.extend_from_slice(payload);
    out
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

const REQUEST: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "localhost"),
    (":path", "/p"),
];

pub(super) fn request(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(REQUEST))
}

pub(super) fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut out = Vec::new();
    crate::frame::put_settings(&mut out, settings);
    out
}

pub(super) fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

impl Pair {
    pub(super) fn new() -> Self {
        Self::with(Config::default())
    }

    /// A pair that has greeted: the output is empty.
    fn with(config: Config) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            server: Connection::new(Arc::new(config), now),
            now,
        };
        assert_eq!(pair.send(&settings(&[])).unwrap(), []);
        let kinds: Vec<u8> = pair.read().iter().map(|(head, _)| head.kind).collect();
        assert_eq!(kinds, [SETTINGS, WINDOW_UPDATE, SETTINGS]);
        pair
    }

    /// Sends bytes. Returns the events in them.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<Vec<Seen>, Error> {
        let mut seen = Vec::new();
        let mut input = bytes;
        while let Some(event) = self.server.receive(&mut input)? {
            seen.push(match event {
                Event::Request {
                    stream,
                    request,
                    ends,
                    ..
                } => Seen::Request(stream.get(), request.uri().to_string(), ends),
                Event::Data { stream, data, ends } => Seen::Data(stream.get(), data.to_vec(), ends),
                Event::Trailers { stream, trailers } => Seen::Trailers(stream.get(), trailers),
                Event::Reset {
                    stream,
                    code,
                    by_peer,
                    ..
                } => Seen::Reset(stream.get(), code, by_peer),
            });
            if let Some(Seen::Request(stream, ..)) = seen.last() {
                self.server.accept(StreamId(*stream), Sent::default());
            }
        }
        assert!(input.is_empty());
        Ok(seen)
    }

    /// Sends bytes that bring no event.
    pub(super) fn send_quietly(&mut self, bytes: &[u8]) {
        assert_eq!(self.send(bytes).unwrap(), []);
    }

    /// Sends bytes that end the connection. Returns the code that the peer is told.
    fn send_breach(&mut self, bytes: &[u8]) -> Code {
        let error = self.send(bytes).unwrap_err();
        assert!(self.server.is_over());
        let (head, payload) = self.read().pop().unwrap();
        assert_eq!(head.kind, GOAWAY);
        let code = Code(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        assert_eq!(code, error.code());
        assert_eq!(&payload[8..], error.reason().as_bytes());
        code
    }

    /// Opens a stream without a body, and begins its response.
    pub(super) fn open(&mut self, stream: u32) -> StreamId {
        let expected = Seen::Request(stream, "http://localhost/p".into(), true);
        assert_eq!(self.send(&request(stream, END_STREAM)).unwrap(), [expected]);
        self.server
            .respond(StreamId(stream), StatusCode::OK, &HeaderMap::new(), false);
        let frames = self.read();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].0.kind, HEADERS);
        StreamId(stream)
    }

    /// Reads all of the output.
    pub(super) fn read(&mut self) -> Vec<Frame> {
        let mut bytes = Vec::new();
        while self.server.output_len() > 0 {
            let mut slices = [IoSlice::new(&[]); 7];
            let count = self.server.output(&mut slices);
            let length = slices[..count].iter().map(|slice| slice.len()).sum();
            slices[..count]
                .iter()
                .for_each(|slice| bytes.extend_from_slice(slice));
            self.server.advance(length);
        }
        frames(&bytes)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.server.set_now(self.now);
    }
}

fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((head, behind)) = bytes.split_first_chunk::<HEAD_BYTES>() {
        let head = Head::read(head);
        let (payload, behind) = behind.split_at(head.length);
        frames.push((head, payload.to_vec()));
        bytes = behind;
    }
    assert!(bytes.is_empty());
    frames
}

fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload.try_into().unwrap())
}

/// Sends a request without a body on stream 1. Returns it as it is seen.
fn received(pair: &mut Pair, fields: &[(&str, &str)]) -> Request<()> {
    let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields));
    match pair.server.receive(&mut &*bytes).unwrap() {
        Some(Event::Request { request, .. }) => request,
        other => panic!("{other:?}"),
    }
}

/// Fields of a header block that is sent.
fn fields_of(block: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut fields = Vec::new();
    hpack::Decoder::new()
        .decode(block, |field| {
            fields.push((text(field.name), text(field.value)));
            Ok::<_, Error>(())
        })
        .unwrap();
    fields
}

/// Kinds and streams of frames.
fn kinds(frames: &[Frame]) -> Vec<(u8, u32)> {
    frames
        .iter()
        .map(|(head, _)| (head.kind, head.stream))
        .collect()
}

// ===== Frames =====

#[test]
fn bytes_in_pieces_of_any_size_bring_the_same_events() {
    let mut bytes = settings(&[(1, 0), (4, 100)]);
    bytes.extend(frame(HEADERS, 0, 1, &block(&REQUEST[..2])));
    bytes.extend(frame(CONTINUATION, 0, 1, &[]));
    bytes.extend(frame(CONTINUATION, END_HEADERS, 1, &block(&REQUEST[2..])));
    bytes.extend(frame(DATA, PADDED, 1, b"\x03abcdefxyz"));
    bytes.extend(frame(0x99, 0, 1, b"whatever"));
    bytes.extend(frame(DATA, 0, 1, b"ghi"));
    bytes.extend(frame(PING, 0, 0, b"12345678"));
    bytes.extend(frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &block(&[("sum", "1")]),
    ));
    bytes.extend(request(3, END_STREAM));
    bytes.extend(frame(RST_STREAM, 0, 3, &[0, 0, 0, 8]));
    let mut outputs = Vec::new();
    for size in [1, 2, 3, 5, 9, 10, 17, bytes.len()] {
        let mut pair = Pair::new();
        let seen: Vec<Seen> = bytes
            .chunks(size)
            .flat_map(|piece| pair.send(piece).unwrap())
            .collect();
        let mut body = Vec::new();
        let mut others = Vec::new();
        for event in seen {
            match event {
                Seen::Data(1, data, false) => body.extend(data),
                other => others.push(other),
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("sum", HeaderValue::from_static("1"));
        assert_eq!(body, b"abcdefghi");
        let expected = [
            Seen::Request(1, "http://localhost/p".into(), false),
            Seen::Trailers(1, trailers),
            Seen::Request(3, "http://localhost/p".into(), true),
            Seen::Reset(3, Code::CANCEL, true),
        ];
        assert_eq!(others, expected);
        outputs.push(pair.read());
    }
    assert_eq!(kinds(&outputs[0]), [(SETTINGS, 0), (PING, 0)]);
    assert!(outputs.iter().all(|output| *output == outputs[0]));
}

#[test]
fn first_frame_is_settings() {
    for first in [
        request(1, 0),
        frame(SETTINGS, ACK, 0, &[]),
        frame(PING, 0, 0, &[0; 8]),
    ] {
        let mut server = Connection::<Sent>::new(Arc::default(), Instant::now());
        let error = server.receive(&mut &*first).unwrap_err();
        assert_eq!(error.code(), Code::PROTOCOL_ERROR);
    }
}

/// Rules whose breach ends the connection. The abuse suite has more of them, over sockets.
#[test]
fn breach_of_a_rule_of_the_connection_ends_it() {
    let open = request(1, 0);
    let ended = [request(1, END_STREAM), frame(RST_STREAM, 0, 1, &[0; 4])].concat();
    let interrupted = frame(HEADERS, 0, 1, &block(REQUEST));
    for (rule, bytes, code) in [
        (
            "a frame that is too long",
            frame(0x99, 0, 0, &[0; 16_385]),
            Code::FRAME_SIZE_ERROR,
        ),
        (
            "PING on a stream",
            frame(PING, 0, 1, &[0; 8]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "PING of 7 bytes",
            frame(PING, 0, 0, &[0; 7]),
            Code::FRAME_SIZE_ERROR,
        ),
        (
            "SETTINGS on a stream",
            frame(SETTINGS, 0, 1, &[]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "SETTINGS of 7 bytes",
            frame(SETTINGS, 0, 0, &[0; 7]),
            Code::FRAME_SIZE_ERROR,
        ),
        (
            "an acknowledgment with a payload",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            Code::FRAME_SIZE_ERROR,
        ),
        (
            "ENABLE_PUSH of 2",
            settings(&[(2, 2)]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a window that is too large",
            settings(&[(4, 1 << 31)]),
            Code::FLOW_CONTROL_ERROR,
        ),
        (
            "frames that are too small",
            settings(&[(5, 16_383)]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "frames that are too large",
            settings(&[(5, 1 << 24)]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "PUSH_PROMISE",
            frame(5, 0, 1, &[0; 4]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "GOAWAY on a stream",
            frame(GOAWAY, 0, 1, &[0; 8]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "GOAWAY of 7 bytes",
            frame(GOAWAY, 0, 0, &[0; 7]),
            Code::FRAME_SIZE_ERROR,
        ),
        (
            "DATA on stream 0",
            frame(DATA, 0, 0, &[]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "DATA of a stream that has not begun",
            frame(DATA, 0, 1, &[]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "RST_STREAM on stream 0",
            frame(RST_STREAM, 0, 0, &[0; 4]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "RST_STREAM of a stream that has not begun",
            frame(RST_STREAM, 0, 1, &[0; 4]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "RST_STREAM of 3 bytes",
            [&*open, &frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
            Code::FRAME_SIZE_ERROR,
        ),
        (
            "WINDOW_UPDATE of a stream that has not begun",
            window_update(1, 1),
            Code::PROTOCOL_ERROR,
        ),
        (
            "WINDOW_UPDATE of 0",
            window_update(0, 0),
            Code::PROTOCOL_ERROR,
        ),
        (
            "WINDOW_UPDATE of 3 bytes",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            Code::FRAME_SIZE_ERROR,
        ),
        (
            "a window of the connection that is too large",
            window_update(0, (1 << 31) - 1),
            Code::FLOW_CONTROL_ERROR,
        ),
        (
            "PRIORITY on stream 0",
            frame(PRIORITY, 0, 0, &[0; 5]),
            Code::PROTOCOL_ERROR,
        ),
        ("HEADERS on stream 0", request(0, 0), Code::PROTOCOL_ERROR),
        (
            "HEADERS on an even stream",
            request(2, 0),
            Code::PROTOCOL_ERROR,
        ),
        (
            "HEADERS of a stream that is over",
            [&*ended, &request(1, 0)].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "DATA of a stream that is over",
            [&*ended, &frame(DATA, 0, 1, b"x")].concat(),
            Code::STREAM_CLOSED,
        ),
        (
            "HEADERS below the last stream",
            [request(5, 0), request(3, 0)].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "CONTINUATION of nothing",
            frame(CONTINUATION, 0, 1, &[]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a block that PING interrupts",
            [&*interrupted, &frame(PING, 0, 0, &[0; 8])].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a block of another stream",
            [&*interrupted, &frame(CONTINUATION, 4, 3, &[])].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a block that is none",
            frame(HEADERS, END_HEADERS, 1, &[0x80]),
            Code::COMPRESSION_ERROR,
        ),
        (
            "padding longer than its frame",
            [&*open, &frame(DATA, PADDED, 1, &[3, 0, 0])].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "padding without its length",
            [&*open, &frame(DATA, PADDED, 1, &[])].concat(),
            Code::FRAME_SIZE_ERROR,
        ),
        (
            "HEADERS with such padding",
            frame(HEADERS, PADDED | END_HEADERS, 1, &[9, 0]),
            Code::PROTOCOL_ERROR,
        ),
    ] {
        assert_eq!(Pair::new().send_breach(&bytes), code, "{rule}");
    }
}

#[test]
fn breach_of_a_rule_of_a_stream_resets_it_alone() {
    let with = |field: (&'static str, &'static str)| [REQUEST, &[field]].concat();
    let without = |name: &str| -> Vec<(&str, &str)> {
        REQUEST
            .iter()
            .copied()
            .filter(|field| field.0 != name)
            .collect()
    };
    let headers =
        |fields: &[(&str, &str)]| frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields));
    let open = request(1, 0);
    let long = frame(
        HEADERS,
        END_HEADERS,
        1,
        &block(&with(("content-length", "2"))),
    );
    for (rule, bytes, code) in [
        (
            "a name in upper case",
            headers(&with(("X", "v"))),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a field of the connection",
            headers(&with(("connection", "close"))),
            Code::PROTOCOL_ERROR,
        ),
        (
            "te other than trailers",
            headers(&with(("te", "gzip"))),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a value with a line feed",
            headers(&with(("a", "b\nc"))),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a value that ends with a line feed",
            headers(&with(("a", "b\n"))),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a value that begins with a carriage return",
            headers(&with(("a", "\rb"))),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a second method",
            headers(&with((":method", "GET"))),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a field of responses",
            headers(&with((":status", "200"))),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a pseudo-header behind others",
            headers(&[&[("a", "b")], REQUEST].concat()),
            Code::PROTOCOL_ERROR,
        ),
        (
            "no method",
            headers(&without(":method")),
            Code::PROTOCOL_ERROR,
        ),
        (
            "no scheme",
            headers(&without(":scheme")),
            Code::PROTOCOL_ERROR,
        ),
        ("no path", headers(&without(":path")), Code::PROTOCOL_ERROR),
        (
            "an empty path",
            headers(&[&without(":path")[..], &[(":path", "")]].concat()),
            Code::PROTOCOL_ERROR,
        ),
        (
            "two lengths",
            headers(
                &[
                    &with(("content-length", "0"))[..],
                    &[("content-length", "1")],
                ]
                .concat(),
            ),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a length of no body",
            headers(&with(("content-length", "1"))),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a body that is too long",
            [&*long, &frame(DATA, 0, 1, b"abc")].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a body that is too short",
            [&*long, &frame(DATA, END_STREAM, 1, b"a")].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "trailers that do not end",
            [
                &*open,
                &frame(HEADERS, END_HEADERS, 1, &block(&[("a", "b")])),
            ]
            .concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "trailers with a pseudo-header",
            [
                &*open,
                &frame(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    1,
                    &block(&[(":path", "b")]),
                ),
            ]
            .concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "DATA after the end",
            [request(1, END_STREAM), frame(DATA, 0, 1, b"x")].concat(),
            Code::STREAM_CLOSED,
        ),
        (
            "HEADERS after the end",
            [request(1, END_STREAM), request(1, END_STREAM)].concat(),
            Code::STREAM_CLOSED,
        ),
        (
            "WINDOW_UPDATE of 0",
            [&*open, &window_update(1, 0)].concat(),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a window that is too large",
            [&*open, &window_update(1, (1 << 31) - 1)].concat(),
            Code::FLOW_CONTROL_ERROR,
        ),
        (
            "PRIORITY of 4 bytes",
            [&*open, &frame(PRIORITY, 0, 1, &[0; 4])].concat(),
            Code::FRAME_SIZE_ERROR,
        ),
        (
            "a stream that depends on itself",
            [&*open, &frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0])].concat(),
            Code::PROTOCOL_ERROR,
        ),
    ] {
        let mut pair = Pair::new();
        pair.send(&bytes)
            .unwrap_or_else(|error| panic!("{rule}: {error}"));
        let frames = pair.read();
        let reset = frames.iter().find(|(head, _)| head.kind == RST_STREAM);
        let (head, payload) = reset.unwrap_or_else(|| panic!("{rule}: {frames:?}"));
        assert_eq!((head.stream, Code(number(payload))), (1, code), "{rule}");
        assert_eq!(pair.server.streams(), 0, "{rule}");
        pair.open(3);
    }
}

#[test]
fn whatever_is_to_be_ignored_is_ignored() {
    let mut pair = Pair::new();
    pair.open(1);
    let reserved = |mut bytes: Vec<u8>| {
        bytes[5] |= 0x80;
        bytes
    };
    let priority = |stream| frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 7]);
    for (what, bytes) in [
        (
            "unknown settings",
            settings(&[(0, 7), (0x99, u32::MAX), (8, 1)]),
        ),
        (
            "limits of the peer",
            settings(&[(2, 0), (3, 0), (6, 0), (5, 16_777_215)]),
        ),
        (
            "flags that SETTINGS do not have",
            frame(SETTINGS, 0xfe, 0, &[]),
        ),
        (
            "flags that PRIORITY does not have",
            frame(PRIORITY, 0xff, 1, &[0; 5]),
        ),
        (
            "the reserved bit of a stream",
            reserved(frame(PRIORITY, 0, 1, &[0; 5])),
        ),
        (
            "the reserved bit of a window",
            window_update(1, (1 << 31) | 1),
        ),
        ("a priority of a stream that has not begun", priority(99)),
        (
            "an answer to a PING that was not sent",
            frame(PING, ACK, 0, &[7; 8]),
        ),
        (
            "GOAWAY with a reason and an unknown code",
            frame(GOAWAY, 0, 0, &[0xff; 20]),
        ),
        ("unknown frames", frame(0xff, 0xff, 1, &[0xff; 100])),
    ] {
        pair.send_quietly(&bytes);
        let answers = pair.read();
        let is_answered = |(head, _): &Frame| (head.kind, head.flags) != (SETTINGS, ACK);
        assert!(!answers.iter().any(is_answered), "{what}: {answers:?}");
    }
    pair.server.finish(StreamId(1), None);
    pair.read();
    for (what, bytes) in [
        ("a window of a stream that is over", window_update(1, 1)),
        (
            "a reset of a stream that is over",
            frame(RST_STREAM, 0, 1, &[0xff; 4]),
        ),
        ("a priority of a stream that is over", priority(1)),
    ] {
        pair.send_quietly(&bytes);
        assert_eq!(pair.read(), [], "{what}");
    }
    // A reset with any code is never answered by another.
    pair.open(3);
    let seen = pair.send(&frame(RST_STREAM, 0, 3, &[0xff; 4])).unwrap();
    assert_eq!(seen, [Seen::Reset(3, Code(u32::MAX), true)]);
    assert_eq!(pair.read(), []);
}

#[test]
fn settings_and_pings_are_answered_in_their_order() {
    let mut pair = Pair::new();
    pair.send_quietly(
        &[
            frame(PING, 0, 0, b"12345678"),
            settings(&[]),
            frame(PING, 0, 0, b"abcdefgh"),
        ]
        .concat(),
    );
    let frames = pair.read();
    let flags: Vec<(u8, u8)> = frames
        .iter()
        .map(|(head, _)| (head.kind, head.flags))
        .collect();
    assert_eq!(flags, [(PING, ACK), (SETTINGS, ACK), (PING, ACK)]);
    assert_eq!(
        (&*frames[0].1, &*frames[2].1),
        (&b"12345678"[..], &b"abcdefgh"[..])
    );
}

/// Whatever becomes of a request, its header block changes the table for compression (RFC 9113, section 4.3).
#[test]
fn header_blocks_that_nobody_sees_change_the_table() {
    // Adds a field, and is a request besides.
    let adds = |name: &str| {
        let mut block = block(REQUEST);
        block.extend([0x40, name.len() as u8]);
        block.extend_from_slice(name.as_bytes());
        block.extend([1, b'v']);
        block
    };
    let headers = |stream, flags, block: &[u8]| frame(HEADERS, END_HEADERS | flags, stream, block);
    let mut pair = Pair::with(Config {
        max_concurrent_streams: 1,
        ..Config::default()
    });
    pair.send(&headers(1, 0, &adds("open"))).unwrap();
    pair.send_quietly(&headers(3, 0, &adds("refused")));
    pair.server.reset(StreamId(1), Code::CANCEL);
    let trailers = [&[0x40, 5][..], b"reset", &[1, b'v']].concat();
    pair.send_quietly(&headers(1, END_STREAM, &trailers));
    pair.send_quietly(&headers(
        5,
        END_STREAM,
        &[&adds("malformed")[..], &block(REQUEST)].concat(),
    ));
    pair.server.end();
    pair.pass(Config::default().keep_alive_timeout);
    pair.server.on_timeout().unwrap();
    pair.send_quietly(&headers(7, END_STREAM, &adds("too-late")));
    let mut found = Vec::new();
    let all: Vec<u8> = (0xbe..0xbe + 5).collect();
    let decoder = pair.server.decoder.as_mut().unwrap();
    decoder
        .decode(&all, |field| {
            found.push(String::from_utf8(field.name.to_vec()).unwrap());
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(found, ["too-late", "malformed", "reset", "refused", "open"]);
}

// ===== Any bytes =====

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever bytes come: no panic, and a bounded output.
    #[test]
    fn any_bytes_are_taken_or_refused(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..20)) {
        let mut pair = Pair::new();
        for piece in pieces {
            if pair.send(&piece).is_err() {
                break;
            }
        }
        prop_assert!(pair.server.output_len() < 200_000);
    }
}

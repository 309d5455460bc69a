//! A connection by the bytes of its peer.

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

// ===== Requests =====

#[test]
fn authority_of_any_spelling_is_handed_on() {
    for authority in [
        "%2Frun%2Ftg.sock",
        "/run/tg.sock",
        "outbound|50051||x",
        "xds cluster",
        "a@b:c",
    ] {
        let mut pair = Pair::new();
        let fields = [&REQUEST[..2], &[(":authority", authority)], &REQUEST[3..]].concat();
        let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        let Some(Event::Request { request, .. }) = pair.server.receive(&mut &*bytes).unwrap()
        else {
            panic!("{authority}");
        };
        assert_eq!(request.uri().path(), "/p");
        let found = request.uri().authority().map_or_else(
            || request.headers()["host"].to_str().unwrap(),
            |authority| authority.as_str(),
        );
        assert_eq!(found, authority);
    }
}

/// The field `host` is never what a service goes by where there is an authority (RFC 9113, section 8.3.1).
#[test]
fn authority_that_no_uri_has_is_in_place_of_the_host() {
    let mut pair = Pair::new();
    let fields = [
        &REQUEST[..2],
        &[(":authority", "/run/tg.sock"), REQUEST[3]],
        &[("host", "elsewhere"), ("host", "anywhere")],
    ]
    .concat();
    let headers = received(&mut pair, &fields).into_parts().0.headers;
    let hosts: Vec<&HeaderValue> = headers.get_all("host").iter().collect();
    assert_eq!(hosts, ["/run/tg.sock"]);
}

#[test]
fn target_of_a_request_is_as_it_was_sent() {
    for (method, path, expected) in [
        ("OPTIONS", "*", Some("*")),
        ("GET", "/a?b=c", Some("/a?b=c")),
        ("GET", "a", None),
        ("GET", "http://elsewhere/a", None),
        ("GET", "/a b", None),
    ] {
        let mut pair = Pair::new();
        let fields = [(":method", method), REQUEST[1], REQUEST[2], (":path", path)];
        let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        let event = pair.server.receive(&mut &*bytes).unwrap();
        let found = match &event {
            Some(Event::Request { request, .. }) => {
                request.uri().path_and_query().map(|path| path.as_str())
            }
            _ => None,
        };
        assert_eq!(found, expected, "{path}");
    }
}

#[test]
fn crumbs_of_a_cookie_are_one_field() {
    let mut pair = Pair::new();
    let crumbs = [
        ("cookie", "a=1"),
        ("x", "y"),
        ("cookie", "b=2"),
        ("cookie", "c=3"),
    ];
    let headers = received(&mut pair, &[REQUEST, &crumbs].concat())
        .into_parts()
        .0
        .headers;
    let cookies: Vec<&HeaderValue> = headers.get_all("cookie").iter().collect();
    assert_eq!(cookies, ["a=1; b=2; c=3"]);
    // One that is never to be put into a table makes the whole so.
    let mut block = block(REQUEST);
    for (pattern, value) in [(0x10, "a=1"), (0x00, "b=2")] {
        block.extend([pattern, 6]);
        block.extend_from_slice(b"cookie");
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 3, &block);
    let Some(Event::Request { request, .. }) = pair.server.receive(&mut &*bytes).unwrap() else {
        panic!("no request");
    };
    assert_eq!(request.headers()["cookie"], "a=1; b=2");
    assert!(request.headers()["cookie"].is_sensitive());
}

#[test]
fn header_list_that_is_too_large_is_marked_and_truncated() {
    let mut pair = Pair::with(Config {
        max_header_list_size: 400,
        ..Config::default()
    });
    let mut fields = REQUEST.to_vec();
    let large = "x".repeat(120);
    fields.extend([
        ("content-type", "application/grpc"),
        ("large", &large),
        ("small", "y"),
    ]);
    fields.push(("other", "z"));
    fields.extend([("large", "x"); 3]);
    let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
    let Some(Event::Request {
        request,
        is_truncated,
        ..
    }) = pair.server.receive(&mut &*bytes).unwrap()
    else {
        panic!("no request");
    };
    assert!(is_truncated);
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert!(!request.headers().contains_key("other"));
}

/// A map of headers has room for 24,576 names, however large the list may be.
#[test]
fn more_names_than_a_map_has_room_for_are_malformed() {
    let config = Config {
        max_header_list_size: 16 << 20,
        ..Config::default()
    };
    // It is to be put into the map, in place of a host.
    let mut fields = block(&[&REQUEST[..2], &[(":authority", "/run/x"), REQUEST[3]]].concat());
    let mut pair = Pair::with(config);
    let mut seen = Vec::new();
    for name in 0..24_580_u32 {
        fields.extend_from_slice(&[0, 6]);
        fields.extend_from_slice(format!("x{name:05}").as_bytes());
        fields.push(0);
        if name < 24_572 {
            continue;
        }
        let stream = 2 * (name - 24_572) + 1;
        let (first, others) = fields.split_at(16_000);
        pair.send_quietly(&frame(HEADERS, END_STREAM, stream, first));
        for piece in others.chunks(16_000) {
            pair.send_quietly(&frame(CONTINUATION, 0, stream, piece));
        }
        let end = frame(CONTINUATION, END_HEADERS, stream, &[]);
        seen.push(!pair.send(&end).unwrap().is_empty());
    }
    // Those that have room, and all behind them.
    assert!(
        seen.is_sorted_by(|before, after| before >= after),
        "{seen:?}"
    );
    assert!(seen[0] && !seen[7], "{seen:?}");
}

/// Without their tail they would say something else, and there is no mark on them.
#[test]
fn trailers_that_are_too_large_reset_their_stream() {
    let config = Config {
        max_header_list_size: 400,
        ..Config::default()
    };
    let trailers = |stream, size| {
        let value = "x".repeat(size);
        let fields = ["a", "b", "c"].map(|name| (name, &*value));
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields))
    };
    let mut pair = Pair::with(config);
    for stream in [1, 3] {
        pair.send(&request(stream, 0)).unwrap();
    }
    // 400 bytes, with 33 for each besides its value.
    let seen = pair.send(&trailers(1, 100)).unwrap();
    assert!(matches!(&seen[..], [Seen::Trailers(1, whole)] if whole.len() == 3));
    let seen = pair.send(&trailers(3, 101)).unwrap();
    assert_eq!(seen, [Seen::Reset(3, Code::PROTOCOL_ERROR, false)]);
    assert_eq!(kinds(&pair.read()), [(RST_STREAM, 3)]);
    // The peer has ended it, and nothing of it is to be ignored.
    assert_eq!(pair.server.streams.know(3), Known::Closed);
}

#[test]
fn header_block_without_measure_ends_the_connection() {
    let begin = frame(HEADERS, 0, 1, &block(REQUEST));
    let mut pair = Pair::new();
    pair.send_quietly(&begin);
    let many = frame(CONTINUATION, 0, 1, &[]).repeat(100);
    assert_eq!(pair.send_breach(&many), Code::ENHANCE_YOUR_CALM);
    let mut pair = Pair::new();
    pair.send_quietly(&begin);
    let large = frame(CONTINUATION, 0, 1, &[0; 16_384]).repeat(3);
    assert_eq!(pair.send_breach(&large), Code::ENHANCE_YOUR_CALM);
}

/// Two bytes of a block name a field of 4 KiB: it ends before much of that is done, whether somebody wants it or not.
#[test]
fn header_block_that_brings_far_more_than_it_takes_ends_the_connection() {
    // The first counts 4,096 bytes in a list and in the table, and each of the others the same. The request counts 181.
    let names = |at: usize| {
        let mut block = block(REQUEST);
        block.extend([&[0x40, 0x7f, 0xe1, 0x1e][..], &[b'a'; 4_064], &[0]].concat());
        block.extend([0x7e, 0].repeat(at - 1));
        block
    };
    let headers = |stream, block: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, stream, block);
    let mut pair = Pair::new();
    // Up to four times the limit it is a list that is too large, which has a status.
    let seen = pair.send(&headers(1, &names(15))).unwrap();
    assert_eq!(seen.len(), 1);
    let breach = pair.send_breach(&headers(3, &names(16)));
    assert_eq!(breach, Code::ENHANCE_YOUR_CALM);
    let mut pair = Pair::new();
    pair.send(&[request(1, 0), window_update(1, 0)].concat())
        .unwrap();
    let breach = pair.send_breach(&headers(1, &names(16)));
    assert_eq!(breach, Code::ENHANCE_YOUR_CALM);
    // Fields that are in the table already, of a byte each.
    let mut pair = Pair::new();
    pair.send(&headers(1, &names(1))).unwrap();
    let breach = pair.send_breach(&headers(3, &[0xbe; 17]));
    assert_eq!(breach, Code::ENHANCE_YOUR_CALM);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_may_be_tried_again() {
    let mut pair = Pair::with(Config {
        max_concurrent_streams: 2,
        ..Config::default()
    });
    pair.open(1);
    pair.open(3);
    pair.send_quietly(&request(5, 0));
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(RST_STREAM, 5)]);
    assert_eq!(Code(number(&frames[0].1)), Code::REFUSED_STREAM);
    // What was under way.
    pair.send_quietly(&frame(DATA, END_STREAM, 5, b"body"));
    pair.server.finish(StreamId(1), None);
    pair.read();
    pair.open(7);
}

// ===== Bodies of requests =====

#[test]
fn window_of_a_body_opens_as_it_is_read() {
    let config = Config::default();
    let (stream_window, connection_window) = (config.stream_window, config.connection_window);
    let mut pair = Pair::with(config);
    pair.send_quietly(&frame(SETTINGS, ACK, 0, &[]));
    pair.send(&request(1, 0)).unwrap();
    let piece = frame(DATA, 0, 1, &[7; 16_384]);
    let mut received = 0;
    for _ in 0..stream_window / 16_384 {
        let seen = pair.send(&piece).unwrap();
        assert_eq!(seen, [Seen::Data(1, vec![7; 16_384], false)]);
        received += 16_384;
    }
    assert_eq!(pair.read(), []);
    pair.server.release(StreamId(1), received / 2 - 1);
    assert_eq!(pair.read(), []);
    pair.server.release(StreamId(1), 1);
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(WINDOW_UPDATE, 1)]);
    assert_eq!(number(&frames[0].1), stream_window / 2);
    // No more is released than was received.
    pair.server.release(StreamId(1), usize::MAX);
    let frames = pair.read();
    assert_eq!(number(&frames[0].1), stream_window / 2);
    let mut left = connection_window - stream_window;
    let mut updates = 0;
    while left > 0 {
        pair.send(&piece).unwrap();
        pair.server.release(StreamId(1), 16_384);
        updates += pair
            .read()
            .iter()
            .filter(|(head, _)| head.stream == 0)
            .count();
        left = left.saturating_sub(16_384);
    }
    assert_eq!(updates, 2);
}

#[test]
fn more_than_a_window_allows_ends_the_stream_or_the_connection() {
    let mut pair = Pair::new();
    pair.send(&request(1, 0)).unwrap();
    let piece = frame(DATA, 0, 1, &[7; 16_384]);
    // The window that holds until our settings are acknowledged.
    let mut seen = pair.send(&piece.repeat(4)).unwrap();
    assert_eq!(
        seen.pop(),
        Some(Seen::Reset(1, Code::FLOW_CONTROL_ERROR, false))
    );
    let mut pair = Pair::new();
    let code = (0..).find_map(|at| {
        let stream = 2 * at + 1;
        let bytes = [request(stream, 0), frame(DATA, 0, stream, &[7; 16_384])].concat();
        pair.send(&bytes).err().map(|error| error.code())
    });
    assert_eq!(code, Some(Code::FLOW_CONTROL_ERROR));
}

#[test]
fn padding_and_what_nobody_reads_leave_the_window_of_the_connection_whole() {
    let config = Config {
        connection_window: 65_535,
        max_empty_frames: 1_000,
        ..Config::default()
    };
    let now = Instant::now();
    let mut pair = Pair {
        server: Connection::new(Arc::new(config), now),
        now,
    };
    pair.send_quietly(&settings(&[]));
    let padded = frame(DATA, PADDED, 1, &[&[200][..], &[0; 200]].concat());
    pair.send(&request(1, 0)).unwrap();
    let mut stream = 1;
    for _ in 0..1_000 {
        pair.send(&padded).unwrap();
        // A body whose stream the service has ended, while it was under way.
        stream += 2;
        pair.send(&request(stream, 0)).unwrap();
        pair.send(&frame(DATA, 0, stream, &[7; 100])).unwrap();
        pair.server
            .respond(StreamId(stream), StatusCode::OK, &HeaderMap::new(), true);
        pair.send_quietly(&frame(DATA, 0, stream, &[7; 100]));
        pair.send_quietly(&frame(DATA, END_STREAM, stream, &[7; 100]));
        pair.read();
    }
    assert_eq!(
        pair.server.receive_window + i64::from(pair.server.unannounced),
        65_535
    );
}

/// The least that a connection has is 65,535, however little was asked for.
#[test]
fn window_of_a_connection_opens_whatever_its_size() {
    for connection_window in [0, 1, 65_535, u32::MAX] {
        let now = Instant::now();
        let config = Config {
            connection_window,
            stream_window: u32::MAX,
            ..Config::default()
        };
        let mut pair = Pair {
            server: Connection::new(Arc::new(config), now),
            now,
        };
        pair.send_quietly(&settings(&[]));
        pair.send_quietly(&frame(SETTINGS, ACK, 0, &[]));
        pair.read();
        for stream in (1..40).step_by(2) {
            pair.send(&request(stream, 0)).unwrap();
            pair.send(&frame(DATA, END_STREAM, stream, &[7; 16_384]))
                .unwrap();
            pair.server.reset(StreamId(stream), Code::CANCEL);
        }
        let updates = pair.read().into_iter().filter_map(|(head, payload)| {
            (head.kind == WINDOW_UPDATE).then(|| (head.stream, number(&payload)))
        });
        let updates: Vec<(u32, u32)> = updates.collect();
        assert!(
            updates
                .iter()
                .all(|(stream, by)| *stream == 0 && *by > 30_000),
            "{updates:?}"
        );
        assert_eq!(updates.is_empty(), connection_window > 1_000_000);
    }
}

/// A proxy cannot know that the server has answered: frames of such calls cost the connection nothing, however many there
/// are.
#[test]
fn frames_of_calls_that_were_answered_are_ignored() {
    let mut pair = Pair::new();
    for at in 0..20_000 {
        let stream = 2 * at + 1;
        pair.send(&request(stream, 0)).unwrap();
        pair.server.respond(
            StreamId(stream),
            StatusCode::FORBIDDEN,
            &HeaderMap::new(),
            true,
        );
        pair.read();
        pair.send_quietly(&frame(DATA, 0, stream, b"late"));
        pair.send_quietly(&window_update(stream, 10));
    }
    for at in 0..20_000 {
        let stream = 2 * at + 1;
        match at % 3 {
            0 => pair.send_quietly(&frame(DATA, END_STREAM, stream, &[])),
            1 => pair.send_quietly(&frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                stream,
                &block(&[("sum", "1")]),
            )),
            _ => pair.send_quietly(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])),
        }
    }
    pair.open(40_001);
}

/// Answers a call whose request is not complete, and which is open.
fn answer_early(pair: &mut Pair, stream: u32) {
    pair.server
        .respond(StreamId(stream), StatusCode::OK, &HeaderMap::new(), true);
}

/// However old the stream that ends last is, those that were answered before it are not taken for faults.
#[test]
fn frames_of_calls_are_ignored_when_a_long_one_ends_behind_many() {
    let mut pair = Pair::new();
    pair.send(&request(1, 0)).unwrap();
    for stream in (3..=2_201).step_by(2) {
        pair.send(&request(stream, 0)).unwrap();
        answer_early(&mut pair, stream);
        pair.read();
    }
    answer_early(&mut pair, 1);
    for stream in (1..=2_201).step_by(2) {
        pair.send_quietly(&frame(DATA, 0, stream, b"late"));
    }
    pair.read();
    pair.open(2_203);
}

/// Calls that end in a drain change nothing for those that the peer began too late.
#[test]
fn frames_of_calls_that_came_too_late_are_ignored_when_others_end() {
    let mut pair = Pair::new();
    pair.send(&request(1, 0)).unwrap();
    for stream in (3..=2_201).step_by(2) {
        pair.send(&request(stream, 0)).unwrap();
        answer_early(&mut pair, stream);
        pair.read();
    }
    let open = pair.open(2_203);
    pair.server.end();
    let (_, end) = pair.read().pop().unwrap();
    pair.send_quietly(&frame(PING, ACK, 0, &end));
    pair.send_quietly(&request(2_205, 0));
    answer_early(&mut pair, 1);
    pair.send_quietly(&frame(DATA, 0, 2_205, b"late"));
    assert!(!pair.server.is_over());
    pair.server.finish(open, None);
    assert!(pair.server.is_over());
}

/// A peer that is told at once may not see the response.
#[test]
fn request_that_goes_on_behind_its_response_is_stopped_after_a_while() {
    let mut pair = Pair::new();
    let answer = |pair: &mut Pair, stream| {
        pair.send(&request(stream, 0)).unwrap();
        let headers = HeaderMap::new();
        pair.server
            .respond(StreamId(stream), StatusCode::FORBIDDEN, &headers, true);
    };
    for stream in [1, 3, 5] {
        answer(&mut pair, stream);
        assert_eq!(kinds(&pair.read()), [(HEADERS, stream)]);
    }
    // Those that the peer ends or resets itself are over.
    pair.send_quietly(&frame(DATA, END_STREAM, 3, b"the rest"));
    pair.send_quietly(&frame(RST_STREAM, 0, 5, &[0, 0, 0, 8]));
    let due = pair.server.timeout() - pair.now;
    pair.pass(due - Duration::from_millis(1));
    pair.server.on_timeout().unwrap();
    assert_eq!(pair.read(), []);
    pair.pass(Duration::from_millis(1));
    pair.server.on_timeout().unwrap();
    let stopped = pair.read();
    assert_eq!(kinds(&stopped), [(RST_STREAM, 1)]);
    assert_eq!(number(&stopped[0].1), Code::NO_ERROR.0);
    assert!(pair.server.timeout() - pair.now > due);

    // They are streams of the peer all the same, so that only half of those that it may have are left to it.
    let max = Config::default().max_concurrent_streams / 2;
    for at in 0..max {
        answer(&mut pair, 7 + 2 * at);
    }
    pair.send_quietly(&frame(DATA, END_STREAM, 11, &[]));
    pair.read();
    for (stream, stopped) in [
        (1_001, None),
        (1_003, Some(7)),
        (1_005, Some(9)),
        (1_007, Some(13)),
    ] {
        answer(&mut pair, stream);
        let expected = stopped.map(|stopped| (RST_STREAM, stopped));
        let expected: Vec<_> = [(HEADERS, stream)].into_iter().chain(expected).collect();
        assert_eq!(kinds(&pair.read()), expected);
    }
}

/// Some peers send all of a request before they look at the response.
#[test]
fn request_behind_its_response_has_a_window_for_a_mebibyte() {
    let mut pair = Pair::new();
    pair.send_quietly(&frame(SETTINGS, crate::frame::ACK, 0, &[]));
    pair.send(&request(1, 0)).unwrap();
    let piece = vec![0; 16_000];
    // Half of it comes before the response.
    let mut window = 256 << 10;
    for _ in 0..9 {
        pair.send(&frame(DATA, 0, 1, &piece)).unwrap();
        window -= piece.len();
    }
    pair.read();
    pair.server
        .respond(StreamId(1), StatusCode::FORBIDDEN, &HeaderMap::new(), true);
    let mut sent = 0;
    let code = loop {
        let mut reset = None;
        for (head, payload) in pair.read() {
            match head.kind {
                WINDOW_UPDATE if head.stream == 1 => window += number(&payload) as usize,
                RST_STREAM => reset = Some(number(&payload)),
                _ => {}
            }
        }
        if let Some(code) = reset {
            break Code(code);
        }
        assert!(window >= piece.len(), "it waits after {sent} bytes");
        pair.send_quietly(&frame(DATA, 0, 1, &piece));
        window -= piece.len();
        sent += piece.len();
    };
    assert_eq!(code, Code::NO_ERROR);
    assert!(
        (1 << 20..(1 << 20) + 2 * piece.len()).contains(&sent),
        "{sent}"
    );
    // What is on the way costs nothing.
    pair.send_quietly(&frame(DATA, END_STREAM, 1, &piece));
    assert_eq!(pair.read(), []);
}

/// Nothing is to be done for it any more, however the peer has ended it, nor for one that was forgotten.
#[test]
fn request_that_is_complete_has_no_time() {
    let mut pair = Pair::new();
    for stream in (1..200).step_by(2) {
        pair.send(&request(stream, 0)).unwrap();
        answer_early(&mut pair, stream);
    }
    pair.read();
    let due = pair.now + Duration::from_secs(5);
    assert_eq!(pair.server.timeout(), due);
    for (at, stream) in (1..200).step_by(2).enumerate() {
        assert_eq!(pair.server.timeout(), due);
        let end = match at % 3 {
            0 => frame(DATA, END_STREAM, stream, &[]),
            1 => frame(HEADERS, END_HEADERS | END_STREAM, stream, &[]),
            _ => frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        };
        pair.send_quietly(&end);
    }
    assert_eq!(
        pair.server.timeout(),
        pair.now + Config::default().keep_alive_interval
    );
    pair.pass(Duration::from_secs(5));
    pair.server.on_timeout().unwrap();
    assert_eq!(pair.read(), []);
}

/// Both sides have ended it (RFC 9113, section 5.1).
#[test]
fn window_of_a_request_that_is_complete_is_not_renewed() {
    let mut pair = Pair::new();
    pair.send(&request(1, 0)).unwrap();
    pair.server
        .respond(StreamId(1), StatusCode::OK, &HeaderMap::new(), true);
    pair.read();
    for _ in 0..3 {
        pair.send_quietly(&frame(DATA, 0, 1, &[7; 10_000]));
    }
    assert_eq!(pair.read(), []);
    pair.send_quietly(&frame(DATA, END_STREAM, 1, &[7; 10_000]));
    assert_eq!(pair.read(), []);
}

// ===== Responses =====

#[test]
fn nothing_is_sent_beyond_a_window_and_the_rest_follows_when_it_opens() {
    let mut pair = Pair::new();
    pair.send_quietly(&settings(&[(4, 10)]));
    pair.read();
    let stream = pair.open(1);
    assert_eq!(pair.server.room(stream), Room::Bytes(10));
    pair.server
        .send(stream, Bytes::from_static(b"0123456789abcdef"));
    assert_eq!(pair.server.room(stream), Room::Later);
    assert_eq!(pair.server.next_turn(), None);
    assert_eq!(pair.server.state_mut(stream), Some(&mut Sent(10)));
    let frames = pair.read();
    assert_eq!(frames[0].1, b"0123456789");
    let mut trailers = HeaderMap::new();
    trailers.insert("status", HeaderValue::from_static("8"));
    pair.server.finish(stream, Some(trailers));
    assert_eq!(pair.read(), []);
    pair.send_quietly(&window_update(1, 4));
    assert_eq!(pair.server.next_turn(), None);
    assert_eq!(pair.read()[0].1, b"abcd");
    // More than enough, by the settings.
    pair.send_quietly(&settings(&[(4, 1_000)]));
    assert_eq!(pair.server.next_turn(), None);
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(SETTINGS, 0), (DATA, 1), (HEADERS, 1)]);
    assert_eq!(frames[1].1, b"ef");
    assert!(frames[2].0.has(END_STREAM));
    assert_eq!(pair.server.streams(), 0);
}

#[test]
fn status_reaches_a_peer_that_does_not_read_its_stream() {
    let mut pair = Pair::new();
    pair.send_quietly(&settings(&[(4, 0)]));
    pair.read();
    let stream = pair.open(1);
    assert_eq!(pair.server.room(stream), Room::NoWindow);
    pair.server.finish(stream, Some(HeaderMap::new()));
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(HEADERS, 1)]);
    assert!(frames[0].0.has(END_STREAM));
}

#[test]
fn status_reaches_a_peer_whose_connection_has_no_window() {
    let mut pair = Pair::new();
    let (greedy, other) = (pair.open(1), pair.open(3));
    pair.server.send(greedy, Bytes::from(vec![7; 65_535]));
    while pair.server.next_turn().is_some() {}
    pair.read();
    // However often it is asked: it waits for its turn.
    for _ in 0..2 {
        assert_eq!(pair.server.room(other), Room::NoWindow);
    }
    pair.server.finish(other, Some(HeaderMap::new()));
    assert_eq!(kinds(&pair.read()), [(HEADERS, 3)]);
}

#[test]
fn window_that_settings_made_negative_has_to_be_filled_first() {
    let mut pair = Pair::new();
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from(vec![7; 60_000]));
    pair.read();
    pair.send_quietly(&settings(&[(4, 0)]));
    assert_eq!(pair.server.room(stream), Room::NoWindow);
    pair.send_quietly(&window_update(1, 60_000));
    assert_eq!(pair.server.next_turn(), None);
    pair.send_quietly(&window_update(1, 7));
    assert_eq!(pair.server.next_turn(), Some(stream));
    assert_eq!(pair.server.room(stream), Room::Bytes(7));
}

#[test]
fn windows_may_be_as_large_as_can_be_and_no_larger() {
    const LARGEST: u32 = (1 << 31) - 1;
    let mut pair = Pair::new();
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from(vec![7; 65_535]));
    pair.read();
    for window in [0, LARGEST, 0, LARGEST] {
        pair.send_quietly(&settings(&[(4, window)]));
    }
    pair.send_quietly(&window_update(0, LARGEST));
    pair.send_quietly(&window_update(1, 65_535));
    assert_eq!(pair.server.room(stream), Room::Bytes(LARGEST as usize));
    pair.read();
    // Each is full.
    let mut other = Pair::new();
    other.open(1);
    other.send_quietly(&settings(&[(4, LARGEST)]));
    other.send_quietly(&window_update(0, LARGEST - 65_535));
    other.read();
    let seen = other.send(&window_update(1, 1)).unwrap();
    assert_eq!(seen, [Seen::Reset(1, Code::FLOW_CONTROL_ERROR, false)]);
    other.read();
    assert_eq!(
        other.send_breach(&window_update(0, 1)),
        Code::FLOW_CONTROL_ERROR
    );
    // Settings that would make one larger end the connection.
    pair.send_quietly(&settings(&[(4, LARGEST - 1)]));
    pair.send_quietly(&window_update(1, 1));
    assert_eq!(
        pair.send_breach(&settings(&[(4, LARGEST)])),
        Code::FLOW_CONTROL_ERROR
    );
}

#[test]
fn any_limits_let_data_through() {
    for (max_output, max_header_list_size) in [(0, 1_000), (1, 1_000), (usize::MAX, u32::MAX)] {
        let mut pair = Pair::with(Config {
            max_output,
            max_header_list_size,
            ..Config::default()
        });
        let stream = pair.open(1);
        assert!(pair.server.wants_input());
        assert_eq!(pair.server.room(stream), Room::Bytes(65_535));
        pair.server.send(stream, Bytes::from(vec![7; 40_000]));
        let mut received = 0;
        while received < 40_000 {
            let frames = pair.read();
            assert!(!frames.is_empty());
            received += frames.iter().map(|(head, _)| head.length).sum::<usize>();
            pair.server.next_turn();
        }
    }
}

#[test]
fn chunks_of_a_kibibyte_are_not_copied() {
    let mut pair = Pair::new();
    let stream = pair.open(1);
    let chunk = Bytes::from(vec![7; 2_000]);
    pair.server.send(stream, chunk.clone());
    let mut slices = [IoSlice::new(&[]); 4];
    let count = pair.server.output(&mut slices);
    assert_eq!(count, 2);
    assert_eq!(slices[1].as_ptr(), chunk.as_ptr());
}

#[test]
fn streams_that_share_a_window_have_turns() {
    let mut pair = Pair::new();
    let streams = [1, 3, 5, 7].map(|id| pair.open(id));
    let mut sent = [0; 4];
    let mut send = |server: &mut Connection<Sent>, at: usize| {
        while matches!(server.room(streams[at]), Room::Bytes(_)) {
            server.send(streams[at], Bytes::from(vec![7; 10_000]));
            sent[at] += 10_000;
        }
    };
    for at in 0..4 {
        send(&mut pair.server, at);
    }
    for _ in 0..400 {
        pair.read();
        pair.send_quietly(&window_update(0, 10_000));
        for id in [1, 3, 5, 7] {
            pair.send_quietly(&window_update(id, 10_000));
        }
        while let Some(stream) = pair.server.next_turn() {
            let at = streams.iter().position(|known| *known == stream).unwrap();
            send(&mut pair.server, at);
        }
    }
    let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
    assert!(most - least <= 140_000, "{sent:?}");
}

#[test]
fn header_block_longer_than_a_frame_goes_in_several() {
    let mut pair = Pair::new();
    let stream = pair.open(1);
    let mut trailers = HeaderMap::new();
    for at in 0..40 {
        let name = http::HeaderName::try_from(format!("name-{at}")).unwrap();
        trailers.insert(name, HeaderValue::try_from("x".repeat(1_000)).unwrap());
    }
    pair.server.finish(stream, Some(trailers.clone()));
    let frames = pair.read();
    assert_eq!(
        kinds(&frames),
        [(HEADERS, 1), (CONTINUATION, 1), (CONTINUATION, 1)]
    );
    assert!(frames[0].0.has(END_STREAM) && !frames[0].0.has(END_HEADERS));
    assert!(frames[2].0.has(END_HEADERS) && !frames[1].0.has(END_HEADERS));
    let block: Vec<u8> = frames
        .into_iter()
        .flat_map(|(_, payload)| payload)
        .collect();
    let mut count = 0;
    hpack::Decoder::new()
        .decode(&block, |_| {
            count += 1;
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(count, trailers.len());
}

/// A message with them is malformed (RFC 9113, section 8.2.2), and services that also speak HTTP/1.1 set them.
#[test]
fn fields_of_a_connection_are_not_sent() {
    let mut pair = Pair::new();
    pair.send(&request(1, END_STREAM)).unwrap();
    let mut fields = HeaderMap::new();
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "x",
    ] {
        fields.insert(name, HeaderValue::from_static("v"));
    }
    pair.server
        .respond(StreamId(1), StatusCode::OK, &fields, false);
    pair.server.finish(StreamId(1), Some(fields));
    let frames = pair.read();
    let x = ("x".to_owned(), "v".to_owned());
    let status = (":status".to_owned(), "200".to_owned());
    assert_eq!(fields_of(&frames[0].1), [status, x.clone()]);
    assert_eq!(fields_of(&frames[1].1), [x]);
}

#[test]
fn smaller_table_of_the_peer_is_acknowledged_once() {
    let mut pair = Pair::new();
    pair.send_quietly(&settings(&[(1, 100), (1, 4_096)]));
    pair.read();
    pair.send(&[request(1, END_STREAM), request(3, END_STREAM)].concat())
        .unwrap();
    for stream in [1, 3] {
        pair.server
            .respond(StreamId(stream), StatusCode::OK, &HeaderMap::new(), false);
    }
    let frames = pair.read();
    assert_eq!(
        (&*frames[0].1, &*frames[1].1),
        (&[0x20, 0x88][..], &[0x88][..])
    );
}

// ===== Budgets =====

#[test]
fn floods_end_the_connection_and_the_same_over_hours_does_not() {
    let config = Config {
        max_faults: 100,
        max_cancellations: 100,
        max_idle_frames: 100,
        max_empty_frames: 100,
        ..Config::default()
    };
    let cancelled = |stream| {
        [
            request(stream, END_STREAM),
            frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        ]
        .concat()
    };
    let faulty = |stream| [request(stream, 0), window_update(stream, 0)].concat();
    let refused = |stream| {
        frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream,
            &block(&REQUEST[1..]),
        )
    };
    type Flood<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let floods: [(&str, Flood<'_>); 10] = [
        ("rapid resets", &cancelled),
        ("resets that it is made to send", &faulty),
        ("requests that are malformed", &refused),
        ("settings", &|_| settings(&[(4, 70_000)])),
        ("pings", &|_| frame(PING, 0, 0, &[0; 8])),
        ("priorities", &|_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 0])),
        ("unknown frames", &|_| frame(0x99, 0, 0, &[])),
        ("trailers of a call that is over", &|stream| match stream {
            1 => faulty(1),
            _ => frame(HEADERS, END_HEADERS, 1, &block(&[("a", "b")])),
        }),
        ("empty DATA", &|stream| match stream {
            1 => request(1, 0),
            _ => frame(DATA, 0, 1, &[]),
        }),
        ("DATA that is all padding", &|stream| match stream {
            1 => request(1, 0),
            _ => frame(DATA, PADDED, 1, &[2, 0, 0]),
        }),
    ];
    for (flood, bytes) in floods {
        let mut pair = Pair::with(config.clone());
        let ended = (0..200).find_map(|at| pair.send(&bytes(2 * at + 1)).err());
        assert_eq!(
            ended.map(|error| error.code()),
            Some(Code::ENHANCE_YOUR_CALM),
            "{flood}"
        );
        let mut pair = Pair::with(config.clone());
        for at in 0..10_000 {
            pair.send(&bytes(2 * at + 1))
                .unwrap_or_else(|error| panic!("{flood}: {error}"));
            pair.read();
            pair.pass(Duration::from_millis(120));
        }
    }
}

/// Each of them is decoded, and costs no call.
#[test]
fn flood_of_requests_that_nobody_takes_ends_the_connection() {
    let config = Config {
        max_header_list_size: 400,
        max_cancellations: 100,
        max_idle_frames: 100,
        ..Config::default()
    };
    let mut fields = REQUEST.to_vec();
    let large = "x".repeat(120);
    fields.extend([("a", &*large), ("b", &*large)]);
    let large = block(&fields);
    let mut pair = Pair::with(config.clone());
    let ended = (0..200).find_map(|at| {
        let id = 2 * at + 1;
        let ended = pair.send(&frame(HEADERS, END_HEADERS | END_STREAM, id, &large));
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        pair.server
            .respond(StreamId(id), status, &HeaderMap::new(), true);
        ended.err()
    });
    assert_eq!(
        ended.map(|error| error.code()),
        Some(Code::ENHANCE_YOUR_CALM)
    );
    // A list counts for more when it is large: 15 fields of 4 KiB.
    let mut pair = Pair::with(Config::default());
    pair.send(&[request(1, 0), window_update(1, 0)].concat())
        .unwrap();
    let field = [&[0x40, 0x7f, 0xe1, 0x1e][..], &[b'a'; 4_064], &[0]].concat();
    pair.send_quietly(&frame(HEADERS, END_HEADERS, 1, &field));
    let large = frame(HEADERS, END_HEADERS, 1, &[0xbe; 15]);
    let sent = (0..50_000).find(|_| pair.send(&large).is_err());
    assert_eq!(sent, Some(49_998 / 16));
    // Of calls that begin after the end the peer knows that they are not served.
    let mut pair = Pair::with(config.clone());
    pair.server.end();
    pair.pass(config.keep_alive_timeout);
    pair.server.on_timeout().unwrap();
    let ended = (0..200).find_map(|at| pair.send(&request(2 * at + 1, END_STREAM)).err());
    assert_eq!(
        ended.map(|error| error.code()),
        Some(Code::ENHANCE_YOUR_CALM)
    );
}

/// Each of them may give every stream its turn, for 15 bytes of the peer.
#[test]
fn settings_that_change_many_windows_count_for_more() {
    let mut counts = Vec::new();
    for streams in [0, 200] {
        let mut pair = Pair::with(Config {
            max_idle_frames: 1_000,
            ..Config::default()
        });
        for at in 0..streams {
            pair.open(2 * at + 1);
        }
        let ended = (0..).find(|at| {
            let changed = pair.send(&settings(&[(4, 70_000 + at % 2)]));
            pair.read();
            changed.is_err()
        });
        counts.push(ended.unwrap());
    }
    assert!(
        counts[0] > 900 && (10..100).contains(&counts[1]),
        "{counts:?}"
    );
}

#[test]
fn peer_that_does_not_read_is_not_read_either() {
    let mut pair = Pair::new();
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(100);
    let mut sent = 0;
    while pair.server.wants_input() {
        pair.send_quietly(&pings);
        sent += 100;
    }
    assert!(sent * 17 < 140_000, "{sent}");
    assert!(pair.server.output_len() < 140_000);
    pair.read();
    assert!(pair.server.wants_input());
}

// ===== Times and ends =====

#[test]
fn silent_peer_is_asked_and_then_given_up() {
    let mut pair = Pair::new();
    let config = Config::default();
    assert_eq!(pair.server.timeout(), pair.now + config.keep_alive_interval);
    pair.pass(config.keep_alive_interval);
    pair.server.on_timeout().unwrap();
    assert_eq!(kinds(&pair.read()), [(PING, 0)]);
    // Anything that it sends says that it is there.
    pair.pass(config.keep_alive_timeout / 2);
    pair.send_quietly(&window_update(0, 1));
    assert_eq!(pair.server.timeout(), pair.now + config.keep_alive_interval);
    pair.pass(config.keep_alive_interval);
    pair.server.on_timeout().unwrap();
    assert_eq!(pair.server.timeout(), pair.now + config.keep_alive_timeout);
    pair.pass(config.keep_alive_timeout);
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::KeepAlive));
}

/// One byte now and then would hold what has come for as long as the peer likes.
#[test]
fn peer_that_does_not_complete_a_header_block_is_given_up() {
    let second = Duration::from_secs(1);
    let whole = request(1, 0);
    let (begin, rest) = whole.split_at(HEAD_BYTES + 1);
    let blocks: [(&[u8], Vec<u8>); 3] = [
        // Not the HEADERS,
        (begin, rest[..12].to_vec()),
        // nor those that follow,
        (&frame(HEADERS, 0, 1, &[]), frame(CONTINUATION, 0, 1, &[])),
        // nor a frame that nobody knows.
        (&frame(0x99, 0, 0, &[0; 100])[..50], vec![0; 12]),
    ];
    for (begin, trickle) in blocks {
        let mut pair = Pair::new();
        pair.pass(second);
        pair.send_quietly(begin);
        let due = pair.now + 10 * second;
        for piece in trickle.chunks(trickle.len().div_ceil(9)).cycle().take(9) {
            pair.pass(second);
            assert_eq!(pair.server.timeout(), due);
            pair.server.on_timeout().unwrap();
            pair.send_quietly(piece);
        }
        pair.pass(second);
        assert_eq!(pair.server.on_timeout(), Err(TimedOut::Headers));
    }
}

#[test]
fn slow_body_and_busy_peer_are_not_given_up() {
    // A byte a second of a DATA frame whose head came slowly, too.
    let mut pair = Pair::new();
    pair.send(&request(1, 0)).unwrap();
    for byte in frame(DATA, 0, 1, &[7; 100]) {
        pair.send(&[byte]).unwrap();
        pair.pass(Duration::from_secs(1));
        pair.server.on_timeout().unwrap();
    }
    // Each piece ends in the middle of a frame, and none of these has been there for long.
    let mut pair = Pair::new();
    let bytes = frame(PING, 0, 0, &[0; 8]).repeat(100);
    for piece in bytes.chunks(50) {
        pair.send_quietly(piece);
        pair.read();
        pair.pass(Duration::from_secs(6));
        pair.server.on_timeout().unwrap();
    }
}

/// No more room than a frame and a header block may have is there for what has come of them.
#[test]
fn frames_in_part_hold_no_more_than_a_frame_and_a_header_block() {
    let mut pair = Pair::new();
    let bytes = [
        frame(HEADERS, 0, 1, &[7; 16_384]),
        frame(CONTINUATION, 0, 1, &[7; 16_000]),
        frame(CONTINUATION, 0, 1, &[7; 16_384]),
    ]
    .concat();
    for piece in bytes[..bytes.len() - 1].chunks(1_000) {
        pair.send_quietly(piece);
        let input = &pair.server.input;
        assert!(input.partial.capacity() <= HEAD_BYTES + 16_384);
        let block = input
            .block
            .as_ref()
            .map_or(0, |block| block.bytes.capacity());
        assert!(block <= 32 << 10, "{block}");
    }
}

/// The question waits behind what it has not read: it is not late with the answer to what it has not got.
#[test]
fn slow_peer_has_time_to_answer_from_when_it_is_asked() {
    let mut pair = Pair::new();
    let config = Config::default();
    let almost = config.keep_alive_timeout - Duration::from_secs(1);
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from(vec![7; 50_000]));
    pair.server.advance(0);
    pair.pass(config.keep_alive_interval);
    pair.server.on_timeout().unwrap();
    while pair.server.output_len() > 10_000 {
        pair.pass(almost);
        pair.server.on_timeout().unwrap();
        pair.server.advance(10_000);
        assert_eq!(pair.server.timeout(), pair.now + config.keep_alive_timeout);
    }
    // The rest leaves with the question. What follows it says nothing of the peer: it may be in a buffer of the kernel.
    pair.pass(almost);
    pair.server.advance(pair.server.output_len());
    pair.pass(almost);
    pair.server.on_timeout().unwrap();
    pair.server.send(stream, Bytes::from_static(b"more"));
    pair.read();
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::KeepAlive));
}

/// The kernel holds the question behind what the peer has not read. Only what that reads makes room where there was none.
#[test]
fn peer_that_makes_room_in_a_full_socket_is_there() {
    let mut pair = Pair::new();
    let config = Config::default();
    let almost = config.keep_alive_timeout - Duration::from_secs(1);
    let stream = pair.open(1);
    pair.pass(config.keep_alive_interval);
    pair.server.on_timeout().unwrap();
    pair.read();
    pair.server.send(stream, Bytes::from(vec![7; 50_000]));
    for _ in 0..4 {
        pair.server.advance(10_000);
        pair.server.advance(0);
        pair.pass(almost);
        pair.server.on_timeout().unwrap();
    }
    pair.pass(Duration::from_secs(1));
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::KeepAlive));
}

/// A connection that has all that may wait for the socket, and a frame in part.
fn full_of_answers() -> Pair {
    let mut pair = Pair::new();
    let ping = frame(PING, 0, 0, &[0; 8]);
    let pings = (128 << 10) / ping.len() + 1;
    pair.send_quietly(&ping.repeat(pings));
    pair.server.advance(0);
    pair.send_quietly(&ping[..12]);
    assert!(!pair.server.wants_input());
    pair
}

/// The rest of the frame, and the answer to the question, may lie in the socket.
#[test]
fn peer_of_which_nothing_is_read_is_not_given_up_for_what_it_may_have_sent() {
    let mut pair = full_of_answers();
    let config = Config::default();
    pair.pass(config.keep_alive_interval);
    pair.server.on_timeout().unwrap();
    assert_eq!(
        pair.server.timeout(),
        pair.now + config.write_timeout - config.keep_alive_interval
    );
    pair.pass(Duration::from_secs(9));
    pair.server.on_timeout().unwrap();
    // Once there is room, it has its time for both.
    pair.read();
    assert!(pair.server.wants_input());
    pair.pass(Duration::from_secs(9));
    pair.server.on_timeout().unwrap();
    pair.send_quietly(&frame(PING, 0, 0, &[0; 8])[12..]);
    pair.pass(Duration::from_secs(9));
    pair.server.on_timeout().unwrap();
}

#[test]
fn peer_of_which_nothing_is_read_has_to_read_in_time() {
    let mut pair = full_of_answers();
    pair.pass(Config::default().write_timeout);
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::Write));
}

/// A transport that takes everything, as TLS does, says what it could not pass on.
#[test]
fn transport_that_is_not_flushed_counts_as_output_that_waits() {
    let mut pair = Pair::new();
    let config = Config::default();
    let almost = config.keep_alive_timeout - Duration::from_secs(1);
    let stream = pair.open(1);
    pair.pass(config.keep_alive_interval);
    pair.server.on_timeout().unwrap();
    pair.server.send(stream, Bytes::from(vec![7; 50_000]));
    pair.read();
    pair.server.set_unflushed(true);
    for _ in 0..3 {
        pair.pass(almost);
        pair.server.on_timeout().unwrap();
        // The peer has read what was there.
        pair.server.set_unflushed(false);
        pair.server.set_unflushed(true);
    }
    pair.pass(config.keep_alive_timeout);
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::KeepAlive));

    let mut pair = Pair::new();
    pair.server.set_unflushed(true);
    for _ in 0..2 {
        pair.pass(config.write_timeout / 2);
        pair.send_quietly(&window_update(0, 1));
        pair.server.set_unflushed(true);
    }
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::Write));
    pair.server.set_unflushed(false);
    pair.server.on_timeout().unwrap();
}

/// A peer opens windows as it reads, also of streams that have ended: a proxy has many of these.
#[test]
fn windows_of_streams_that_have_ended_are_ignored() {
    let mut pair = Pair::new();
    let stream = pair.open(1);
    pair.server.finish(stream, None);
    pair.read();
    for _ in 0..=Config::default().max_idle_frames {
        pair.send_quietly(&window_update(1, 1));
    }
    assert_eq!(pair.read(), []);
}

#[test]
fn peer_that_takes_nothing_of_the_question_is_given_up() {
    let mut pair = Pair::new();
    let config = Config::default();
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from(vec![7; 50_000]));
    pair.server.advance(1);
    pair.pass(config.keep_alive_interval);
    pair.server.on_timeout().unwrap();
    pair.pass(config.keep_alive_timeout / 2);
    pair.server.advance(1);
    pair.pass(config.keep_alive_timeout / 2);
    pair.server.advance(0);
    pair.server.on_timeout().unwrap();
    pair.pass(config.keep_alive_timeout / 2);
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::KeepAlive));
}

#[test]
fn peer_that_takes_nothing_is_given_up() {
    let mut pair = Pair::new();
    let config = Config::default();
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from(vec![7; 10_000]));
    pair.server.advance(1);
    for _ in 0..10 {
        pair.pass(config.write_timeout - Duration::from_secs(1));
        pair.send_quietly(&window_update(0, 1));
        pair.server.on_timeout().unwrap();
        pair.server.advance(1);
    }
    pair.pass(config.write_timeout / 2);
    pair.send_quietly(&window_update(0, 1));
    pair.server.advance(0);
    pair.pass(config.write_timeout / 2);
    assert_eq!(pair.server.on_timeout(), Err(TimedOut::Write));
}

#[test]
fn end_in_good_order_serves_what_the_peer_began_before_it_knew() {
    let mut pair = Pair::new();
    let stream = pair.open(1);
    pair.server.end();
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(GOAWAY, 0), (PING, 0)]);
    assert_eq!(number(&frames[0].1[..4]), (1 << 31) - 1);
    // Under way.
    let other = pair.open(3);
    pair.send_quietly(&frame(PING, ACK, 0, &frames[1].1));
    let frames = pair.read();
    assert_eq!(kinds(&frames), [(GOAWAY, 0)]);
    assert_eq!(number(&frames[0].1[..4]), 3);
    // A peer that does not heed it.
    pair.send_quietly(&[request(5, 0), frame(DATA, 0, 5, b"x"), window_update(5, 1)].concat());
    assert_eq!(pair.read(), []);
    pair.server.finish(stream, None);
    assert!(!pair.server.is_over());
    pair.server.finish(other, None);
    assert!(pair.server.is_over());
}

/// The peer may have tried them elsewhere (RFC 9113, section 6.8).
#[test]
fn last_stream_of_the_end_never_grows() {
    let mut pair = Pair::new();
    pair.open(1);
    pair.server.end();
    let frames = pair.read();
    pair.send_quietly(&frame(PING, ACK, 0, &frames[1].1));
    assert_eq!(number(&pair.read()[0].1[..4]), 1);
    pair.send_quietly(&request(3, END_STREAM));
    pair.send(&frame(PING, 0, 1, &[0; 8])).unwrap_err();
    let (head, payload) = pair.read().pop().unwrap();
    assert_eq!((head.kind, number(&payload[..4])), (GOAWAY, 1));
}

#[test]
fn times_without_end_are_never_over() {
    let mut pair = Pair::with(Config {
        keep_alive_interval: Duration::MAX,
        keep_alive_timeout: Duration::MAX,
        write_timeout: Duration::MAX,
        ..Config::default()
    });
    let stream = pair.open(1);
    pair.server.send(stream, Bytes::from_static(b"x"));
    pair.server.advance(0);
    pair.server.end();
    pair.pass(Duration::from_secs(365 * 24 * 60 * 60));
    pair.server.on_timeout().unwrap();
    assert!(pair.server.timeout() > pair.now);
}

#[test]
fn end_does_not_wait_for_a_peer_that_does_not_answer() {
    let mut pair = Pair::new();
    pair.server.end();
    pair.read();
    pair.pass(Config::default().keep_alive_timeout);
    pair.server.on_timeout().unwrap();
    assert_eq!(kinds(&pair.read()), [(GOAWAY, 0)]);
    assert!(pair.server.is_over());
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

//! The peer of a connection: what it has sent, what it was sent, and what the rules say of both.

use std::collections::{BTreeMap, BTreeSet};

use loona_hpack::Decoder;

use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Head, LARGEST_WINDOW,
    MAX_PAYLOAD, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, number,
};

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const INITIAL_WINDOW: u16 = 4;

/// Size of the table for compression of which nobody has said anything.
const DEFAULT_TABLE: u32 = 4_096;

/// Size of a window of which nobody has said anything.
const DEFAULT_WINDOW: i64 = 65_535;

/// A peer. It notes whatever the server takes of its bytes, and panics if what it is sent breaks a rule.
pub(super) struct Peer {
    /// A frame that it has sent in part.
    partial: Vec<u8>,
    /// Bytes that are still to come of a DATA frame.
    pub(super) left_of_data: usize,
    /// Whether it has begun a header block that goes on in another frame.
    is_in_block: bool,
    /// Bytes that the server may send on all streams, and on a new one.
    pub(super) window: i64,
    initial_window: i64,
    /// Bytes that it may send on all streams.
    pub(super) may_send: i64,
    /// SETTINGS and PINGs that the server has to acknowledge.
    pub(super) unacknowledged: usize,
    /// PINGs of the server that it has yet to answer.
    pub(super) asked: Vec<[u8; 8]>,
    pub(super) streams: BTreeMap<u32, Stream>,
    /// Requests that the server did not reset. They may go on behind a response that is complete.
    requests: BTreeMap<u32, Request>,
    /// A frame that it was sent in part, and a header block.
    output: Vec<u8>,
    block: Option<(u32, bool, Vec<u8>)>,
    decoder: Decoder<'static>,
    /// Size of its table, if it is smaller than the server knew when the last block came.
    table: Option<u32>,
    resets: BTreeSet<u32>,
    /// The last stream and the code of the last GOAWAY.
    pub(super) goaway: Option<(u32, u32)>,
}

/// A stream whose response is not complete.
#[derive(Debug)]
pub(super) struct Stream {
    /// Bytes that the server may send.
    pub(super) window: i64,
    /// Bytes that the server has sent.
    pub(super) arrived: usize,
    has_response: bool,
}

/// Bytes that the peer has sent on a stream, and those whose window it was given back.
#[derive(Debug, Default)]
struct Request {
    sent: i64,
    given_back: i64,
}

impl Peer {
    pub(super) fn new() -> Self {
        Self {
            partial: Vec::new(),
            left_of_data: 0,
            is_in_block: false,
            window: DEFAULT_WINDOW,
            initial_window: DEFAULT_WINDOW,
            may_send: DEFAULT_WINDOW,
            unacknowledged: 0,
            asked: Vec::new(),
            streams: BTreeMap::new(),
            requests: BTreeMap::new(),
            output: Vec::new(),
            block: None,
            decoder: Decoder::new(),
            table: None,
            resets: BTreeSet::new(),
            goaway: None,
        }
    }

    /// Whether it may begin another frame of any kind.
    pub(super) const fn is_between_frames(&self) -> bool {
        self.partial.is_empty() && self.left_of_data == 0 && !self.is_in_block
    }

    /// Notes bytes that the server has taken.
    pub(super) fn sent(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left_of_data > 0 {
                let length = self.left_of_data.min(bytes.len());
                self.left_of_data -= length;
                bytes = &bytes[length..];
                continue;
            }
            let needed = match Head::split(&self.partial) {
                Some((head, payload)) => head.length - payload.len(),
                None => 9 - self.partial.len(),
            };
            let (taken, behind) = bytes.split_at(needed.min(bytes.len()));
            bytes = behind;
            self.partial.extend_from_slice(taken);
            let Some((head, payload)) = Head::split(&self.partial) else {
                continue;
            };
            // The payload of DATA is not collected.
            if head.kind != DATA && payload.len() < head.length {
                continue;
            }
            let payload = payload.to_vec();
            self.partial.clear();
            self.sent_frame(head, &payload);
        }
    }

    fn sent_frame(&mut self, head: Head, payload: &[u8]) {
        match head.kind {
            DATA => {
                self.left_of_data = head.length;
                let length = head.length as i64;
                self.may_send -= length;
                if let Some(request) = self.requests.get_mut(&head.stream) {
                    request.sent += length;
                }
            }
            HEADERS | CONTINUATION => self.is_in_block = !head.has(END_HEADERS),
            SETTINGS if !head.has(ACK) => {
                self.unacknowledged += 1;
                for entry in payload.as_chunks::<6>().0 {
                    let [a, b, value @ ..] = *entry;
                    let value = u32::from_be_bytes(value);
                    match u16::from_be_bytes([a, b]) {
                        INITIAL_WINDOW => {
                            let difference = i64::from(value) - self.initial_window;
                            self.initial_window += difference;
                            for stream in self.streams.values_mut() {
                                stream.window += difference;
                            }
                        }
                        HEADER_TABLE_SIZE if value < DEFAULT_TABLE => {
                            let before = self.table.unwrap_or(DEFAULT_TABLE);
                            self.table = Some(before.min(value));
                        }
                        _ => {}
                    }
                }
            }
            PING if !head.has(ACK) => self.unacknowledged += 1,
            WINDOW_UPDATE if payload.len() == 4 => {
                let increment = i64::from(number(payload) & 0x7fff_ffff);
                if head.stream == 0 {
                    self.window += increment;
                } else if let Some(stream) = self.streams.get_mut(&head.stream) {
                    stream.window += increment;
                }
            }
            _ => {}
        }
    }

    /// Notes that the server has taken a request.
    pub(super) fn began(&mut self, id: u32) {
        let stream = Stream {
            window: self.initial_window,
            arrived: 0,
            has_response: false,
        };
        let before = self.streams.insert(id, stream);
        assert!(before.is_none(), "stream {id} began twice");
        self.requests.insert(id, Request::default());
    }

    /// Notes bytes that are sent to it.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
        let output = std::mem::take(&mut self.output);
        let mut rest = &*output;
        while let Some((head, behind)) = Head::split(rest) {
            assert!(head.length <= MAX_PAYLOAD, "{head:?}");
            let Some((payload, behind)) = behind.split_at_checked(head.length) else {
                break;
            };
            rest = behind;
            self.receive_frame(head, payload);
        }
        self.output = rest.to_vec();
    }

    fn receive_frame(&mut self, head: Head, payload: &[u8]) {
        assert!(
            self.block.is_none() || head.kind == CONTINUATION,
            "a header block was interrupted by {head:?}"
        );
        assert!(!self.has_failed(), "{head:?} behind the end");
        let ends = head.has(END_STREAM);
        match head.kind {
            DATA => self.receive_data(head),
            HEADERS => self.block = Some((head.stream, ends, payload.to_vec())),
            CONTINUATION => {
                let (stream, _, block) = self.block.as_mut().expect("a block goes on");
                assert_eq!(*stream, head.stream);
                block.extend_from_slice(payload);
            }
            RST_STREAM => {
                assert!(self.resets.insert(head.stream), "{head:?} came twice");
                self.streams.remove(&head.stream);
                self.requests.remove(&head.stream);
            }
            SETTINGS | PING if head.has(ACK) => {
                let left = self.unacknowledged.checked_sub(1);
                self.unacknowledged = left.expect("there is something to acknowledge");
            }
            SETTINGS => assert_eq!(head.length % 6, 0),
            PING => self.asked.push(payload.try_into().expect("of 8 bytes")),
            GOAWAY => {
                let (last, code) = (number(&payload[..4]), number(&payload[4..8]));
                let before = self.goaway.replace((last, code));
                assert!(before.is_none_or(|(before, _)| last <= before));
            }
            WINDOW_UPDATE => self.receive_window_update(head.stream, number(payload)),
            _ => panic!("{head:?}"),
        }
        if matches!(head.kind, HEADERS | CONTINUATION)
            && head.has(END_HEADERS)
            && let Some((stream, ends, block)) = self.block.take()
        {
            self.receive_block(stream, ends, &block);
        }
    }

    fn receive_data(&mut self, head: Head) {
        let stream = self.streams.get_mut(&head.stream);
        let stream = stream.unwrap_or_else(|| panic!("{head:?} of no stream"));
        assert!(stream.has_response, "{head:?} without a response");
        let length = head.length as i64;
        assert!(
            length == 0 || length <= stream.window && length <= self.window,
            "{head:?} beyond the windows: {} and {}",
            stream.window,
            self.window
        );
        stream.arrived += head.length;
        stream.window -= length;
        self.window -= length;
        if head.has(END_STREAM) {
            self.streams.remove(&head.stream);
        }
    }

    fn receive_block(&mut self, id: u32, ends: bool, block: &[u8]) {
        if let Some(size) = self.table.take() {
            // RFC 7541, section 4.2.
            let first = *block.first().expect("a change of the table's size");
            assert!((0x20..=0x3e).contains(&first) && u32::from(first % 32) <= size);
        }
        let fields = self.decoder.decode(block).expect("a header block");
        let stream = self.streams.get_mut(&id).expect("an open stream");
        let has_status = fields.first().is_some_and(|(name, _)| name == b":status");
        assert_eq!(has_status, !stream.has_response, "of stream {id}");
        assert!(has_status || ends, "trailers that do not end stream {id}");
        stream.has_response = true;
        if ends {
            self.streams.remove(&id);
        }
    }

    fn receive_window_update(&mut self, id: u32, increment: u32) {
        let increment = i64::from(increment);
        assert!((1..=LARGEST_WINDOW).contains(&increment), "{increment}");
        if id == 0 {
            self.may_send += increment;
            return;
        }
        let request = self.requests.get_mut(&id).expect("a request");
        request.given_back += increment;
        assert!(
            request.given_back <= request.sent,
            "{request:?} of stream {id} was given back more than it took"
        );
    }

    /// Whether it has sent no more than it may, on each stream whose response is not complete. Its window is what everybody
    /// may assume, or what the settings say.
    pub(super) fn keeps_windows(&self, window: u32) -> bool {
        let window = i64::from(window).max(DEFAULT_WINDOW);
        self.streams.keys().all(|id| {
            let request = &self.requests[id];
            request.sent - request.given_back <= window
        })
    }

    /// Whether it was told that the connection ends for its fault.
    pub(super) fn has_failed(&self) -> bool {
        self.goaway.is_some_and(|(_, code)| code != 0)
    }
}

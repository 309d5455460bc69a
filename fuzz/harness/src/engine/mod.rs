//! Any bytes of a peer into the engine without I/O, and a server that reads, answers, writes and waits in any order.

mod peer;
mod pieces;

use std::{
    cell::Cell,
    collections::BTreeMap,
    io::IoSlice,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use tidegate_http2::{Code, Config, Connection, Error, Event, Room, StreamId, StreamState};

use self::peer::{HEADER_TABLE_SIZE, INITIAL_WINDOW, Peer};
use crate::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, HEADERS, LARGEST_WINDOW, MAX_PAYLOAD, PING, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, field, frame,
};

/// Bytes of a peer that one input may make: some acts repeat them.
const MOST_RECEIVED: usize = 1 << 20;

/// Bytes that may wait for the socket: with `max_output` the answers of the engine, and of each of at most 16 streams a header
/// block of 40 KiB, a chunk and as many trailers.
const MOST_OUTPUT: usize = (64 << 10) + (64 << 10) + 16 * (100 << 10) + (16 << 10);

/// Bytes of a connection's debug output when nothing waits for the socket. Whatever it holds is in there: the most that it may
/// hold is a frame that has come in part, a header block, and the table for compression.
const MOST_HELD: usize = 5 * ((16 << 10) + (32 << 10) + (8 << 10)) + (64 << 10);

/// State of a stream, as the engine keeps it.
#[derive(Debug)]
struct Kept {
    sent: Rc<Cell<usize>>,
    /// Counts those that there are.
    _alive: Rc<()>,
}

impl StreamState for Kept {
    fn sent(&mut self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes);
    }
}

/// A call, as the server has it.
struct Call {
    stream: StreamId,
    has_response: bool,
    /// Bytes that are to be sent, and those that the engine was given.
    left: usize,
    given: usize,
    /// Whether nothing more comes behind those, and whether with trailers.
    end: Option<bool>,
    is_finished: bool,
    sent: Rc<Cell<usize>>,
    has_request: bool,
    /// Bytes of the request that were not released.
    unread: usize,
}

/// One connection, its server and its peer.
struct Run<'a> {
    /// The front is sent by the peer, and the back says what happens.
    bytes: &'a [u8],
    http2: Connection<Kept>,
    config: Arc<Config>,
    now: Instant,
    peer: Peer,
    calls: BTreeMap<u32, Call>,
    alive: Rc<()>,
    /// Bytes of the output that its peer knows, though they were not written.
    known: usize,
    received: usize,
    last_piece: Vec<u8>,
    next_stream: u32,
    failed: Option<Error>,
    has_timed_out: bool,
}

/// Drives a connection: its peer sends the front of the bytes, and their back, read backwards, says what happens.
///
/// # Panics
/// If the engine breaks a rule, holds more than it may, or stops with something to do.
pub fn engine(bytes: &[u8]) {
    pieces::compare(bytes);
    let mut run = Run::new(bytes);
    while !run.bytes.is_empty() && run.failed.is_none() && !run.has_timed_out {
        run.act();
    }
    run.end();
}

impl<'a> Run<'a> {
    fn new(mut bytes: &'a [u8]) -> Self {
        let choice = back(&mut bytes);
        let mut config = Config::default();
        config.max_concurrent_streams = 16;
        if choice & 1 == 1 {
            config.max_output = 1 << 10;
        }
        if choice & 2 == 2 {
            config.max_concurrent_streams = 2;
        }
        // No more than an input can use up.
        config.connection_window = 100_000;
        if choice & 4 == 4 {
            config.connection_window = 65_535;
            config.stream_window = 100;
        }
        if choice & 8 == 8 {
            config.max_header_list_size = 100;
        }
        if choice & 16 == 16 {
            config.max_faults = 4;
            config.max_cancellations = 4;
            config.max_empty_frames = 4;
            config.max_idle_frames = 16;
        }
        let config = Arc::new(config);
        let now = Instant::now();
        let mut run = Self {
            bytes,
            http2: Connection::new(Arc::clone(&config), now),
            config,
            now,
            peer: Peer::new(),
            calls: BTreeMap::new(),
            alive: Rc::new(()),
            known: 0,
            received: 0,
            last_piece: Vec::new(),
            next_stream: 1,
            failed: None,
            has_timed_out: false,
        };
        run.look();
        if choice & 32 == 0 {
            run.receive(&frame(SETTINGS, 0, 0, &[]));
        }
        run
    }

    fn byte(&mut self) -> u8 {
        back(&mut self.bytes)
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// One of the calls, if there are any.
    fn one_call(&mut self) -> Option<u32> {
        let at = usize::from(self.byte());
        let count = self.calls.len().max(1);
        self.calls.keys().copied().nth(at % count)
    }

    fn act(&mut self) {
        match self.byte() % 20 {
            0..=3 => {
                let length = self.one_of(&[1, 5, 9, 13, 30, 100, 1_000, 4_096]);
                let (piece, behind) = self.bytes.split_at(length.min(self.bytes.len()));
                self.bytes = behind;
                self.last_piece = piece.to_vec();
                self.receive(piece);
            }
            4 => {
                let piece = self.last_piece.clone();
                for _ in 0..self.byte() % 64 {
                    self.receive(&piece);
                }
            }
            5 => self.request(),
            6 => {
                let frame = self.frame();
                self.receive_whole(&frame);
            }
            7 => {
                for payload in std::mem::take(&mut self.peer.asked) {
                    self.receive_whole(&frame(PING, ACK, 0, &payload));
                }
            }
            8 => self.respond(),
            9 | 10 => {
                let more = self.one_of(&[1, 500, 3_000, 20_000, 40_000]);
                if let Some(id) = self.one_call() {
                    let call = self.call(id);
                    if call.end.is_none() {
                        call.left = (call.left + more).min(50_000);
                    }
                    self.pump(id);
                }
            }
            11 => {
                let has_trailers = self.byte() & 1 == 1;
                if let Some(id) = self.one_call() {
                    self.call(id).end.get_or_insert(has_trailers);
                    self.pump(id);
                }
            }
            12 => {
                let code = self.one_of(&[Code::CANCEL, Code::NO_ERROR, Code::INTERNAL_ERROR]);
                if let Some(id) = self.one_call() {
                    let stream = self.call(id).stream;
                    let kept = self.http2.reset(stream, code);
                    assert!(kept.is_some());
                    drop(kept);
                    self.calls.remove(&id);
                    self.look();
                }
            }
            13 | 14 => self.read_request(),
            15 => self.turns(),
            16 | 17 => self.write(),
            18 => self.pass_time(),
            _ => {
                if self.byte() < 32 {
                    self.http2.end();
                    self.look();
                }
            }
        }
    }

    fn call(&mut self, id: u32) -> &mut Call {
        self.calls.get_mut(&id).expect("it is open")
    }

    // ===== The peer =====

    /// Sends a request that is right.
    fn request(&mut self) {
        let flags = (self.byte() & 1) * END_STREAM;
        let pseudo = [(":method", "POST"), (":scheme", "http"), (":path", "/p")];
        let block: Vec<u8> = pseudo
            .iter()
            .flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes()))
            .collect();
        let stream = self.next_stream;
        self.receive_whole(&frame(HEADERS, flags | END_HEADERS, stream, &block));
    }

    /// A frame that is right mostly.
    fn frame(&mut self) -> Vec<u8> {
        let choice = self.byte() % 6;
        // Mostly of a stream that is not over.
        let is_last = self.bytes.last() == Some(&u8::MAX);
        let stream = match self.one_call() {
            Some(stream) if !is_last => stream,
            _ => self.next_stream.saturating_sub(2),
        };
        let number = self.one_of(&[
            1,
            100,
            5_000,
            16_384,
            65_535,
            1 << 20,
            LARGEST_WINDOW as u32,
        ]);
        match choice {
            0 => frame(WINDOW_UPDATE, 0, stream, &number.to_be_bytes()),
            1 => frame(WINDOW_UPDATE, 0, 0, &number.to_be_bytes()),
            2 => {
                let flags = (self.byte() & 1) * END_STREAM;
                let length = number.min(16_384) as usize;
                frame(DATA, flags, stream, &vec![7; length])
            }
            3 => frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()),
            4 => {
                let id = self.one_of(&[INITIAL_WINDOW, HEADER_TABLE_SIZE]);
                let entry = [&id.to_be_bytes(), &(number - 1).to_be_bytes()[..]].concat();
                frame(SETTINGS, 0, 0, &entry)
            }
            _ => frame(SETTINGS, ACK, 0, &[]),
        }
    }

    /// Has the server receive a frame, if one may begin.
    fn receive_whole(&mut self, frame: &[u8]) {
        if self.peer.is_between_frames() {
            self.receive(frame);
        }
    }

    /// Has the server receive bytes, unless it waits for its own to be read.
    fn receive(&mut self, bytes: &[u8]) {
        self.received += bytes.len();
        let is_over = self.failed.is_some() || self.has_timed_out;
        if is_over || !self.http2.wants_input() || self.received > MOST_RECEIVED {
            return;
        }
        let mut input = bytes;
        let mut calls = 0;
        loop {
            let before = input;
            let received = self.http2.receive(&mut input);
            let taken = &before[..before.len() - input.len()];
            calls += 1;
            assert!(calls <= bytes.len() + 2, "it does not come to an end");
            self.peer.sent(taken);
            let event = match received {
                Ok(event) => event,
                Err(error) => {
                    self.failed = Some(error);
                    self.look();
                    assert!(self.http2.is_over() && self.peer.has_failed(), "{error}");
                    return;
                }
            };
            let Some(event) = event else {
                assert!(input.is_empty());
                return self.look();
            };
            self.on_event(event);
            self.look();
        }
    }

    fn on_event(&mut self, event: Event<'_, Kept>) {
        match event {
            Event::Request { stream, ends, .. } => {
                let id = stream.get();
                assert!(id >= self.next_stream && id % 2 == 1);
                assert!(self.peer.goaway.is_none_or(|(last, _)| id <= last));
                self.next_stream = id.saturating_add(2);
                self.peer.began(id);
                let sent = Rc::<Cell<usize>>::default();
                let kept = Kept {
                    sent: Rc::clone(&sent),
                    _alive: Rc::clone(&self.alive),
                };
                self.http2.accept(stream, kept);
                let call = Call {
                    stream,
                    has_response: false,
                    left: 0,
                    given: 0,
                    end: None,
                    is_finished: false,
                    sent,
                    has_request: ends,
                    unread: 0,
                };
                self.calls.insert(id, call);
            }
            Event::Data { stream, data, ends } => {
                let call = self.call(stream.get());
                assert!(!call.has_request && (ends || !data.is_empty()));
                call.has_request = ends;
                call.unread += data.len();
            }
            Event::Trailers { stream, .. } => {
                let call = self.call(stream.get());
                assert!(!std::mem::replace(&mut call.has_request, true));
            }
            Event::Reset { stream, state, .. } => {
                assert!(state.is_some());
                self.calls.remove(&stream.get()).expect("it was open");
                // The peer knows, if it was its own reset.
                self.peer.streams.remove(&stream.get());
            }
            event => panic!("{event:?}"),
        }
    }

    // ===== The server =====

    fn respond(&mut self) {
        let choice = self.byte();
        let Some(id) = self.one_call() else {
            return;
        };
        let call = self.call(id);
        if std::mem::replace(&mut call.has_response, true) {
            return;
        }
        let stream = call.stream;
        let status = StatusCode::from_u16(200 + u16::from(choice % 8)).expect("a status");
        let ends = choice & 0x70 == 0x70;
        self.http2
            .respond(stream, status, &fields(choice & 8 == 8), ends);
        self.look();
        self.pump(id);
    }

    /// Sends what there is of a call, as long as there is room for it.
    fn pump(&mut self, id: u32) {
        let chunk = self.one_of(&[1, 1_000, 1_024, 5_000, 20_000]);
        let holds = self.byte() & 1 == 1;
        let Some(call) = self.calls.get(&id) else {
            return;
        };
        let stream = call.stream;
        if !call.has_response || call.is_finished {
            return;
        }
        while let Some(call) = self.calls.get_mut(&id) {
            if call.left == 0 && call.end.is_none() {
                return;
            }
            let room = self.http2.room(stream);
            match room {
                Room::Later => return,
                Room::NoWindow if call.left > 0 && !holds => return,
                Room::Bytes(0) => panic!("room for no bytes"),
                _ => {}
            }
            if call.left == 0 {
                call.is_finished = true;
                let trailers = call.end.filter(|has| *has).map(|_| fields(id % 4 == 1));
                self.http2.finish(stream, trailers);
                return self.look();
            }
            // Many small chunks take long, and say no more than some.
            let length = chunk.max(call.left / 8).min(call.left);
            call.left -= length;
            call.given += length;
            self.http2.send(stream, Bytes::from(vec![7; length]));
            self.look();
        }
    }

    fn read_request(&mut self) {
        let (length, is_read) = (
            self.one_of(&[1, 100, 20_000, 1 << 20]),
            self.byte() & 1 == 1,
        );
        let Some(id) = self.one_call() else {
            return;
        };
        let call = self.call(id);
        let length = length.min(call.unread);
        call.unread -= length;
        let stream = call.stream;
        if is_read {
            self.http2.release(stream, length);
        } else {
            self.http2.discard(stream, length);
        }
        self.look();
    }

    /// Gives streams their turns until there are none.
    fn turns(&mut self) {
        // Each turn sends something, or ends a stream, or finds nothing to do, which it can once for each stream.
        let left = |call: &Call| call.left + call.given - call.sent.get();
        let most = 2 * self.calls.len() + self.calls.values().map(left).sum::<usize>();
        let mut turns = 0;
        while let Some(stream) = self.http2.next_turn() {
            turns += 1;
            assert!(turns <= most + 16, "turns without end");
            self.look();
            assert!(self.calls.contains_key(&stream.get()), "a turn of nobody");
            self.pump(stream.get());
        }
        self.look();
    }

    /// Writes some of the output.
    fn write(&mut self) {
        let (count, bytes) = (
            self.one_of(&[1, 2, 5, 64]),
            self.one_of(&[0, 1, 9, 100, 5_000, 100_000]),
        );
        let mut slices = [IoSlice::new(&[]); 64];
        let count = self.http2.output(&mut slices[..count]);
        assert_eq!(count > 0, self.http2.output_len() > 0);
        let offered: usize = slices[..count].iter().map(|slice| slice.len()).sum();
        let written = bytes.min(offered);
        self.http2.advance(written);
        self.known -= written;
    }

    /// Writes all of the output, and gives streams their turns, until nothing moves.
    fn settle(&mut self) {
        let mut rounds = 0;
        while self.http2.output_len() > 0 || self.http2.has_turns() {
            rounds += 1;
            assert!(rounds < 20_000, "it does not come to rest");
            self.http2.advance(self.http2.output_len());
            self.known = 0;
            self.turns();
        }
    }

    fn pass_time(&mut self) {
        let time = self.one_of(&[1, 9_000, 10_000, 31_000, 41_000]);
        self.now += Duration::from_millis(time);
        self.http2.set_now(self.now);
        self.on_time();
    }

    /// Does what is due.
    fn on_time(&mut self) {
        if self.http2.timeout() > self.now {
            return;
        }
        match self.http2.on_timeout() {
            Ok(()) => {
                assert!(self.http2.timeout() > self.now, "it is due again at once");
                self.look();
            }
            Err(_) => self.has_timed_out = true,
        }
    }

    // ===== Rules =====

    /// Shows the peer what was put into the output, and compares what all three know.
    fn look(&mut self) {
        let length = self.http2.output_len();
        assert!(length <= MOST_OUTPUT, "{length} bytes wait");
        if length > self.known {
            let mut slices = [IoSlice::new(&[]); 512];
            let count = self.http2.output(&mut slices);
            let mut skipped = self.known;
            for slice in &slices[..count] {
                let (_, new) = slice.split_at(skipped.min(slice.len()));
                skipped -= slice.len() - new.len();
                self.known += new.len();
                self.peer.receive(new);
            }
            assert_eq!(self.known, length);
        }
        let peer = &self.peer;
        for (id, stream) in &peer.streams {
            let call = &self.calls[id];
            assert_eq!(call.sent.get(), stream.arrived, "of stream {id}");
            assert!(self.failed.is_some() || stream.window <= LARGEST_WINDOW);
        }
        // Its breaches of flow control end the connection, or the stream.
        let is_kept = peer.window <= LARGEST_WINDOW && peer.may_send >= 0;
        assert!(self.failed.is_some() || is_kept && peer.keeps_windows(self.config.stream_window));
        self.calls.retain(|id, _| peer.streams.contains_key(id));
        assert_eq!(self.http2.streams(), self.calls.len());
        assert_eq!(Rc::strong_count(&self.alive) - 1, self.calls.len());
        assert!(self.calls.len() <= self.config.max_concurrent_streams as usize);
    }

    /// Checks that what has not left has no window.
    fn check_waiting(&self) {
        for (id, call) in &self.calls {
            let stream = &self.peer.streams[id];
            let waits = call.has_response && call.given + call.left > stream.arrived;
            assert!(
                !waits || stream.window <= 0 || self.peer.window <= 0,
                "stream {id} waits, with room for {} and {}",
                stream.window,
                self.peer.window
            );
        }
    }

    /// Lets everything come to its end.
    fn end(mut self) {
        // What is left of the input says nothing any more: nothing is held back.
        self.bytes = &[];
        if self.failed.is_none() && !self.has_timed_out {
            self.settle();
            self.check_waiting();
            assert_eq!(self.peer.unacknowledged, 0);
            self.received = 0;
            if self.peer.is_between_frames() {
                self.open_windows();
            }
        }
        if self.failed.is_none() && !self.has_timed_out {
            self.end_well();
        }
        self.http2.advance(self.http2.output_len());
        if let Some(error) = self.failed {
            assert_eq!(self.peer.goaway.map(|(_, code)| code), Some(error.code().0));
            let mut more = &b"more"[..];
            assert!(matches!(self.http2.receive(&mut more), Ok(None)) && more.is_empty());
        }
        let held = format!("{:?}", self.http2).len();
        assert!(held <= MOST_HELD, "{held} bytes");
        let kept = self.http2.take_streams().count();
        assert_eq!(kept, self.calls.len());
        assert_eq!(Rc::strong_count(&self.alive), 1);
    }

    /// Opens all windows as far as they are needed. Then everything leaves, and responses can be finished.
    fn open_windows(&mut self) {
        let ids: Vec<u32> = self.calls.keys().copied().collect();
        for id in ids {
            // What was done for another may have let it end.
            let Some(call) = self.calls.get_mut(&id) else {
                continue;
            };
            call.end.get_or_insert(true);
            if !std::mem::replace(&mut call.has_response, true) {
                let stream = call.stream;
                self.http2
                    .respond(stream, StatusCode::OK, &HeaderMap::new(), false);
                self.look();
            }
            self.pump(id);
            self.settle();
            while let Some((needed, window)) = self.needed(id)
                && self.failed.is_none()
            {
                let (id, by) = match (needed > window, needed > self.peer.window) {
                    (true, _) => (id, needed - window),
                    // Enough for all: the others take their shares.
                    (_, true) => (0, self.all_needed() - self.peer.window),
                    _ => panic!("stream {id} waits with room"),
                };
                let by = u32::try_from(by.min(LARGEST_WINDOW)).expect("it fits");
                self.receive(&frame(WINDOW_UPDATE, 0, id, &by.to_be_bytes()));
                if self.failed.is_none() {
                    self.settle();
                }
            }
        }
        if self.failed.is_none() {
            assert_eq!(self.http2.streams(), 0);
        }
    }

    /// Bytes that have yet to leave.
    fn all_needed(&self) -> i64 {
        let needed = |id: &u32| self.needed(*id).map_or(0, |(needed, _)| needed);
        self.calls.keys().map(needed).sum()
    }

    /// Bytes of a call that have yet to leave, and the window of its stream. `None` if it is over.
    fn needed(&self, id: u32) -> Option<(i64, i64)> {
        let (call, stream) = (self.calls.get(&id)?, &self.peer.streams[&id]);
        let needed = call.given + call.left - stream.arrived;
        Some((needed as i64, stream.window))
    }

    /// Checks that nothing of the connection's window is lost when nobody has anything of what the peer sent. It is told of it
    /// in large steps, so it sends on, for a stream that is over.
    fn check_window(&mut self) {
        let window = i64::from(self.config.connection_window);
        let may_send = self.peer.may_send + self.peer.left_of_data as i64;
        assert!(
            may_send > window / 2 && may_send <= window,
            "it may send {may_send} bytes"
        );
        if !self.peer.is_between_frames() || self.next_stream > LARGEST_WINDOW as u32 {
            return;
        }
        let id = self.next_stream;
        self.request();
        if let Some(call) = self.calls.get(&id) {
            let kept = self.http2.reset(call.stream, Code::CANCEL);
            drop(kept);
            self.look();
        }
        for _ in 0..=window / 2 / MAX_PAYLOAD as i64 {
            if self.failed.is_none() && self.peer.may_send < window {
                self.settle();
                self.receive(&frame(DATA, 0, id, &[7; MAX_PAYLOAD]));
            }
        }
        if self.failed.is_none() {
            assert_eq!(self.peer.may_send, window);
        }
    }

    /// Ends a connection whose peer has broken no rule.
    fn end_well(&mut self) {
        let streams: Vec<StreamId> = self.calls.values().map(|call| call.stream).collect();
        for stream in streams {
            self.http2.reset(stream, Code::CANCEL);
        }
        self.calls.clear();
        self.look();
        self.settle();
        self.check_window();
        if self.failed.is_some() {
            return;
        }
        self.http2.end();
        self.look();
        self.settle();
        // The peer answers nothing and is silent.
        let mut waits = 0;
        while !self.has_timed_out {
            waits += 1;
            assert!(waits < 32, "it does not end");
            self.now = self.http2.timeout();
            self.http2.set_now(self.now);
            self.on_time();
            self.settle();
        }
    }
}

/// Takes a byte from the back. Before the front there are zeros.
fn back(bytes: &mut &[u8]) -> u8 {
    let Some((byte, rest)) = bytes.split_last() else {
        return 0;
    };
    *bytes = rest;
    *byte
}

/// Header fields, more than a frame has room for if they are many.
fn fields(are_many: bool) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert("grpc-status", HeaderValue::from_static("0"));
    if are_many {
        let value = HeaderValue::try_from("v".repeat(9_000)).expect("a value");
        for _ in 0..4 {
            fields.append("x-many", value.clone());
        }
    }
    fields
}

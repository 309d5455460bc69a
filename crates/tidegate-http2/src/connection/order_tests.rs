//! Streams in any order of what their server and their peer do: windows, turns and shares.

use std::{collections::BTreeMap, io::IoSlice};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use proptest::{collection::vec, prelude::*};

use super::{
    responses::SHARE,
    tests::{Pair, frame, request, settings, window_update},
    *,
};
use crate::frame::{DATA, END_STREAM, HEAD_BYTES, HEADERS, Head, RST_STREAM};

#[derive(Debug, Clone)]
enum Step {
    Open,
    /// A service has this many bytes more for a stream, in chunks of this size.
    Produce(usize, usize, usize),
    /// A service has no more for a stream.
    Finish(usize),
    Reset(usize),
    ResetByPeer(usize),
    Window(usize, u32),
    ConnectionWindow(u32),
    InitialWindow(u32),
    Wake(usize),
    Write(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..8_usize;
    prop_oneof![
        2 => Just(Step::Open),
        8 => (at(), 1..100_000_usize, prop_oneof![1..3_000_usize, 1..40_000_usize])
            .prop_map(|(at, bytes, chunk)| Step::Produce(at, bytes, chunk)),
        1 => at().prop_map(Step::Finish),
        1 => at().prop_map(Step::Reset),
        1 => at().prop_map(Step::ResetByPeer),
        3 => (at(), 1..50_000_u32).prop_map(|(at, by)| Step::Window(at, by)),
        1 => (at(), 1..20_u32).prop_map(|(at, by)| Step::Window(at, by)),
        3 => (1..80_000_u32).prop_map(Step::ConnectionWindow),
        1 => (1..20_u32).prop_map(Step::ConnectionWindow),
        1 => (0..100_000_u32).prop_map(Step::InitialWindow),
        1 => at().prop_map(Step::Wake),
        4 => (1..200_000_usize).prop_map(Step::Write),
        2 => (1..20_usize).prop_map(Step::Write),
    ]
}

/// A stream as its service and its peer have it.
#[derive(Debug, Default)]
struct Model {
    /// The window, as the peer has it.
    window: i64,
    /// Bytes that the service has, and the size of its chunks.
    left: usize,
    chunk: usize,
    has_end: bool,
    /// Bytes that the engine was given, and that it has put out.
    given: usize,
    put: usize,
    /// Whether the service waits for its turn.
    waits: bool,
    is_finished: bool,
}

struct Run {
    pair: Pair,
    streams: BTreeMap<u32, Model>,
    next: u32,
    connection_window: i64,
    initial_window: i64,
    /// Bytes of the output that were looked at.
    known: usize,
    /// Whether services take no more than there is room for.
    is_modest: bool,
}

impl Run {
    fn id(&self, at: usize) -> Option<u32> {
        let ids = self.streams.keys().copied();
        ids.cycle()
            .nth(at % self.streams.len().max(1))
            .filter(|_| !self.streams.is_empty())
    }

    /// Polls the service of a stream, as its connection does when it was woken or has its turn.
    fn poll(&mut self, id: u32) {
        let stream = StreamId(id);
        let server = &mut self.pair.server;
        let Some(model) = self.streams.get_mut(&id) else {
            return;
        };
        if model.is_finished {
            return;
        }
        model.waits = false;
        while model.left > 0 || model.has_end {
            let room = match server.room(stream) {
                Room::Bytes(bytes) => bytes,
                Room::NoWindow => 0,
                Room::Later => {
                    model.waits = true;
                    return;
                }
            };
            if model.left == 0 {
                server.finish(stream, None);
                model.is_finished = true;
                return;
            }
            let mut length = model.left.min(model.chunk);
            if self.is_modest {
                length = length.min(room);
            }
            if length == 0 {
                model.waits = true;
                return;
            }
            server.send(stream, Bytes::from(vec![7; length]));
            model.left -= length;
            model.given += length;
        }
    }

    /// Looks at what was put out: no byte of it goes beyond what the peer allows at this moment.
    fn look(&mut self) {
        let mut slices = [IoSlice::new(&[]); 4_096];
        let count = self.pair.server.output(&mut slices);
        let mut bytes = Vec::new();
        slices[..count]
            .iter()
            .for_each(|slice| bytes.extend_from_slice(slice));
        assert_eq!(bytes.len(), self.pair.server.output_len());
        let mut new = &bytes[self.known..];
        while let Some((head, behind)) = new.split_first_chunk::<HEAD_BYTES>() {
            let head = Head::read(head);
            let (_, behind) = behind.split_at(head.length);
            new = behind;
            if head.kind == DATA {
                let length = head.length as i64;
                let model = self
                    .streams
                    .get_mut(&head.stream)
                    .expect("a stream that is open");
                model.window -= length;
                model.put += head.length;
                self.connection_window -= length;
                assert!(
                    length == 0 || model.window >= 0,
                    "beyond the window of {}",
                    head.stream
                );
                assert!(
                    length == 0 || self.connection_window >= 0,
                    "beyond that of the connection"
                );
            }
            let ends = matches!(head.kind, DATA | HEADERS) && head.has(END_STREAM);
            if ends || head.kind == RST_STREAM {
                let model = self.streams.remove(&head.stream).expect("it ends once");
                assert!(!ends || model.put == model.given, "an end before the data");
            }
        }
        self.known = bytes.len();
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Open => {
                let id = self.next;
                self.next += 2;
                self.pair.send(&request(id, END_STREAM)).unwrap();
                self.pair
                    .server
                    .respond(StreamId(id), StatusCode::OK, &HeaderMap::new(), false);
                let model = Model {
                    window: self.initial_window,
                    ..Model::default()
                };
                self.streams.insert(id, model);
            }
            Step::Produce(at, bytes, chunk) => {
                if let Some(id) = self.id(at) {
                    let model = self.streams.get_mut(&id).unwrap();
                    if !model.has_end {
                        (model.left, model.chunk) = (model.left + bytes, chunk);
                    }
                    self.poll(id);
                }
            }
            Step::Finish(at) => {
                if let Some(id) = self.id(at) {
                    self.streams.get_mut(&id).unwrap().has_end = true;
                    self.poll(id);
                }
            }
            Step::Wake(at) => {
                if let Some(id) = self.id(at) {
                    self.poll(id);
                }
            }
            Step::Reset(at) => {
                if let Some(id) = self.id(at) {
                    self.pair.server.reset(StreamId(id), Code::CANCEL);
                }
            }
            Step::ResetByPeer(at) => {
                if let Some(id) = self.id(at) {
                    let reset = frame(RST_STREAM, 0, id, &[0, 0, 0, 8]);
                    self.pair.send(&reset).unwrap();
                    self.streams.remove(&id);
                }
            }
            Step::Window(at, by) => {
                if let Some(id) = self.id(at) {
                    self.streams.get_mut(&id).unwrap().window += i64::from(by);
                    self.pair.send_quietly(&window_update(id, by));
                }
            }
            Step::ConnectionWindow(by) => {
                self.connection_window += i64::from(by);
                self.pair.send_quietly(&window_update(0, by));
            }
            Step::InitialWindow(size) => {
                let difference = i64::from(size) - self.initial_window;
                self.initial_window = i64::from(size);
                let models = self.streams.values_mut();
                models.for_each(|model| model.window += difference);
                self.pair.send_quietly(&settings(&[(4, size)]));
            }
            Step::Write(bytes) => {
                let bytes = bytes.min(self.pair.server.output_len());
                self.pair.server.advance(bytes);
                self.known -= bytes;
            }
        }
        self.look();
        while let Some(stream) = self.pair.server.next_turn() {
            self.poll(stream.get());
            self.look();
        }
        // What was held is sent in between.
        self.look();
        assert!(!self.pair.server.has_turns());
        self.check_that_nothing_waits_with_room();
    }

    fn check_that_nothing_waits_with_room(&mut self) {
        let server = &mut self.pair.server;
        let is_full = server.output_len() >= server.config.max_output;
        let has_window = server.send_window > 0;
        assert_eq!(self.connection_window, server.send_window);
        for (id, model) in &self.streams {
            let stream = server.streams.get_mut(*id).expect("it is open");
            assert_eq!(model.window, stream.send_window);
            assert_eq!(model.put + stream.held.len(), model.given);
            let has_room = has_window && !is_full && model.window > 0;
            assert!(
                !has_room || stream.held.is_empty(),
                "data of {id} waits with room"
            );
            assert!(
                !has_room || !model.waits,
                "stream {id} has room and no turn"
            );
            // Trailers need no window.
            let may_end = model.has_end && model.left == 0 && stream.held.is_empty();
            let is_told = !is_full || !has_window;
            assert!(
                !may_end || !is_told || model.is_finished,
                "the end of {id} waits"
            );
        }
        assert_eq!(server.streams(), self.streams.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// No byte goes beyond a window, whatever the order, and nothing waits while there is room for it.
    #[test]
    fn windows_are_kept_and_nothing_waits_with_room(
        steps in vec(step(), 1..120),
        is_modest in any::<bool>(),
    ) {
        let mut run = Run {
            pair: Pair::new(),
            streams: BTreeMap::new(),
            next: 1,
            connection_window: 65_535,
            initial_window: 65_535,
            known: 0,
            is_modest,
        };
        for step in &steps {
            run.step(step);
        }
        // With windows for all of it, everything comes to its end.
        run.step(&Step::ConnectionWindow(1 << 30));
        let ids: Vec<u32> = run.streams.keys().copied().collect();
        for id in ids {
            for step in [|at| Step::Window(at, 1 << 30), Step::Finish] {
                if let Some(at) = run.streams.keys().position(|known| *known == id) {
                    run.step(&step(at));
                }
            }
        }
        while run.pair.server.output_len() > 0 {
            run.step(&Step::Write(usize::MAX));
        }
        prop_assert!(run.streams.is_empty(), "{:?}", run.streams);
    }

    /// Streams that always have something and a window of their own share what there is of the connection's window and of the
    /// socket: none is ahead of another by more than its share and one that is under way.
    #[test]
    fn no_stream_is_ahead_of_another_by_more_than_two_shares(
        chunks in vec(prop_oneof![1..2_000_usize, 16_384..16_385_usize, 10_000..200_000_usize], 2..7),
        steps in vec(prop_oneof![
            3 => (1..100_000_u32).prop_map(Step::ConnectionWindow),
            1 => (1..100_u32).prop_map(Step::ConnectionWindow),
            1 => (0..8_usize).prop_map(Step::Wake),
            3 => (1..200_000_usize).prop_map(Step::Write),
        ], 1..150),
        is_regular in any::<bool>(),
    ) {
        let mut pair = Pair::new();
        pair.send_quietly(&settings(&[(4, (1 << 31) - 1)]));
        pair.read();
        let streams: Vec<StreamId> = (0..chunks.len()).map(|at| pair.open(2 * at as u32 + 1)).collect();
        let poll = |pair: &mut Pair, at: usize| {
            while matches!(pair.server.room(streams[at]), Room::Bytes(_)) {
                pair.server.send(streams[at], Bytes::from(vec![7; chunks[at]]));
            }
        };
        (0..streams.len()).for_each(|at| poll(&mut pair, at));
        // Updates of one size, round after round, are the ones that could always favor the same stream.
        let regular = steps.iter().find_map(|step| match step {
            Step::ConnectionWindow(by) => Some(*by),
            _ => None,
        });
        let regular = regular.filter(|_| is_regular);
        for _ in 0..3 {
            for step in &steps {
                match step {
                    Step::ConnectionWindow(by) => {
                        pair.send_quietly(&window_update(0, regular.unwrap_or(*by)));
                    }
                    Step::Wake(at) => poll(&mut pair, at % streams.len()),
                    Step::Write(bytes) => {
                        let bytes = (*bytes).min(pair.server.output_len());
                        pair.server.advance(bytes);
                    }
                    _ => {}
                }
                while let Some(stream) = pair.server.next_turn() {
                    poll(&mut pair, stream.get() as usize / 2);
                }
                let sent: Vec<usize> = streams
                    .iter()
                    .map(|stream| pair.server.state_mut(*stream).unwrap().0)
                    .collect();
                let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
                prop_assert!(most - least <= 2 * SHARE, "{sent:?}");
            }
        }
    }
}

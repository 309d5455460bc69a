//! Floods of streams, told from the refusals and cancellations of an honest peer.
//!
//! A connection may carry the calls of many users, whom a proxy brings together. That the server refuses a call, or that a
//! client gives one up, is no reason to end the calls of all the others. h2 counts both against the connection: resets
//! for faults in its whole life, and resets of streams that it has yet to accept by their number at one moment, which
//! after a pause of the server is the number of calls that had no answer meanwhile. So the first of these limits is off, the
//! second is out of reach, and the frames are counted here instead, in time:
//!
//! * *faults*: calls in progress that the server resets because their peer broke a rule, CVE-2025-8671. A stream that was
//!   refused for its headers does not count, and neither does one that had its status when the rest of its
//!   body came.
//! * *cancellations* of calls that had no answer yet, CVE-2023-44487.
//!
//! # Bounds
//! Nothing of a stream that was reset is kept: its future ends with it. But h2 reads as long as there is something to read,
//! and holds each stream until it is accepted, and each of its answers until it is written. So reading pauses here:
//!
//! * when [`BEGUN_AT_ONCE`] streams began, until they are accepted;
//! * when [`LATE_AT_ONCE`] frames came to streams that are not open, to each of which h2 may answer with a reset, until the
//!   next turn.
//!
//! And h2 holds each of its answers until the transport has room. While that is blocked, for as long as the peer reads less
//! than it provokes, frames are counted, whatever they are: after [`UNWRITTEN`] to streams that were not open, or
//! [`OPEN_UNWRITTEN`] to those that were, the connection ends. A turn in which h2 found room for all it had begins anew.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::frames::{
    DATA, END_STREAM, GOAWAY, HEADERS, Head, PRIORITY, RST_STREAM, Scanner, WINDOW_UPDATE,
};

/// Time in which an empty budget becomes a full one.
const REFILL: Duration = Duration::from_secs(10);

/// Number of streams that may begin before those that began are accepted.
const BEGUN_AT_ONCE: usize = 64;

/// Number of frames to streams that are not open that may come in one turn.
const LATE_AT_ONCE: usize = 1_000;

/// Number of frames to streams that are not open, or that open them, while what h2 has to write finds no room. h2 holds
/// some 600 bytes for the answer to each.
const UNWRITTEN: usize = 10_000;

/// The same of streams that are open. Honest peers send many, and h2 answers those only that break a rule.
const OPEN_UNWRITTEN: usize = 50_000;

/// Codes of RST_STREAM that do not say that the peer is at fault: NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM and CANCEL.
const NO_FAULTS: [u32; 4] = [0, 2, 7, 8];

/// Marks of an open stream: its request is complete; a response has begun; the peer has sent something but the request.
const REQUEST_ENDED: u8 = 1;
const ANSWERED: u8 = 2;
const TOUCHED: u8 = 4;

/// Numbers from which on streams are a flood, each in 10 s.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FloodLimits {
    pub(crate) faults: usize,
    pub(crate) cancellations: usize,
}

/// The frames of one connection.
#[derive(Debug)]
pub(crate) struct Watch {
    incoming: Scanner,
    outgoing: Scanner,
    streams: Streams,
}

/// The streams of one connection.
#[derive(Debug)]
struct Streams {
    open: HashMap<u32, u8>,
    /// Largest identity that the peer has used.
    last: u32,
    /// Largest identity that the peer may still use: that of the last GOAWAY.
    last_allowed: u32,
    /// Streams that began since the last call of [`Watch::begin_turn`].
    begun: usize,
    /// Frames to streams that are not open since then.
    late: usize,
    /// Whether h2 found no room to write since then.
    is_blocked: bool,
    /// Frames to streams that were not open, since a turn in which h2 wrote all it had.
    unwritten: usize,
    /// Frames to open streams since then.
    open_unwritten: usize,
    faults: Budget,
    cancellations: Budget,
    flood: Option<&'static str>,
}

/// A budget that refills in time.
#[derive(Debug)]
struct Budget {
    size: f64,
    left: f64,
    at: Option<Instant>,
}

impl Budget {
    fn new(size: usize) -> Self {
        let size = size as f64;
        Self {
            size,
            left: size,
            at: None,
        }
    }

    /// Takes one. Returns whether there was one.
    fn take(&mut self, now: Instant) -> bool {
        let passed = self.at.map_or(Duration::ZERO, |at| now - at);
        self.at = Some(now);
        let refilled = self.size * passed.div_duration_f64(REFILL);
        self.left = (self.left + refilled).min(self.size) - 1.0;
        let has_one = self.left >= 0.0;
        self.left = self.left.max(0.0);
        has_one
    }
}

// ===== impl Watch =====

impl Watch {
    /// Makes the watch of a connection whose peer's first `preface` bytes are no frame.
    pub(crate) fn new(preface: usize, limits: FloodLimits) -> Self {
        Self {
            incoming: Scanner::behind(preface),
            outgoing: Scanner::behind(0),
            streams: Streams {
                open: HashMap::new(),
                last: 0,
                last_allowed: u32::MAX,
                begun: 0,
                late: 0,
                is_blocked: false,
                unwritten: 0,
                open_unwritten: 0,
                faults: Budget::new(limits.faults),
                cancellations: Budget::new(limits.cancellations),
                flood: None,
            },
        }
    }

    /// Notes bytes that the peer sent.
    pub(crate) fn received(&mut self, bytes: &[u8]) {
        self.incoming
            .scan(bytes, |frame| self.streams.received(frame));
    }

    /// Notes bytes for the peer.
    pub(crate) fn sent(&mut self, bytes: &[u8]) {
        self.outgoing.scan(bytes, |frame| self.streams.sent(frame));
    }

    /// Notes that there is no room for something that h2 has to write.
    pub(crate) const fn blocked(&mut self) {
        self.streams.is_blocked = true;
    }

    /// Notes that the streams that began were accepted, and that what waited for the socket was offered to it.
    pub(crate) const fn begin_turn(&mut self) {
        self.streams.begun = 0;
        self.streams.late = 0;
        // Not by what the socket took: h2 may hold more than that.
        if !self.streams.is_blocked {
            self.streams.unwritten = 0;
            self.streams.open_unwritten = 0;
        }
        self.streams.is_blocked = false;
    }

    /// Whether nothing more is to be read in this turn.
    pub(crate) const fn is_full(&self) -> bool {
        self.streams.begun >= BEGUN_AT_ONCE || self.streams.late >= LATE_AT_ONCE
    }

    /// Returns the flood that is to end the connection, in words.
    pub(crate) const fn flood(&self) -> Option<&'static str> {
        self.streams.flood
    }

    /// Largest identity of a stream that the peer has used.
    pub(crate) const fn last_stream(&self) -> u32 {
        self.streams.last
    }

    /// Whether a frame of our own may go out behind what was sent.
    pub(crate) const fn is_between_frames(&self) -> bool {
        self.outgoing.is_between_frames()
    }
}

// ===== impl Streams =====

impl Streams {
    fn received(&mut self, frame: Head) {
        let Head { kind, stream, .. } = frame;
        if stream == 0 || stream > self.last_allowed {
            return;
        }
        let ends = frame.flags & END_STREAM != 0;
        let Some(state) = self.open.get_mut(&stream) else {
            self.unwritten += 1;
            if self.unwritten > UNWRITTEN {
                self.flood = Some("too many frames while their answers are not read");
            }
            if kind == HEADERS && stream > self.last {
                self.last = stream;
                self.begun += 1;
                self.open
                    .insert(stream, if ends { REQUEST_ENDED } else { 0 });
            } else {
                self.late += 1;
            }
            return;
        };
        self.open_unwritten += 1;
        if self.open_unwritten > OPEN_UNWRITTEN {
            self.flood = Some("too many frames while their answers are not read");
        }
        match kind {
            HEADERS | DATA if *state & REQUEST_ENDED != 0 => *state |= TOUCHED,
            HEADERS | DATA if ends => *state |= REQUEST_ENDED,
            PRIORITY | WINDOW_UPDATE => *state |= TOUCHED,
            RST_STREAM => {
                let is_early = *state & ANSWERED == 0;
                self.open.remove(&stream);
                if is_early && !self.cancellations.take(Instant::now()) {
                    self.flood = Some("too many calls cancelled before they were answered");
                }
            }
            _ => {}
        }
    }

    fn sent(&mut self, frame: Head) {
        let Head { kind, stream, .. } = frame;
        match kind {
            HEADERS | DATA if frame.flags & END_STREAM != 0 => _ = self.open.remove(&stream),
            HEADERS => {
                if let Some(state) = self.open.get_mut(&stream) {
                    *state |= ANSWERED;
                }
            }
            RST_STREAM => {
                let state = self.open.remove(&stream).unwrap_or_default();
                let is_fault =
                    state & (ANSWERED | TOUCHED) != 0 && !NO_FAULTS.contains(&frame.number);
                if is_fault && !self.faults.take(Instant::now()) {
                    self.flood = Some("too many calls reset for faults of the peer");
                }
            }
            GOAWAY => self.last_allowed = frame.number,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: u32 = 1;
    const CANCEL: u32 = 8;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap();
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    fn reset(stream: u32, code: u32) -> Vec<u8> {
        frame(RST_STREAM, 0, stream, &code.to_be_bytes())
    }

    fn watch() -> Watch {
        let limits = FloodLimits {
            faults: 10,
            cancellations: 20,
        };
        Watch::new(0, limits)
    }

    /// The number of streams after which `exchange` is a flood, of 100.
    fn flood_after(mut exchange: impl FnMut(&mut Watch, u32)) -> Option<u32> {
        let mut watch = watch();
        (0..100).find(|number| {
            exchange(&mut watch, 2 * number + 1);
            watch.flood().is_some()
        })
    }

    #[test]
    fn faults_in_calls_that_are_answered_are_a_flood() {
        let ended = flood_after(|watch, stream| {
            watch.received(&frame(HEADERS, END_STREAM, stream, b""));
            watch.sent(&frame(HEADERS, 0, stream, b""));
            watch.sent(&reset(stream, FAULT));
        });
        assert_eq!(ended, Some(10));
    }

    #[test]
    fn faults_behind_a_request_are_a_flood() {
        for fault in [
            frame(WINDOW_UPDATE, 0, 0, b"abcd"),
            frame(DATA, 0, 0, b"more"),
            frame(HEADERS, 0, 0, b"again"),
        ] {
            let ended = flood_after(|watch, stream| {
                watch.received(&frame(HEADERS, END_STREAM, stream, b""));
                let mut fault = fault.clone();
                fault[5..9].copy_from_slice(&stream.to_be_bytes());
                watch.received(&fault);
                watch.sent(&reset(stream, FAULT));
            });
            assert_eq!(ended, Some(10));
        }
    }

    #[test]
    fn refusals_are_no_flood_however_many() {
        // For its headers; because there are too many; with a status, while the body is under way.
        let refusals: [fn(&mut Watch, u32); 4] = [
            |watch, stream| watch.sent(&reset(stream, FAULT)),
            |watch, stream| watch.sent(&reset(stream, 7)),
            |watch, stream| {
                watch.sent(&frame(HEADERS, END_STREAM, stream, b""));
                watch.sent(&reset(stream, 0));
                watch.received(&frame(DATA, 0, stream, b"late"));
                watch.sent(&reset(stream, 5));
            },
            |watch, stream| {
                watch.sent(&frame(HEADERS, 0, stream, b""));
                watch.sent(&frame(DATA, 0, stream, b""));
                watch.sent(&frame(HEADERS, END_STREAM, stream, b""));
                watch.received(&frame(DATA, END_STREAM, stream, b"late"));
            },
        ];
        for refuse in refusals {
            let ended = flood_after(|watch, stream| {
                watch.received(&frame(HEADERS, 0, stream, b""));
                watch.received(&frame(DATA, 0, stream, b"body"));
                refuse(watch, stream);
                assert!(watch.streams.open.is_empty());
            });
            assert_eq!(ended, None);
        }
    }

    #[test]
    fn cancellations_count_until_the_call_is_answered() {
        let early = flood_after(|watch, stream| {
            watch.received(&frame(HEADERS, 0, stream, b""));
            watch.received(&reset(stream, CANCEL));
        });
        assert_eq!(early, Some(20));
        let answered = flood_after(|watch, stream| {
            watch.received(&frame(HEADERS, 0, stream, b""));
            watch.sent(&frame(HEADERS, 0, stream, b""));
            watch.received(&reset(stream, CANCEL));
        });
        assert_eq!(answered, None);
    }

    #[test]
    fn budget_refills_in_time() {
        let (mut budget, begin) = (Budget::new(100), Instant::now());
        let mut take = |count: usize, after: u64| {
            let at = begin + Duration::from_secs(after);
            (0..count).filter(|_| budget.take(at)).count()
        };
        assert_eq!(take(150, 0), 100);
        assert_eq!(take(50, 1), 10);
        // An honest peer at that rate never reaches the end.
        for second in 2..100 {
            assert_eq!(take(10, second), 10);
        }
        assert_eq!(take(150, 1_000), 100);
    }

    #[test]
    fn reading_pauses_until_what_began_is_accepted() {
        let mut watch = watch();
        for number in 0..BEGUN_AT_ONCE as u32 {
            assert!(!watch.is_full());
            watch.received(&frame(HEADERS, 0, 2 * number + 1, b""));
        }
        assert!(watch.is_full());
        watch.begin_turn();
        assert!(!watch.is_full());
    }

    #[test]
    fn late_frames_pause_reading_and_are_no_flood_where_their_answers_are_read() {
        let mut watch = watch();
        watch.received(&frame(HEADERS, 0, 1, b""));
        watch.sent(&frame(HEADERS, END_STREAM, 1, b""));
        let late = frame(DATA, 0, 1, b"x");
        for _ in 0..100 {
            for _ in 0..LATE_AT_ONCE {
                assert!(!watch.is_full());
                watch.received(&late);
            }
            assert!(watch.is_full());
            watch.begin_turn();
        }
        assert_eq!(watch.flood(), None);
    }

    #[test]
    fn frames_whose_answers_find_no_room_are_a_flood() {
        // To a call that has ended; to a stream that never began; each opening another; to an open stream.
        let frames: [fn(u32) -> Vec<u8>; 4] = [
            |_| frame(DATA, 0, 1, b"x"),
            |number| frame(PRIORITY, 0, 2 * number + 5, &[0, 0, 0, 7, 1]),
            |number| frame(HEADERS, 0, 2 * number + 5, b""),
            |_| frame(WINDOW_UPDATE, 0, 3, &[0; 4]),
        ];
        for (provoke, most) in
            frames
                .into_iter()
                .zip([UNWRITTEN, UNWRITTEN, UNWRITTEN, OPEN_UNWRITTEN])
        {
            let mut watch = watch();
            watch.received(&frame(HEADERS, 0, 1, b""));
            watch.sent(&frame(HEADERS, END_STREAM, 1, b""));
            watch.received(&frame(HEADERS, 0, 3, b""));
            // A peer that takes a little now and then leaves no room either.
            let ended = (0..2 * most).position(|number| {
                watch.blocked();
                watch.begin_turn();
                watch.blocked();
                watch.received(&provoke(u32::try_from(number).unwrap()));
                watch.flood().is_some()
            });
            assert!(ended.is_some_and(|ended| ended <= most), "{ended:?}");
            // A peer that reads them may go on.
            let mut watch = self::watch();
            watch.received(&frame(HEADERS, 0, 3, b""));
            for number in 0..2 * most {
                watch.begin_turn();
                watch.received(&provoke(u32::try_from(number).unwrap()));
            }
            assert_eq!(watch.flood(), None);
        }
    }

    #[test]
    fn streams_beyond_the_last_are_forgotten() {
        let mut watch = watch();
        watch.received(&frame(HEADERS, 0, 1, b""));
        watch.sent(&frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]));
        for stream in (3..1_000).step_by(2) {
            watch.received(&frame(HEADERS, 0, stream, b""));
        }
        assert_eq!(watch.streams.open.len(), 1);
    }
}

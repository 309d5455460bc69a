//! Streams: their states (RFC 9113, section 5.1) and those that are over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use http::HeaderMap;

/// Largest number of ended streams to which the peer may still send, and which are remembered one by one.
const REMEMBERED: usize = 1_024;

/// Identity of a stream, an odd number from 1 to 2³¹ - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub(crate) u32);

impl StreamId {
    /// Returns its number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// An open stream, or one whose last bytes wait for a window.
#[derive(Debug)]
pub(crate) struct Stream<S> {
    pub(crate) state: Option<S>,
    /// Number of bytes that the peer takes. Below 0 after settings that made it smaller (RFC 9113, section 6.9.2).
    pub(crate) send_window: i64,
    /// Number of bytes that the peer may send.
    pub(crate) receive_window: i64,
    /// Bytes that the caller has and did not release.
    pub(crate) unread: u32,
    /// Bytes that were released, and whose window the peer was not given back.
    pub(crate) unannounced: u32,
    /// Bytes that are still to come, if the request said how many.
    pub(crate) content_left: Option<u64>,
    /// Whether the peer has ended its side.
    pub(crate) has_request: bool,
    pub(crate) has_response: bool,
    /// Data that found no window.
    pub(crate) held: Bytes,
    pub(crate) end: Option<End>,
    pub(crate) waits: Waits,
    /// Bytes that are left of its turn. Below 0 what the next is shorter by.
    pub(crate) share: i32,
    /// Whether it was told to come later, and has not been asked what it has since then.
    pub(crate) is_unasked: bool,
    /// Whether it is in the list of those.
    pub(crate) is_listed: bool,
}

/// The end of a response, behind what is held.
#[derive(Debug)]
pub(crate) enum End {
    Empty,
    Trailers(Box<HeaderMap>),
}

/// The reason why a stream that has something to send waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    No,
    /// Its own window.
    Window,
    /// Its turn, among those that have a window of their own.
    Turn,
}

impl<S> Stream<S> {
    pub(crate) fn new(send_window: i64, receive_window: i64, share: i32) -> Self {
        Self {
            state: None,
            send_window,
            receive_window,
            unread: 0,
            unannounced: 0,
            content_left: None,
            has_request: false,
            has_response: false,
            held: Bytes::new(),
            end: None,
            waits: Waits::No,
            share,
            is_unasked: false,
            is_listed: false,
        }
    }

    /// Lets it wait for its window, or for its turn if it has one: behind the others, or before them if its last turn was cut
    /// off. Otherwise windows that open in steps of one size could always cut off the same.
    pub(crate) fn wait(&mut self, id: u32, turns: &mut VecDeque<u32>, cut_off: &mut VecDeque<u32>) {
        if self.waits == Waits::No {
            self.waits = Waits::Window;
        }
        self.window_opened(id, if self.share > 0 { cut_off } else { turns });
    }

    /// Lets it wait for its turn if it waited for a window and has one.
    pub(crate) fn window_opened(&mut self, id: u32, turns: &mut VecDeque<u32>) {
        if self.waits == Waits::Window && self.send_window > 0 {
            self.waits = Waits::Turn;
            turns.push_back(id);
        }
    }
}

/// Streams of a connection by their identities.
#[derive(Debug)]
pub(crate) struct Streams<S> {
    // The first of them costs one small allocation, and no choice of identities makes it slow.
    open: BTreeMap<u32, Box<Stream<S>>>,
    /// Largest identity that the peer has used.
    last: u32,
    ended: Ended,
}

/// Streams that are over and to which the peer may still send, since it may not know it yet.
#[derive(Debug, Default)]
struct Ended {
    streams: BTreeSet<u32>,
    /// Identities up to this one had no room: whatever comes for them is ignored. It never falls.
    forgotten: u32,
}

/// The state of a frame's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Open,
    /// No frame of it came yet.
    Idle,
    /// Its frames are ignored: it was ended here, and the peer may not know it yet.
    Ignored,
    /// The peer has ended it.
    Closed,
}

impl<S> Streams<S> {
    pub(crate) fn new() -> Self {
        Self {
            open: BTreeMap::new(),
            last: 0,
            ended: Ended::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    pub(crate) const fn last(&self) -> u32 {
        self.last
    }

    pub(crate) fn get(&self, id: u32) -> Option<&Stream<S>> {
        self.open.get(&id).map(|stream| &**stream)
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Stream<S>> {
        self.open.get_mut(&id).map(|stream| &mut **stream)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Stream<S>)> {
        self.open
            .iter_mut()
            .map(|(id, stream)| (*id, &mut **stream))
    }

    pub(crate) fn know(&self, id: u32) -> Known {
        if self.open.contains_key(&id) {
            Known::Open
        } else if id > self.last || id.is_multiple_of(2) {
            // Even ones would be ours, and we begin none.
            Known::Idle
        } else if id <= self.ended.forgotten || self.ended.streams.contains(&id) {
            Known::Ignored
        } else {
            Known::Closed
        }
    }

    /// Notes that the peer has begun a stream.
    pub(crate) const fn begin(&mut self, id: u32) {
        self.last = id;
    }

    pub(crate) fn insert(&mut self, id: u32, stream: Stream<S>) {
        self.open.insert(id, Box::new(stream));
    }

    /// Removes a stream. If the peer has not ended it, what still comes for it is ignored.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Box<Stream<S>>> {
        let stream = self.open.remove(&id)?;
        if !stream.has_request {
            self.ignore(id);
        }
        Some(stream)
    }

    /// Removes a stream that the peer has ended.
    pub(crate) fn remove_ended(&mut self, id: u32) -> Option<Box<Stream<S>>> {
        self.open.remove(&id)
    }

    /// Ignores what comes for a stream that is over, until the peer ends it.
    pub(crate) fn ignore(&mut self, id: u32) {
        let ended = &mut self.ended;
        if id <= ended.forgotten {
            return;
        }
        ended.streams.insert(id);
        if ended.streams.len() > REMEMBERED
            && let Some(oldest) = ended.streams.pop_first()
        {
            ended.forgotten = oldest;
        }
    }

    /// Ignores what comes for any stream that is not open.
    pub(crate) const fn ignore_all(&mut self) {
        self.ended.forgotten = u32::MAX;
    }

    /// Notes that the peer has ended a stream that is ignored.
    pub(crate) fn end_ignored(&mut self, id: u32) {
        self.ended.streams.remove(&id);
    }

    /// Removes all that are open.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Box<Stream<S>>> + use<S> {
        std::mem::take(&mut self.open).into_values()
    }
}

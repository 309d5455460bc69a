//! A connection: bytes in, events and bytes out.
//!
//! Its rooms, by what they are about: [`input`] finds the frames, [`calls`] has header blocks and resets, [`bodies`] what
//! requests carry, [`responses`] what goes out, and [`control`] settings, windows, pings and the end.

mod bodies;
mod calls;
mod control;
mod input;
#[cfg(test)]
mod order_tests;
mod responses;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc, time::Instant};

use http::{HeaderMap, Request};

pub use self::{control::TimedOut, responses::Room};
use self::{
    control::{Clock, Ending},
    input::Input,
};
use crate::{
    budget::Budgets,
    config::Config,
    error::Code,
    frame,
    hpack::{Decoder, Encoder},
    output::Output,
    settings::{DEFAULT_WINDOW, Settings, connection_window},
    stream::{StreamId, Streams},
    unended::Unended,
};

/// First bytes of a client (RFC 9113, section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// State that is kept with a stream.
pub trait StreamState {
    /// Notes that this many bytes of the response's body have left: they are with what waits for the socket. Slow peers are
    /// told from stalled ones by it.
    fn sent(&mut self, bytes: usize);
}

/// An act of the peer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a, S> {
    /// A call. [`Connection::accept`] it, or [`reset`](Connection::reset) it.
    Request {
        /// Its stream.
        stream: StreamId,
        /// Its method, URI and headers. An authority that no URI can have is in the header `host`. The method may be CONNECT,
        /// for which a status from 200 to 299 would promise a tunnel.
        request: Request<()>,
        /// Whether there is no body.
        ends: bool,
        /// Whether the header list was larger than [`Config::max_header_list_size`]. What had no room was left out, so it has
        /// to be refused: it may be anything.
        is_truncated: bool,
    },
    /// A piece of a request's body. The peer may send more when it is [released](Connection::release).
    Data {
        /// The stream.
        stream: StreamId,
        /// The piece, which may be empty at the end.
        data: &'a [u8],
        /// Whether the body ends with it.
        ends: bool,
    },
    /// The end of a request's body, with trailers.
    Trailers {
        /// The stream.
        stream: StreamId,
        /// The trailers.
        trailers: HeaderMap,
    },
    /// A stream that ended before its response did. It is gone.
    Reset {
        /// The stream.
        stream: StreamId,
        /// Why.
        code: Code,
        /// Whether the peer reset it. Otherwise it broke a rule.
        by_peer: bool,
        /// The state that was kept with it.
        state: Option<S>,
    },
}

/// The server's side of one HTTP/2 connection, which keeps an `S` with each stream. See [the crate](crate).
#[derive(Debug)]
pub struct Connection<S> {
    config: Arc<Config>,
    streams: Streams<S>,
    output: Output,
    input: Input,
    /// Made with the first header block.
    decoder: Option<Box<Decoder>>,
    encoder: Encoder,
    budgets: Budgets,
    /// Number of bytes that the peer takes on all streams.
    send_window: i64,
    /// Number of bytes that new streams may send.
    initial_window: i64,
    /// Number of bytes that the peer may send on all streams.
    receive_window: i64,
    /// Bytes that were read or thrown away, and whose window the peer was not given back.
    unannounced: u32,
    /// Number of bytes that the peer's new streams may send: that of our settings once it has acknowledged them.
    initial_receive_window: i64,
    is_acknowledged: bool,
    /// Streams that have something to send and a window for it, in the order in which they have their turns.
    turns: VecDeque<u32>,
    /// Streams like those whose last turn was cut off, because the connection's window or the output had no more room. They go
    /// on before others have turns.
    cut_off: VecDeque<u32>,
    /// Streams that were told to come later. They have turns without a window, too, once each: they may have ended.
    unasked: VecDeque<u32>,
    /// Requests that go on behind their response.
    unended: Unended,
    ending: Ending,
    clock: Clock,
}

impl<S: StreamState> Connection<S> {
    /// Begins a connection whose peer's [`PREFACE`] was read. Our settings are the first output.
    #[must_use]
    pub fn new(config: Arc<Config>, now: Instant) -> Self {
        let mut output = Output::default();
        let connection_window = connection_window(&config);
        output.put(|out| {
            Settings::put_ours(out, &config);
            if connection_window > DEFAULT_WINDOW {
                frame::put_window_update(out, 0, (connection_window - DEFAULT_WINDOW) as u32);
            }
        });
        Self {
            streams: Streams::new(),
            output,
            input: Input::default(),
            decoder: None,
            encoder: Encoder::default(),
            budgets: Budgets::new(now),
            send_window: DEFAULT_WINDOW,
            initial_window: DEFAULT_WINDOW,
            receive_window: connection_window,
            unannounced: 0,
            initial_receive_window: DEFAULT_WINDOW,
            is_acknowledged: false,
            turns: VecDeque::new(),
            cut_off: VecDeque::new(),
            unasked: VecDeque::new(),
            unended: Unended::default(),
            ending: Ending::No,
            clock: Clock::new(now),
            config,
        }
    }

    /// Sets the time. Call it before whatever the time matters for, once in a turn of the connection.
    pub fn set_now(&mut self, now: Instant) {
        self.clock.now = now;
        self.budgets.refill(now);
    }

    /// Accepts a call, with what is to be kept for its stream until it is over.
    pub fn accept(&mut self, stream: StreamId, state: S) {
        if let Some(stream) = self.streams.get_mut(stream.0) {
            stream.state = Some(state);
        }
    }

    /// Returns what is kept with a stream, unless it is over.
    pub fn state_mut(&mut self, stream: StreamId) -> Option<&mut S> {
        self.streams.get_mut(stream.0)?.state.as_mut()
    }

    /// Number of streams that are not over.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Removes all streams, and returns what was kept with them: for the end of the connection.
    pub fn take_streams(&mut self) -> impl Iterator<Item = S> + use<S> {
        self.turns.clear();
        self.cut_off.clear();
        self.unasked.clear();
        self.streams.take().filter_map(|stream| stream.state)
    }
}

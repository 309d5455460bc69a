//! Responses, and what goes out: the windows of our DATA, turns, and the output.

use std::{io::IoSlice, mem, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Connection, StreamState, control::after};
use crate::{
    error::Code,
    frame::{self, END_STREAM, MAX_PAYLOAD},
    request::is_of_a_connection,
    stream::{End, StreamId, Waits},
};

/// Time in which a peer may end a request whose response is complete. It is told that no more of it is wanted then, or when
/// half of the streams that it may have are such requests.
const PATIENCE: Duration = Duration::from_secs(5);

/// Number of bytes of such a request that are thrown away, before the peer is told.
const UNWANTED: u32 = 1 << 20;

/// Bytes that a stream sends before the others that wait have their turns. A frame that goes beyond it is made up for in the
/// next turn.
pub(super) const SHARE: usize = 16 << 10;

/// Room for data of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// The windows of the stream and of the connection admit this many bytes, which is not 0.
    Bytes(usize),
    /// A window is used up. What is sent all the same is held. Trailers need no window.
    NoWindow,
    /// Something is held, or others have their turns before it, or as much waits for the socket as may.
    Later,
}

impl<S: StreamState> Connection<S> {
    /// Begins the response of a stream. Call it once, and before [`send`](Self::send) and [`finish`](Self::finish). Nothing
    /// happens if the stream is over. Fields that are about a connection, such as `connection`, are left out.
    pub fn respond(
        &mut self,
        stream: StreamId,
        status: StatusCode,
        headers: &HeaderMap,
        ends: bool,
    ) {
        let Some(open) = self.streams.get_mut(stream.0) else {
            return;
        };
        open.has_response = true;
        let block = self.encoder.encode(Some(status), sendable(headers));
        self.output
            .put(|out| frame::put_block(out, &block, stream.0, ends));
        if ends {
            self.close(stream.0);
        }
    }

    /// Returns the room for data of a stream. Without any the stream has a [turn](Self::next_turn) when there is some, and
    /// when the others that wait have had theirs.
    pub fn room(&mut self, stream: StreamId) -> Room {
        let is_full = self.is_full();
        let is_alone = self.streams.len() == 1;
        let Some(open) = self.streams.get_mut(stream.0) else {
            return Room::Later;
        };
        let window = open.send_window.min(self.send_window);
        let room = if !open.held.is_empty() {
            Room::Later
        } else if window <= 0 {
            // However full the output is: trailers are all that goes there.
            Room::NoWindow
        } else if is_full || open.waits == Waits::Turn || (open.share <= 0 && !is_alone) {
            Room::Later
        } else {
            // Not cut to what is free of the output or left of the share: the chunks of many streams would have many sizes, and
            // one more of the usual size is no more.
            open.is_unasked = false;
            return Room::Bytes(usize::try_from(window).unwrap_or(usize::MAX));
        };
        open.is_unasked = room == Room::Later && open.held.is_empty();
        if open.is_unasked && !mem::replace(&mut open.is_listed, true) {
            self.unasked.push_back(stream.0);
        }
        open.wait(stream.0, &mut self.turns, &mut self.cut_off);
        room
    }

    /// Sends data of a stream, unless its [room](Self::room) is [`Later`](Room::Later). What is more than the windows admit is
    /// held, and sent before the stream has its next turn. Chunks of 1 KiB and more are not copied.
    ///
    /// # Panics
    /// When data of the stream is still held.
    pub fn send(&mut self, stream: StreamId, data: Bytes) {
        let Some(open) = self.streams.get_mut(stream.0) else {
            return;
        };
        assert!(open.held.is_empty(), "data of the stream is still held");
        open.held = data;
        self.send_held(stream.0);
    }

    /// Ends the response of a stream, behind what is held of it. The stream is over then, and what is kept with it is dropped.
    pub fn finish(&mut self, stream: StreamId, trailers: Option<HeaderMap>) {
        let Some(open) = self.streams.get_mut(stream.0) else {
            return;
        };
        open.end = Some(match trailers {
            Some(trailers) => End::Trailers(Box::new(trailers)),
            None => End::Empty,
        });
        if open.held.is_empty() {
            self.put_end(stream.0);
        }
    }

    /// Resets a stream, whatever waits for a window. Returns what was kept with it.
    pub fn reset(&mut self, stream: StreamId, code: Code) -> Option<S> {
        let open = self.streams.remove(stream.0)?;
        self.output.put(|out| frame::put_reset(out, stream.0, code));
        self.throw_away(open.unread);
        open.state
    }

    /// Returns the next of the streams that had no room and have some now, or may end. What is held is sent first, so that only
    /// those are returned that may send more.
    pub fn next_turn(&mut self) -> Option<StreamId> {
        while self.send_window > 0 && !self.is_full() {
            let id = match self.cut_off.pop_front() {
                Some(id) => id,
                None => self.turns.pop_front()?,
            };
            let Some(open) = self.streams.get_mut(id) else {
                continue;
            };
            open.waits = Waits::No;
            if open.share <= 0 {
                open.share += SHARE as i32;
            }
            self.send_held(id);
            if self
                .streams
                .get(id)
                .is_some_and(|open| open.held.is_empty())
            {
                return Some(StreamId(id));
            }
        }
        if self.send_window <= 0 {
            return self.next_unasked();
        }
        None
    }

    /// Returns the next of the streams that were told to come later, and that may end where they can send nothing.
    fn next_unasked(&mut self) -> Option<StreamId> {
        loop {
            let id = self.unasked.pop_front()?;
            let Some(open) = self.streams.get_mut(id) else {
                continue;
            };
            open.is_listed = false;
            if open.is_unasked {
                return Some(StreamId(id));
            }
        }
    }

    /// Whether [`next_turn`](Self::next_turn) has something to do: call it then, after the output was written too.
    #[must_use]
    pub fn has_turns(&self) -> bool {
        if self.send_window <= 0 {
            return !self.unasked.is_empty();
        }
        let has_turns = !self.cut_off.is_empty() || !self.turns.is_empty();
        has_turns && !self.is_full()
    }

    /// Number of bytes that may wait for the socket. With none nothing would ever be sent.
    fn max_output(&self) -> usize {
        self.config.max_output.max(1)
    }

    /// Whether as much waits for the socket as may.
    fn is_full(&self) -> bool {
        self.output.len() >= self.max_output()
    }

    /// Sends what is held of a stream, in frames, as long as there is room and the stream has its turn.
    fn send_held(&mut self, id: u32) {
        let max_output = self.max_output();
        let is_alone = self.streams.len() == 1;
        let Some(open) = self.streams.get_mut(id) else {
            return;
        };
        while !open.held.is_empty()
            && open.send_window > 0
            && self.send_window > 0
            && self.output.len() < max_output
            && (open.share > 0 || is_alone)
        {
            // Not cut to what is free of the output: frames would be small, and one more is no more.
            let window = usize::try_from(open.send_window.min(self.send_window)).unwrap_or(0);
            let length = open.held.len().min(window).min(MAX_PAYLOAD);
            let piece = if length == open.held.len() {
                mem::take(&mut open.held)
            } else {
                open.held.split_to(length)
            };
            open.send_window -= length as i64;
            self.send_window -= length as i64;
            if !is_alone {
                open.share -= length as i32;
            }
            self.output
                .put(|out| frame::put_data_head(out, length, 0, id));
            self.output.put_chunk(piece);
            if let Some(state) = &mut open.state {
                state.sent(length);
            }
        }
        if !open.held.is_empty() {
            open.wait(id, &mut self.turns, &mut self.cut_off);
        } else if open.end.is_some() {
            self.put_end(id);
        }
    }

    /// Puts the end of a response, of which nothing is held.
    fn put_end(&mut self, id: u32) {
        let end = self.streams.get_mut(id).and_then(|open| open.end.take());
        match end {
            Some(End::Trailers(trailers)) => {
                let block = self.encoder.encode(None, sendable(&trailers));
                self.output
                    .put(|out| frame::put_block(out, &block, id, true));
            }
            _ => self
                .output
                .put(|out| frame::put_data_head(out, 0, END_STREAM, id)),
        }
        self.close(id);
    }

    /// Closes a stream whose response is complete. If its request is not, the peer has a while to end it.
    fn close(&mut self, id: u32) {
        let Some(open) = self.streams.remove(id) else {
            return;
        };
        if !open.has_request {
            self.await_request(id, open.receive_window);
        }
        self.throw_away(open.unread);
    }

    /// Lets the peer end a request whose response is complete, within bounds. Reset at once, it might not see the response:
    /// HAProxy 2.6 throws away what it has not passed on of a stream that is reset, whatever the code.
    fn await_request(&mut self, id: u32, window: i64) {
        let max = self.config.max_concurrent_streams as usize / 2;
        if self.unended.len() >= max {
            match self.unended.take_first() {
                Some(oldest) => self.stop_request(oldest),
                None => return self.stop_request(id),
            }
        }
        self.unended
            .add(id, after(self.clock.now, PATIENCE), UNWANTED);
        // Of what has come nobody reads anything any more.
        let taken = u32::try_from(self.initial_receive_window - window).unwrap_or(0);
        self.renew_window(id, taken);
    }

    /// Takes more of a request whose response is complete.
    pub(super) fn take_unwanted(&mut self, id: u32, bytes: u32) {
        let Some(request) = self.unended.get_mut(id) else {
            return;
        };
        match request.left.checked_sub(bytes) {
            Some(left) => {
                request.left = left;
                self.renew_window(id, bytes);
            }
            None => {
                self.unended.remove(id);
                self.stop_request(id);
            }
        }
    }

    /// Gives the peer the window back of a request whose response is complete: one that has to send all of it would wait.
    fn renew_window(&mut self, id: u32, bytes: u32) {
        let threshold = (self.initial_receive_window / 2).max(1);
        let Some(request) = self.unended.get_mut(id) else {
            return;
        };
        request.unannounced += bytes;
        if i64::from(request.unannounced) >= threshold {
            let increment = mem::take(&mut request.unannounced);
            self.output
                .put(|out| frame::put_window_update(out, id, increment));
        }
    }

    /// Tells the peer that no more of a request is wanted, which it has not ended (RFC 9113, section 8.1).
    fn stop_request(&mut self, id: u32) {
        self.output
            .put(|out| frame::put_reset(out, id, Code::NO_ERROR));
    }

    /// Notes that the peer has ended a stream that is ignored.
    pub(super) fn end_ignored(&mut self, id: u32) {
        self.streams.end_ignored(id);
        self.unended.remove(id);
    }

    /// Stops the requests whose time to end is over.
    pub(super) fn stop_requests(&mut self) {
        while let Some(due) = self.unended.due()
            && due <= self.clock.now
            && let Some(stream) = self.unended.take_first()
        {
            self.stop_request(stream);
        }
    }

    /// Number of bytes that wait for the socket.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// Sets as many slices as there are or have room, from the first byte on that waits for the socket. Returns their number.
    pub fn output<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.output.slices(slices)
    }

    /// Notes that the socket took this many bytes of the output. 0 says that it takes none now.
    ///
    /// Call it with 0 when the socket takes none: the [`write_timeout`](crate::Config::write_timeout) begins with the first
    /// call that leaves something.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn advance(&mut self, bytes: usize) {
        let wanted_input = self.wants_input();
        if bytes > 0 {
            self.output.advance(bytes);
            self.clock.written();
        }
        self.note_blocked(bytes > 0);
        if !wanted_input && self.wants_input() {
            // What the peer is to send may have come, and was not read.
            let now = self.clock.now;
            self.input.begin_anew(now);
            self.clock.pinged = self.clock.pinged.map(|_| now);
        }
    }

    /// Notes whether the transport keeps bytes that it has [taken](Self::advance) and cannot pass on, as TLS does while the
    /// socket has no room. They count as output that waits: for the times, not for `output_len`.
    pub fn set_unflushed(&mut self, is_unflushed: bool) {
        let is_flushed = self.clock.is_unflushed && !is_unflushed;
        if is_flushed {
            self.clock.written();
        }
        self.clock.is_unflushed = is_unflushed;
        self.note_blocked(is_flushed);
    }

    fn note_blocked(&mut self, is_progress: bool) {
        if self.output.len() == 0 && !self.clock.is_unflushed {
            self.clock.blocked = None;
        } else if is_progress || self.clock.blocked.is_none() {
            self.clock.blocked = Some(self.clock.now);
        }
    }
}

/// Fields that a message of HTTP/2 may have. Services that speak HTTP/1.1 too set others.
fn sendable(fields: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    fields.iter().filter(|(name, _)| !is_of_a_connection(name))
}

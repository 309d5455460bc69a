//! Bodies of requests: DATA and the windows of the peer (RFC 9113, sections 6.1 and 6.9).

use super::{Connection, Event, StreamState};
use crate::{
    error::{Code, Error},
    frame::{self, END_STREAM, Head, PADDED},
    settings::{connection_window, stream_window},
    stream::{Known, StreamId},
};

/// The rest of a DATA frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct DataFrame {
    stream: u32,
    /// Bytes of data that are still to come, with the padding if its length is.
    left: usize,
    /// Bytes of padding behind them.
    padding: usize,
    /// Whether the length of the padding is still to come, at the front.
    is_padded: bool,
    ends: bool,
}

impl<S: StreamState> Connection<S> {
    /// Begins a DATA frame, which is the rest of the input to be taken.
    pub(super) fn on_data_head<'a>(&mut self, head: Head) -> Result<Option<Event<'a, S>>, Error> {
        if head.stream == 0 {
            return Err(Error::protocol("DATA on stream 0"));
        }
        if head.has(PADDED) && head.length == 0 {
            return Err(frame::NO_PADDING);
        }
        let known = self.streams.know(head.stream);
        match known {
            Known::Idle => return Err(Error::protocol("DATA on a stream that has not begun")),
            Known::Closed => {
                return Err(Error::new(
                    Code::STREAM_CLOSED,
                    "DATA on a stream that is over",
                ));
            }
            Known::Open | Known::Ignored => {}
        }
        if head.length == 0 && !head.has(END_STREAM) {
            self.budgets.empty_frame(&self.config)?;
        }
        // Padding counts in both windows (RFC 9113, section 6.9.1).
        let length = head.length as i64;
        self.receive_window -= length;
        if self.receive_window < 0 {
            let reason = "more DATA than the window of the connection allows";
            return Err(Error::new(Code::FLOW_CONTROL_ERROR, reason));
        }
        self.input.data = Some(DataFrame {
            stream: head.stream,
            left: head.length,
            padding: 0,
            is_padded: head.has(PADDED),
            ends: head.has(END_STREAM),
        });
        let Some(stream) = self.streams.get_mut(head.stream) else {
            return Ok(None);
        };
        stream.receive_window -= length;
        if stream.has_request {
            return self.stream_error(head.stream, Code::STREAM_CLOSED);
        }
        if stream.receive_window < 0 {
            return self.stream_error(head.stream, Code::FLOW_CONTROL_ERROR);
        }
        Ok(None)
    }

    /// Takes bytes of the DATA frame that has begun. `None` with a frame that goes on: the input is at its end.
    pub(super) fn receive_data<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Event<'a, S>>, Error> {
        let Some(mut frame) = self.input.data.take() else {
            return Ok(None);
        };
        if frame.is_padded {
            let Some((padding, behind)) = input.split_first() else {
                self.input.data = Some(frame);
                return Ok(None);
            };
            *input = behind;
            frame.is_padded = false;
            frame.padding = usize::from(*padding);
            frame.left = frame::without_padding(frame.left - 1, *padding)?;
            if frame.left == 0 && !frame.ends {
                self.budgets.empty_frame(&self.config)?;
            }
            // Nobody reads it, so its window is given back here.
            self.take_padding(frame.stream, frame.padding + 1);
        }
        let data = take(input, &mut frame.left);
        if frame.left == 0 {
            take(input, &mut frame.padding);
        }
        let is_over = frame.left == 0 && frame.padding == 0;
        if !is_over {
            self.input.data = Some(frame);
        }
        let ends = is_over && frame.ends;
        if data.is_empty() && !ends {
            return Ok(None);
        }
        self.on_data(frame.stream, data, ends)
    }

    fn take_padding(&mut self, id: u32, bytes: usize) {
        match self.streams.get_mut(id) {
            Some(stream) => {
                stream.unread += bytes as u32;
                self.release(StreamId(id), bytes);
            }
            None => {
                self.throw_away(bytes as u32);
                self.take_unwanted(id, bytes as u32);
            }
        }
    }

    fn on_data<'a>(
        &mut self,
        id: u32,
        data: &'a [u8],
        ends: bool,
    ) -> Result<Option<Event<'a, S>>, Error> {
        let Some(stream) = self.streams.get_mut(id) else {
            if ends {
                self.end_ignored(id);
            }
            self.throw_away(data.len() as u32);
            self.take_unwanted(id, data.len() as u32);
            return Ok(None);
        };
        stream.unread += data.len() as u32;
        stream.has_request = ends;
        if let Some(left) = &mut stream.content_left {
            let rest = left.checked_sub(data.len() as u64);
            // A body of another length than it was said to have (RFC 9113, section 8.1.1).
            if rest.is_none_or(|rest| ends && rest > 0) {
                return self.malformed(id);
            }
            *left = rest.unwrap_or_default();
        }
        Ok(Some(Event::Data {
            stream: StreamId(id),
            data,
            ends,
        }))
    }

    /// Gives the peer the window back of `bytes` that were read of a stream's request, so that it may send as many more.
    /// It is told when they are half of a window.
    pub fn release(&mut self, stream: StreamId, bytes: usize) {
        let threshold = self.initial_receive_window / 2;
        let Some(open) = self.streams.get_mut(stream.0) else {
            // They were thrown away when the stream ended.
            return;
        };
        let bytes = open.unread.min(u32::try_from(bytes).unwrap_or(u32::MAX));
        open.unread -= bytes;
        if !open.has_request {
            open.unannounced += bytes;
            if i64::from(open.unannounced) >= threshold.max(1) {
                let increment = std::mem::take(&mut open.unannounced);
                open.receive_window += i64::from(increment);
                self.output
                    .put(|out| frame::put_window_update(out, stream.0, increment));
            }
        }
        self.throw_away(bytes);
    }

    /// Gives the peer the window of the connection back of `bytes` of a stream's request that nobody is going to read. It may
    /// send them on other streams, and on this one no more than it was allowed to.
    pub fn discard(&mut self, stream: StreamId, bytes: usize) {
        let Some(open) = self.streams.get_mut(stream.0) else {
            return;
        };
        let bytes = open.unread.min(u32::try_from(bytes).unwrap_or(u32::MAX));
        open.unread -= bytes;
        self.throw_away(bytes);
    }

    /// Gives the window of the connection back for bytes that nobody holds any more. The peer is told when they are half of
    /// it.
    pub(super) fn throw_away(&mut self, bytes: u32) {
        self.unannounced += bytes;
        if i64::from(self.unannounced) >= connection_window(&self.config) / 2 {
            let increment = std::mem::take(&mut self.unannounced);
            self.receive_window += i64::from(increment);
            self.output
                .put(|out| frame::put_window_update(out, 0, increment));
        }
    }

    /// Lets streams have the window of our settings, which the peer has acknowledged.
    pub(super) fn on_settings_acknowledged(&mut self) {
        if std::mem::replace(&mut self.is_acknowledged, true) {
            return;
        }
        let window = stream_window(&self.config);
        let difference = window - self.initial_receive_window;
        self.initial_receive_window = window;
        for (_, stream) in self.streams.iter_mut() {
            stream.receive_window += difference;
        }
    }
}

/// Takes up to `left` bytes from the front of `input`.
fn take<'a>(input: &mut &'a [u8], left: &mut usize) -> &'a [u8] {
    let (taken, behind) = input.split_at(input.len().min(*left));
    *input = behind;
    *left -= taken.len();
    taken
}

//! Calls: header blocks, trailers, resets and priorities (RFC 9113, sections 6.2 to 6.4 and 8).

use super::{
    Connection, Event, StreamState,
    control::Ending,
    input::{Block, append},
    responses::SHARE,
};
use crate::{
    error::{Code, Error},
    frame::{self, END_HEADERS, END_STREAM, Head, MAX_PAYLOAD, PADDED, WITH_PRIORITY},
    hpack::Decoder,
    request::HeaderList,
    stream::{Known, Stream, StreamId},
};

/// Number of frames in a header block. A peer needs one for each 16 KiB of it, and proxies now and then more.
const MAX_BLOCK_FRAMES: u32 = 64;

/// Number of bytes up to which a header list is decoded, whatever the limit. Two bytes of a block may name a field of 4,000.
const MIN_DECODED: usize = 64 << 10;

/// Number of bytes that are decoded at the cost of a frame.
const DECODED_A_FRAME: usize = 4 << 10;

impl<S: StreamState> Connection<S> {
    pub(super) fn on_headers<'a>(
        &mut self,
        head: Head,
        payload: &[u8],
    ) -> Result<Option<Event<'a, S>>, Error> {
        let mut block = unpad(head, payload)?;
        let mut depends_on_itself = false;
        if head.has(WITH_PRIORITY) {
            let (priority, behind) = block
                .split_first_chunk::<5>()
                .ok_or(Error::size("HEADERS have no room for their priority"))?;
            depends_on_itself = depends_on(*priority) == head.stream;
            block = behind;
        }
        if head.stream == 0 {
            return Err(Error::protocol("HEADERS on stream 0"));
        }
        if head.has(END_HEADERS) {
            return self.on_block(head.stream, head.has(END_STREAM), depends_on_itself, block);
        }
        self.input.block = Some(Box::new(Block {
            stream: head.stream,
            ends: head.has(END_STREAM),
            depends_on_itself,
            bytes: block.to_vec(),
            frames: 1,
            began: self.clock.now,
        }));
        Ok(None)
    }

    pub(super) fn on_continuation<'a>(
        &mut self,
        head: Head,
        payload: &[u8],
    ) -> Result<Option<Event<'a, S>>, Error> {
        let max_bytes = self.max_block();
        let Some(block) = &mut self.input.block else {
            return Err(Error::protocol("CONTINUATION without a header block"));
        };
        block.frames += 1;
        if block.frames > MAX_BLOCK_FRAMES || block.bytes.len() + payload.len() > max_bytes {
            return Err(Error::calm("a header block is too large"));
        }
        let needed = max_bytes - block.bytes.len();
        append(&mut block.bytes, payload, needed);
        if !head.has(END_HEADERS) {
            return Ok(None);
        }
        let block = self.input.block.take().expect("it was there");
        self.on_block(
            block.stream,
            block.ends,
            block.depends_on_itself,
            &block.bytes,
        )
    }

    /// Number of bytes of a header block: what its list may count, and as much for what is refused with a status.
    fn max_block(&self) -> usize {
        (self.config.max_header_list_size as usize)
            .saturating_mul(2)
            .max(MAX_PAYLOAD)
    }

    fn on_block<'a>(
        &mut self,
        id: u32,
        ends: bool,
        depends_on_itself: bool,
        block: &[u8],
    ) -> Result<Option<Event<'a, S>>, Error> {
        if id.is_multiple_of(2) {
            return Err(Error::protocol(
                "a stream with an even number is not the peer's",
            ));
        }
        let known = self.streams.know(id);
        let max_size = self.config.max_header_list_size as usize;
        let mut list = match known {
            Known::Idle => HeaderList::of_request(max_size),
            _ => HeaderList::of_trailers(max_size),
        };
        let is_wanted = match known {
            Known::Idle => !matches!(self.ending, Ending::Final(_)),
            Known::Open => true,
            Known::Ignored | Known::Closed => false,
        };
        let max_decoded = max_size.saturating_mul(4).max(MIN_DECODED);
        let mut decoded = 0;
        // Whatever comes of it: the peer's table has changed.
        self.decoder
            .get_or_insert_with(|| Box::new(Decoder::new()))
            .decode(block, |field| {
                decoded += field.size();
                if decoded > max_decoded {
                    return Err(Error::calm("a header list is too large"));
                }
                if is_wanted {
                    list.add(field);
                }
                Ok(())
            })?;
        if !is_wanted {
            let cost = u32::try_from(1 + decoded / DECODED_A_FRAME).unwrap_or(u32::MAX);
            self.budgets.idle_frames(cost, &self.config)?;
        }
        match known {
            Known::Idle => self.on_request(id, ends, depends_on_itself, list),
            Known::Open => self.on_trailers(id, ends, list),
            Known::Ignored => {
                if ends {
                    self.end_ignored(id);
                }
                Ok(None)
            }
            // It may have been left out, and then no other code will do (RFC 9113, section 5.1.1).
            Known::Closed => Err(Error::protocol(
                "HEADERS on a stream that is over, or below the last one",
            )),
        }
    }

    fn on_request<'a>(
        &mut self,
        id: u32,
        ends: bool,
        depends_on_itself: bool,
        list: HeaderList,
    ) -> Result<Option<Event<'a, S>>, Error> {
        self.streams.begin(id);
        if matches!(self.ending, Ending::Final(_)) {
            // The peer was told that it is not served, and tries it elsewhere.
            return Ok(None);
        }
        let mut stream = Stream::new(
            self.initial_window,
            self.initial_receive_window,
            SHARE as i32,
        );
        stream.has_request = ends;
        if depends_on_itself {
            return self.refuse(id, ends, Code::PROTOCOL_ERROR);
        }
        let Ok(head) = list.into_request() else {
            return self.refuse(id, ends, Code::PROTOCOL_ERROR);
        };
        if self.streams.len() >= self.config.max_concurrent_streams as usize {
            return self.refuse(id, ends, Code::REFUSED_STREAM);
        }
        stream.content_left = head.content_length;
        if ends && head.content_length.is_some_and(|length| length > 0) {
            return self.refuse(id, ends, Code::PROTOCOL_ERROR);
        }
        if head.is_truncated {
            // It is as good as refused.
            self.budgets.cancellation(&self.config)?;
        }
        self.streams.insert(id, stream);
        // Streams that are gone stay among the turns until theirs come, but not in any number.
        for waiting in [&mut self.turns, &mut self.cut_off, &mut self.unasked] {
            if waiting.len() > 2 * self.streams.len() + 16 {
                waiting.retain(|id| self.streams.get(*id).is_some());
            }
        }
        Ok(Some(Event::Request {
            stream: StreamId(id),
            request: head.request,
            ends,
            is_truncated: head.is_truncated,
        }))
    }

    /// Resets a stream that has just begun, and of which nothing is kept.
    fn refuse<'a>(
        &mut self,
        id: u32,
        ends: bool,
        code: Code,
    ) -> Result<Option<Event<'a, S>>, Error> {
        if !ends {
            self.streams.ignore(id);
        }
        self.output.put(|out| frame::put_reset(out, id, code));
        self.budgets.cancellation(&self.config)?;
        Ok(None)
    }

    fn on_trailers<'a>(
        &mut self,
        id: u32,
        ends: bool,
        list: HeaderList,
    ) -> Result<Option<Event<'a, S>>, Error> {
        let stream = self.streams.get_mut(id).expect("it is open");
        if stream.has_request {
            return self.stream_error(id, Code::STREAM_CLOSED);
        }
        stream.has_request = ends;
        let is_whole = ends && stream.content_left.unwrap_or(0) == 0;
        let (Ok(trailers), true) = (list.into_trailers(), is_whole) else {
            return self.malformed(id);
        };
        Ok(Some(Event::Trailers {
            stream: StreamId(id),
            trailers,
        }))
    }

    /// Ends a stream for a fault of the peer that is none of its request: an honest peer makes none.
    pub(super) fn stream_error<'a>(
        &mut self,
        id: u32,
        code: Code,
    ) -> Result<Option<Event<'a, S>>, Error> {
        let event = self.reset_for(id, code);
        self.budgets.fault(&self.config)?;
        Ok(event)
    }

    /// Ends a stream whose request is malformed (RFC 9113, section 8.1.1). That costs no more than a call that is cancelled,
    /// and a proxy hands on what its users send.
    pub(super) fn malformed<'a>(&mut self, id: u32) -> Result<Option<Event<'a, S>>, Error> {
        let event = self.reset_for(id, Code::PROTOCOL_ERROR);
        self.budgets.cancellation(&self.config)?;
        Ok(event)
    }

    fn reset_for<'a>(&mut self, id: u32, code: Code) -> Option<Event<'a, S>> {
        self.output.put(|out| frame::put_reset(out, id, code));
        self.streams.remove(id).map(|stream| {
            self.throw_away(stream.unread);
            Event::Reset {
                stream: StreamId(id),
                code,
                by_peer: false,
                state: stream.state,
            }
        })
    }

    pub(super) fn on_reset<'a>(
        &mut self,
        head: Head,
        payload: &[u8],
    ) -> Result<Option<Event<'a, S>>, Error> {
        let code =
            frame::read_number(payload).ok_or(Error::size("RST_STREAM is not of 4 bytes"))?;
        if head.stream == 0 {
            return Err(Error::protocol("RST_STREAM on stream 0"));
        }
        match self.streams.know(head.stream) {
            Known::Idle => Err(Error::protocol("RST_STREAM on a stream that has not begun")),
            Known::Ignored => {
                self.end_ignored(head.stream);
                Ok(None)
            }
            Known::Closed => Ok(None),
            Known::Open => {
                let stream = self.streams.remove_ended(head.stream).expect("it is open");
                self.throw_away(stream.unread);
                if !stream.has_response {
                    self.budgets.cancellation(&self.config)?;
                }
                Ok(Some(Event::Reset {
                    stream: StreamId(head.stream),
                    code: Code(code),
                    by_peer: true,
                    state: stream.state,
                }))
            }
        }
    }

    pub(super) fn on_priority<'a>(
        &mut self,
        head: Head,
        payload: &[u8],
    ) -> Result<Option<Event<'a, S>>, Error> {
        if head.stream == 0 {
            return Err(Error::protocol("PRIORITY on stream 0"));
        }
        self.budgets.idle_frame(&self.config)?;
        let is_open = self.streams.know(head.stream) == Known::Open;
        match <[u8; 5]>::try_from(payload) {
            Ok(priority) if depends_on(priority) != head.stream => Ok(None),
            Ok(_) if is_open => self.stream_error(head.stream, Code::PROTOCOL_ERROR),
            Err(_) if is_open => self.stream_error(head.stream, Code::FRAME_SIZE_ERROR),
            // Nothing is made of priorities, and a stream that is not there cannot be reset.
            _ => Ok(None),
        }
    }
}

/// Returns the payload of HEADERS without its padding.
fn unpad(head: Head, payload: &[u8]) -> Result<&[u8], Error> {
    if !head.has(PADDED) {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or(frame::NO_PADDING)?;
    frame::without_padding(rest.len(), *padding).map(|length| &rest[..length])
}

/// Returns the stream that a priority depends on (RFC 9113, section 6.3).
fn depends_on(priority: [u8; 5]) -> u32 {
    let [stream @ .., _] = priority;
    u32::from_be_bytes(stream) & 0x7fff_ffff
}

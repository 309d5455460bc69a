//! Frames in the bytes of the peer (RFC 9113, section 4).

use std::{mem, time::Instant};

use super::{Connection, Event, StreamState, bodies::DataFrame, control::Ending};
use crate::{
    error::Error,
    frame::{
        self, ACK, CONTINUATION, DATA, GOAWAY, HEAD_BYTES, HEADERS, Head, MAX_PAYLOAD, PING,
        PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    },
};

/// Number of bytes beyond [`Config::max_output`](crate::Config) that may wait for the socket before nothing more is read. They
/// are answers to what was read.
const ANSWERS: usize = 64 << 10;

/// Where the next byte of the peer belongs.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// Whether a frame has come.
    pub(super) has_begun: bool,
    /// The beginning of a frame that is no DATA.
    pub(super) partial: Vec<u8>,
    /// When it came.
    began: Option<Instant>,
    pub(super) data: Option<DataFrame>,
    pub(super) block: Option<Box<Block>>,
}

/// A header block that goes on in another frame.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) stream: u32,
    pub(super) ends: bool,
    pub(super) depends_on_itself: bool,
    pub(super) bytes: Vec<u8>,
    pub(super) frames: u32,
    pub(super) began: Instant,
}

impl Input {
    /// Returns when the frame or the header block began of which the rest is still to come. DATA is none, however slowly it
    /// comes, and of a head alone nothing is held.
    pub(super) fn began(&self) -> Option<Instant> {
        match &self.block {
            Some(block) => Some(block.began),
            None => self.began.filter(|_| self.partial.len() >= HEAD_BYTES),
        }
    }

    /// Gives what has begun its whole time from now on.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        self.began = self.began.map(|_| now);
        if let Some(block) = &mut self.block {
            block.began = now;
        }
    }
}

impl<S: StreamState> Connection<S> {
    /// Whether more of the peer's bytes are wanted. While they are not, because their answers wait for the socket, leave them
    /// where they are.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.output.len() < self.config.max_output.saturating_add(ANSWERS)
    }

    /// Takes bytes of the peer from the front of `input`, up to the first event: call it until it returns `None`, which is
    /// when all of them are taken.
    ///
    /// # Errors
    /// When the peer breaks a rule whose breach ends the connection. It is told so: write the output, and close. Bytes that
    /// come later are taken and ignored.
    pub fn receive<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a, S>>, Error> {
        if self.ending == Ending::Failed {
            *input = &[];
            return Ok(None);
        }
        if !input.is_empty() {
            self.clock.received = self.clock.now;
            self.clock.pinged = None;
        }
        let received = self.receive_frames(input);
        if let Err(error) = received {
            self.fail(error);
        }
        received
    }

    /// Ends the connection with an error, as [`receive`](Self::receive) does.
    pub fn fail(&mut self, error: Error) {
        if self.ending == Ending::Failed {
            return;
        }
        // Those above it the peer may have tried elsewhere already.
        let last = match self.ending {
            Ending::Final(last) => last,
            _ => self.streams.last(),
        };
        self.ending = Ending::Failed;
        self.input = Input::default();
        self.output
            .put(|out| frame::put_goaway(out, last, error.code(), error.reason()));
    }

    fn receive_frames<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a, S>>, Error> {
        loop {
            let event = if self.input.data.is_some() {
                let event = self.receive_data(input)?;
                if event.is_none() && self.input.data.is_some() {
                    return Ok(None);
                }
                event
            } else if self.input.partial.is_empty() {
                let Some((head, behind)) = split_head(input) else {
                    self.begin_partial(input);
                    return Ok(None);
                };
                self.check_head(&head)?;
                if head.kind == DATA {
                    *input = behind;
                    self.on_data_head(head)?
                } else if let Some((payload, behind)) = behind.split_at_checked(head.length) {
                    *input = behind;
                    self.on_frame(head, payload)?
                } else {
                    self.begin_partial(input);
                    return Ok(None);
                }
            } else {
                let Some(frame) = self.complete_partial(input)? else {
                    return Ok(None);
                };
                match split_head(&frame) {
                    Some((head, _)) if head.kind == DATA => self.on_data_head(head)?,
                    Some((head, payload)) => self.on_frame(head, payload)?,
                    None => None,
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Keeps the beginning of a frame, which is all that is left of the input.
    fn begin_partial(&mut self, input: &mut &[u8]) {
        self.input.partial.extend_from_slice(mem::take(input));
        self.input.began = Some(self.clock.now);
    }

    /// Adds to a frame that had come in part. Returns it when it is complete: of DATA only the head, since its payload is not
    /// collected.
    fn complete_partial(&mut self, input: &mut &[u8]) -> Result<Option<Vec<u8>>, Error> {
        loop {
            let partial = &mut self.input.partial;
            let head = split_head(partial);
            let needed = match head {
                None => HEAD_BYTES - partial.len(),
                Some((head, payload)) => head.length - payload.len(),
            };
            let is_head = head.is_none();
            let (taken, behind) = input.split_at(needed.min(input.len()));
            *input = behind;
            append(partial, taken, needed);
            if taken.len() < needed {
                return Ok(None);
            }
            if is_head && let Some((head, _)) = split_head(partial) {
                self.check_head(&head)?;
                if head.kind != DATA && head.length > 0 {
                    continue;
                }
            }
            return Ok(Some(mem::take(&mut self.input.partial)));
        }
    }

    /// Checks what can be told from a frame's head.
    fn check_head(&mut self, head: &Head) -> Result<(), Error> {
        if head.length > MAX_PAYLOAD {
            return Err(Error::size("a frame is longer than 16,384 bytes"));
        }
        if !mem::replace(&mut self.input.has_begun, true)
            && (head.kind != SETTINGS || head.has(ACK))
        {
            return Err(Error::protocol("the first frame is not SETTINGS"));
        }
        if let Some(block) = &self.input.block
            && (head.kind != CONTINUATION || head.stream != block.stream)
        {
            return Err(Error::protocol("a header block was interrupted"));
        }
        Ok(())
    }

    fn on_frame<'a>(&mut self, head: Head, payload: &[u8]) -> Result<Option<Event<'a, S>>, Error> {
        match head.kind {
            HEADERS => return self.on_headers(head, payload),
            CONTINUATION => return self.on_continuation(head, payload),
            RST_STREAM => return self.on_reset(head, payload),
            WINDOW_UPDATE => return self.on_window_update(head, payload),
            PRIORITY => return self.on_priority(head, payload),
            SETTINGS => self.on_settings(head, payload)?,
            PING => self.on_ping(head, payload)?,
            GOAWAY => on_goaway(head, payload)?,
            PUSH_PROMISE => return Err(Error::protocol("a client pushes nothing")),
            _ => self.budgets.idle_frame(&self.config)?,
        }
        Ok(None)
    }
}

/// Appends to what has come of something of which `needed` bytes are still to come, as if it was to have twice the room, but
/// no more than for these.
pub(super) fn append(whole: &mut Vec<u8>, bytes: &[u8], needed: usize) {
    if whole.capacity() - whole.len() < bytes.len() {
        whole.reserve_exact(whole.len().min(needed).max(bytes.len()));
    }
    whole.extend_from_slice(bytes);
}

/// Splits the head from the front of `bytes`, if it has come in full.
fn split_head(bytes: &[u8]) -> Option<(Head, &[u8])> {
    let (head, behind) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    Some((Head::read(head), behind))
}

fn on_goaway(head: Head, payload: &[u8]) -> Result<(), Error> {
    if head.stream != 0 {
        return Err(Error::protocol("GOAWAY on a stream"));
    }
    if payload.len() < 8 {
        return Err(Error::size("GOAWAY is shorter than 8 bytes"));
    }
    // It is about streams that we begin, and we begin none.
    Ok(())
}

//! Frames: their heads, and the small ones that are written (RFC 9113, sections 4 and 6).

use crate::error::{Code, Error};

pub(crate) const DATA: u8 = 0x0;
pub(crate) const HEADERS: u8 = 0x1;
pub(crate) const PRIORITY: u8 = 0x2;
pub(crate) const RST_STREAM: u8 = 0x3;
pub(crate) const SETTINGS: u8 = 0x4;
pub(crate) const PUSH_PROMISE: u8 = 0x5;
pub(crate) const PING: u8 = 0x6;
pub(crate) const GOAWAY: u8 = 0x7;
pub(crate) const WINDOW_UPDATE: u8 = 0x8;
pub(crate) const CONTINUATION: u8 = 0x9;

/// Flag of DATA and HEADERS: the stream ends with it.
pub(crate) const END_STREAM: u8 = 0x1;
/// Flag of SETTINGS and PING: it is the answer to one.
pub(crate) const ACK: u8 = 0x1;
/// Flag of HEADERS and CONTINUATION: the block ends with it.
pub(crate) const END_HEADERS: u8 = 0x4;
/// Flag of DATA and HEADERS.
pub(crate) const PADDED: u8 = 0x8;
/// Flag of HEADERS: it begins with a priority.
pub(crate) const WITH_PRIORITY: u8 = 0x20;

/// Length of a head.
pub(crate) const HEAD_BYTES: usize = 9;

/// Length up to which every peer takes a frame's payload, and up to which we do (RFC 9113, section 6.5.2).
pub(crate) const MAX_PAYLOAD: usize = 16_384;

/// Breach of a padded frame that is empty.
pub(crate) const NO_PADDING: Error =
    Error::size("a padded frame has no room for the length of its padding");

/// Returns how many of this many bytes behind the length of a padding are not of the padding (RFC 9113, section 6.1).
pub(crate) fn without_padding(length: usize, padding: u8) -> Result<usize, Error> {
    length
        .checked_sub(usize::from(padding))
        .ok_or(Error::protocol("padding is longer than its frame"))
}

/// Head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    pub(crate) fn read(bytes: &[u8; HEAD_BYTES]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            // The highest bit is reserved, and ignored (RFC 9113, section 4.1).
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        }
    }

    pub(crate) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let [_, a, b, c] = (self.length as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        out.extend_from_slice(&[a, b, c, self.kind, self.flags, d, e, f, g]);
    }
}

/// Reads a payload of four bytes.
pub(crate) fn read_number(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_be_bytes)
}

fn put_head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    Head {
        length,
        kind,
        flags,
        stream,
    }
    .put(out);
}

pub(crate) fn put_data_head(out: &mut Vec<u8>, length: usize, flags: u8, stream: u32) {
    put_head(out, length, DATA, flags, stream);
}

pub(crate) fn put_reset(out: &mut Vec<u8>, stream: u32, code: Code) {
    put_head(out, 4, RST_STREAM, 0, stream);
    out.extend_from_slice(&code.0.to_be_bytes());
}

pub(crate) fn put_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    put_head(out, 4, WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&increment.to_be_bytes());
}

pub(crate) fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    put_head(out, settings.len() * 6, SETTINGS, 0, 0);
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

pub(crate) fn put_settings_ack(out: &mut Vec<u8>) {
    put_head(out, 0, SETTINGS, ACK, 0);
}

pub(crate) fn put_ping(out: &mut Vec<u8>, flags: u8, payload: [u8; 8]) {
    put_head(out, 8, PING, flags, 0);
    out.extend_from_slice(&payload);
}

pub(crate) fn put_goaway(out: &mut Vec<u8>, last_stream: u32, code: Code, reason: &str) {
    put_head(out, 8 + reason.len(), GOAWAY, 0, 0);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Puts a header block into a frame, or into several if it is longer than one.
pub(crate) fn put_block(out: &mut Vec<u8>, block: &[u8], stream: u32, ends: bool) {
    let ends_stream = if ends { END_STREAM } else { 0 };
    let (first, mut rest) = block.split_at(block.len().min(MAX_PAYLOAD));
    let ends_block = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
    put_head(
        out,
        first.len(),
        HEADERS,
        ends_stream | ends_block(rest),
        stream,
    );
    out.extend_from_slice(first);
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        put_head(out, piece.len(), CONTINUATION, ends_block(behind), stream);
        out.extend_from_slice(piece);
        rest = behind;
    }
}

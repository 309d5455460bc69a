//! Frames of HTTP/2 (RFC 9113, sections 4 and 6), as a peer writes and reads them.

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const WITH_PRIORITY: u8 = 0x20;

/// Bytes of a frame's payload that every peer takes.
pub(crate) const MAX_PAYLOAD: usize = 16_384;

/// Largest size of a window.
pub(crate) const LARGEST_WINDOW: i64 = (1 << 31) - 1;

/// Head of a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    /// Splits a head from the front of `bytes`, if it is there in full.
    pub(crate) fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let ([a, b, c, kind, flags, stream @ ..], behind) = bytes.split_first_chunk::<9>()?;
        let head = Self {
            length: u32::from_be_bytes([0, *a, *b, *c]) as usize,
            kind: *kind,
            flags: *flags,
            stream: u32::from_be_bytes(*stream) & 0x7fff_ffff,
        };
        Some((head, behind))
    }

    pub(crate) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("it is short");
    let [_, a, b, c] = length.to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    [&[a, b, c, kind, flags, d, e, f, g], payload].concat()
}

/// Reads a payload of four bytes.
pub(crate) fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload.try_into().expect("of 4 bytes"))
}

/// A field of a header block that enters no table, and is not compressed.
pub(crate) fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut block = vec![0];
    for part in [name, value] {
        match u8::try_from(part.len()) {
            Ok(length @ ..=126) => block.push(length),
            _ => {
                block.push(127);
                let mut rest = part.len() - 127;
                while rest >= 128 {
                    block.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                block.push(rest as u8);
            }
        }
        block.extend_from_slice(part);
    }
    block
}

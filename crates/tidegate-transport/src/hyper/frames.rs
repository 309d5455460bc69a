//! The heads of the frames that pass in one direction of a connection.

/// Bytes of a frame before its payload.
const HEAD: usize = 9;

/// Kinds of frames that somebody asks about (RFC 9113, section 6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

/// Flag of DATA and HEADERS: nothing follows on the stream.
pub(crate) const END_STREAM: u8 = 1;

/// A frame without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    /// First four bytes of the payload as a number: the code of RST_STREAM, the last stream of GOAWAY. 0 for other kinds.
    pub(crate) number: u32,
}

/// Finds the frames in the bytes of one direction, whatever pieces they come in. It keeps no payload.
#[derive(Debug)]
pub(crate) struct Scanner {
    /// Head of the frame that is being read, and behind it the number of its payload.
    head: [u8; HEAD + 4],
    /// Number of bytes of `head` that are read.
    read: usize,
    /// Number of bytes to pass over until the next frame.
    skip: usize,
}

impl Scanner {
    /// Makes a scanner of the bytes behind the first `skip` ones.
    pub(crate) const fn behind(skip: usize) -> Self {
        Self {
            head: [0; HEAD + 4],
            read: 0,
            skip,
        }
    }

    /// Whether the next byte is the first of a frame.
    pub(crate) const fn is_between_frames(&self) -> bool {
        self.read == 0 && self.skip == 0
    }

    /// Tells each frame whose head, and number if it has one, ends in these bytes.
    pub(crate) fn scan(&mut self, mut bytes: &[u8], mut found: impl FnMut(Head)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = self.skip.min(bytes.len());
                self.skip -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let wanted = self.wanted();
            let taken = (wanted - self.read).min(bytes.len());
            self.head[self.read..self.read + taken].copy_from_slice(&bytes[..taken]);
            self.read += taken;
            bytes = &bytes[taken..];
            // The head may ask for the number behind it.
            if self.read == self.wanted() {
                found(self.complete());
            }
        }
    }

    /// Number of bytes of the head, with the number if this kind has one.
    const fn wanted(&self) -> usize {
        let has_number = self.read >= HEAD
            && matches!(self.head[3], RST_STREAM | GOAWAY)
            && self.payload_len() >= 4;
        if has_number { HEAD + 4 } else { HEAD }
    }

    const fn payload_len(&self) -> usize {
        let [high, middle, low, ..] = self.head;
        u32::from_be_bytes([0, high, middle, low]) as usize
    }

    /// Returns the head, and goes on to the next frame.
    fn complete(&mut self) -> Head {
        let number_at = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&self.head[at..at + 4]);
            u32::from_be_bytes(bytes)
        };
        let has_number = self.read > HEAD;
        let head = Head {
            kind: self.head[3],
            flags: self.head[4],
            // The first bit is reserved.
            stream: number_at(5) & 0x7FFF_FFFF,
            number: if has_number { number_at(HEAD) } else { 0 },
        };
        self.skip = self.payload_len() + HEAD - self.read;
        self.read = 0;
        head
    }
}

/// Returns the bytes of GOAWAY, with a code and a text for people.
pub(crate) fn goaway(last_stream: u32, code: u32, text: &str) -> Vec<u8> {
    let length = u32::try_from(8 + text.len()).unwrap_or(8);
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[GOAWAY, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&last_stream.to_be_bytes());
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap();
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn frames_are_found_in_pieces_of_any_size() {
        let bytes = [
            b"preface".to_vec(),
            frame(HEADERS, 4, 1, b"block"),
            frame(DATA, END_STREAM, 1, &[RST_STREAM; 300]),
            frame(RST_STREAM, 0, 3, &8_u32.to_be_bytes()),
            // Of a wrong length, which is for others to find.
            frame(RST_STREAM, 0, 5, b"abc"),
            frame(RST_STREAM, 0, 5, b"abcdef"),
            frame(DATA, 0, 7, b""),
            goaway(9, 11, "why"),
            frame(WINDOW_UPDATE, 0, 0x8000_0007, b"abcd"),
        ]
        .concat();
        let head = |kind, flags, stream, number| Head {
            kind,
            flags,
            stream,
            number,
        };
        let expected = [
            head(HEADERS, 4, 1, 0),
            head(DATA, END_STREAM, 1, 0),
            head(RST_STREAM, 0, 3, 8),
            head(RST_STREAM, 0, 5, 0),
            head(RST_STREAM, 0, 5, u32::from_be_bytes(*b"abcd")),
            head(DATA, 0, 7, 0),
            head(GOAWAY, 0, 0, 9),
            head(WINDOW_UPDATE, 0, 7, 0),
        ];
        for size in 1..=bytes.len() {
            let mut scanner = Scanner::behind(7);
            let mut found = Vec::new();
            for piece in bytes.chunks(size) {
                scanner.scan(piece, |head| found.push(head));
            }
            assert_eq!(found, expected, "in pieces of {size}");
            assert!(scanner.is_between_frames());
        }
    }
}

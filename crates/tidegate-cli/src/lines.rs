//! Lines of arbitrary bytes, out of chunks of them.

use bytes::{Bytes, BytesMut};

/// Makes lines of chunks, and strips their endings, LF or CR LF. The last line needs none. Holds one chunk and one line.
pub(crate) struct Lines {
    buffer: BytesMut,
    /// Bytes of the buffer that are known to have no LF.
    searched: usize,
    /// The longest line in bytes, without its ending.
    limit: usize,
    /// Lines that were returned.
    number: u64,
    /// Whether the rest of a line that was too long is still to come.
    is_skipping: bool,
    has_ended: bool,
}

/// A line, or what became of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Whole(Bytes),
    /// The line is longer than the limit, and is left out.
    TooLong,
}

impl Lines {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            searched: 0,
            limit,
            number: 0,
            is_skipping: false,
            has_ended: false,
        }
    }

    /// Adds bytes of the input; none at its end.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.has_ended |= chunk.is_empty();
        self.buffer.extend_from_slice(chunk);
    }

    /// Whether the input has ended and every line of it was returned.
    pub(crate) fn is_done(&self) -> bool {
        self.has_ended && self.buffer.is_empty()
    }

    /// Returns the next line that is whole, or the last one at the end of the input.
    pub(crate) fn next(&mut self) -> Option<Line> {
        loop {
            let unsearched = &self.buffer[self.searched..];
            let end = unsearched.iter().position(|byte| *byte == b'\n');
            let (line, is_last) = match end {
                Some(end) => (self.buffer.split_to(self.searched + end + 1), false),
                None if self.has_ended && !self.buffer.is_empty() => (self.buffer.split(), true),
                None => return self.too_long(),
            };
            self.searched = 0;
            if std::mem::take(&mut self.is_skipping) {
                continue;
            }
            self.number += 1;
            let line = match is_last {
                true => line.freeze(),
                false => without_ending(line.freeze()),
            };
            return Some(match line.len() > self.limit {
                true => Line::TooLong,
                false => Line::Whole(line),
            });
        }
    }

    /// Returns the number of the line that was returned last; the first has number 1.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Returns how many lines have begun, those that were not returned included.
    pub(crate) fn begun(&self) -> u64 {
        let ends = self.buffer.iter().filter(|byte| **byte == b'\n').count();
        let has_rest = self.buffer.last().is_some_and(|last| *last != b'\n');
        let unreturned = ends as u64 + u64::from(has_rest);
        // The rest of a line that was returned as too long is none of its own.
        let is_old = self.is_skipping && !self.buffer.is_empty();
        self.number + unreturned - u64::from(is_old)
    }

    /// Drops what there is of a line that is already too long, whose end may never come.
    fn too_long(&mut self) -> Option<Line> {
        // One more for a CR, which may belong to the ending.
        if self.buffer.len() <= self.limit + 1 {
            self.searched = self.buffer.len();
            if self.is_skipping {
                self.buffer.clear();
                self.searched = 0;
            }
            return None;
        }
        self.buffer.clear();
        self.searched = 0;
        if self.is_skipping {
            return None;
        }
        self.is_skipping = true;
        self.number += 1;
        Some(Line::TooLong)
    }
}

fn without_ending(mut line: Bytes) -> Bytes {
    line.truncate(line.len() - 1);
    if line.last() == Some(&b'\r') {
        line.truncate(line.len() - 1);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of `input`, which comes in chunks of `size`.
    fn read(input: &[u8], size: usize, limit: usize) -> Vec<Line> {
        let mut lines = Lines::new(limit);
        let mut all = Vec::new();
        for chunk in input.chunks(size).chain([&[][..]]) {
            lines.push(chunk);
            while let Some(line) = lines.next() {
                all.push(line);
                assert_eq!(lines.number(), all.len() as u64);
            }
            assert!(lines.buffer.len() <= limit + 1, "it holds too much");
        }
        assert!(lines.is_done());
        assert_eq!(lines.begun(), all.len() as u64);
        all
    }

    fn whole(line: &'static [u8]) -> Line {
        Line::Whole(Bytes::from_static(line))
    }

    #[test]
    fn lines_end_in_lf_or_cr_lf_or_with_the_input() {
        let input = b"a\nb\r\n\n\r\nc\rd\r\r\n\xff\0";
        let expected: [&[u8]; 6] = [b"a", b"b", b"", b"", b"c\rd\r", b"\xff\0"];
        for size in [1, 2, 3, 100] {
            assert_eq!(read(input, size, 100), expected.map(whole), "{size}");
        }
    }

    #[test]
    fn no_input_is_no_line() {
        assert!(read(b"", 10, 100).is_empty());
        assert_eq!(read(b"\n", 10, 100), [whole(b"")]);
    }

    #[test]
    fn line_beyond_the_limit_is_left_out_and_the_rest_goes_on() {
        for size in [1, 2, 3, 7, 100] {
            let lines = read(b"12345\n123456\r\n12345\r\nx\n123456789", size, 5);
            let expected = [whole(b"12345"), Line::TooLong, whole(b"12345"), whole(b"x")];
            assert_eq!(lines[..4], expected, "{size}");
            assert_eq!(lines[4..], [Line::TooLong], "{size}");
        }
    }

    #[test]
    fn lines_that_were_not_returned_are_counted() {
        let mut lines = Lines::new(5);
        lines.push(b"a\nb\nc");
        assert_eq!((lines.number(), lines.begun()), (0, 3));
        assert_eq!(lines.next(), Some(whole(b"a")));
        assert_eq!((lines.number(), lines.begun()), (1, 3));
        lines.next();
        lines.push(b"23456789");
        assert_eq!(lines.next(), Some(Line::TooLong));
        assert_eq!((lines.number(), lines.begun()), (3, 3));
        lines.push(b"rest");
        assert_eq!(lines.begun(), 3);
        lines.push(b"\nd");
        assert_eq!(lines.begun(), 4);
    }
}

//! Reads lines of arbitrary bytes.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// Reads lines and strips their endings, LF or CR LF. The last line needs none.
pub(crate) struct Lines<R> {
    input: R,
    /// The longest line in bytes, ending included.
    limit: u64,
    /// Lines read so far.
    number: u64,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(crate) fn new(input: R, limit: u64) -> Self {
        Self {
            input,
            limit,
            number: 0,
        }
    }

    /// Returns the next line, which may be empty; `None` at the end of the input. Not cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut input = (&mut self.input).take(self.limit);
        if input.read_until(b'\n', &mut line).await? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if line.pop_if(|last| *last == b'\n').is_some() {
            line.pop_if(|last| *last == b'\r');
        } else if line.len() as u64 == self.limit {
            let (number, limit) = (self.number, self.limit);
            let message = format!("line {number} is longer than {limit} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(input: &[u8], limit: u64) -> io::Result<Vec<Vec<u8>>> {
        let mut lines = Lines::new(input, limit);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await? {
            all.push(line);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn lines_end_in_lf_or_cr_lf_or_with_the_input() {
        let lines = read(b"a\nb\r\n\n\r\nc\rd\r\r\n\xff\0", 100).await.unwrap();
        let expected: [&[u8]; 6] = [b"a", b"b", b"", b"", b"c\rd\r", b"\xff\0"];
        assert_eq!(lines, expected);
    }

    #[tokio::test]
    async fn no_input_is_no_line() {
        assert!(read(b"", 100).await.unwrap().is_empty());
        assert_eq!(read(b"\n", 100).await.unwrap(), [b""]);
    }

    #[tokio::test]
    async fn an_endless_line_is_an_error_at_the_limit() {
        assert_eq!(read(b"1234\n1234", 5).await.unwrap().len(), 2);
        let error = read(b"1\n12345678", 5).await.unwrap_err();
        assert_eq!(error.to_string(), "line 2 is longer than 5 bytes");
    }
}

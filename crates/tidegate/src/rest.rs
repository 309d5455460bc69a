//! The rest of a message that is larger than a chunk.

use std::mem;

use bytes::Bytes;
use tidegate_core::{Payload, Sending};

/// A payload that has its encoding in shared memory.
pub(crate) trait Encoding: Payload {
    /// Returns the encoding.
    fn encoding(&self) -> &Bytes;
}

/// Rest of a message of which the first chunk has gone, and what follows it in the stream.
#[derive(Debug)]
pub(crate) struct Rest {
    /// Part of the shared encoding that is still to be sent.
    encoding: Bytes,
    /// Bytes that follow it.
    tail: Vec<u8>,
}

impl Rest {
    /// Makes the rest of a message: of `encoding`, and of `tail` behind it.
    pub(crate) const fn new(encoding: Bytes, tail: Vec<u8>) -> Self {
        Self { encoding, tail }
    }

    /// Takes the next chunk, from the `rest` of a stream. `None` when there is no rest.
    ///
    /// Chunks of the encoding are slices of its memory, or `copies`, of at most `max` bytes. Between calls there is always something left.
    pub(crate) fn next(rest: &mut Option<Box<Self>>, max: usize, copies: bool) -> Option<Bytes> {
        let parts = rest.as_mut()?;
        let chunk = if parts.encoding.is_empty() {
            mem::take(&mut parts.tail).into()
        } else {
            let len = parts.encoding.len().min(max);
            let slice = parts.encoding.split_to(len);
            match copies {
                true => Bytes::copy_from_slice(&slice),
                false => slice,
            }
        };
        if parts.encoding.is_empty() && parts.tail.is_empty() {
            *rest = None;
        }
        Some(chunk)
    }

    /// Returns the bytes behind the encoding, to append what follows the message.
    pub(crate) const fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }
}

/// Returns the encoding of an event that is being sent. It counts as that until the last slice of it is dropped,
/// wherever that is by then.
pub(crate) fn sent_bytes<P: Encoding>(sending: Sending<P>) -> Bytes {
    struct Sent<P>(Sending<P>);

    impl<P: Encoding> AsRef<[u8]> for Sent<P> {
        fn as_ref(&self) -> &[u8] {
            self.0.payload().encoding()
        }
    }

    Bytes::from_owner(Sent(sending))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::CHUNK_BYTES;

    #[test]
    fn rest_is_taken_in_chunks_and_then_its_tail() {
        let encoding = Bytes::from(vec![7; 2 * CHUNK_BYTES + 1]);
        let mut rest = Some(Box::new(Rest::new(encoding, b"tail".to_vec())));
        let taken: Vec<_> =
            std::iter::from_fn(|| Rest::next(&mut rest, CHUNK_BYTES, false)).collect();
        let lens: Vec<_> = taken.iter().map(Bytes::len).collect();
        assert_eq!(lens, [CHUNK_BYTES, CHUNK_BYTES, 1, 4]);
        assert_eq!(taken[3], "tail");
        assert!(rest.is_none());
    }

    #[test]
    fn rest_without_a_tail_is_gone_with_its_last_chunk() {
        let mut rest = Some(Box::new(Rest::new(Bytes::from_static(b"0"), Vec::new())));
        assert_eq!(Rest::next(&mut rest, CHUNK_BYTES, false).unwrap(), "0");
        assert!(rest.is_none());
    }

    #[test]
    fn copied_chunk_keeps_nothing_of_the_encoding() {
        let encoding = Bytes::from(vec![7; 2 * CHUNK_BYTES]);
        let mut rest = Some(Box::new(Rest::new(encoding.clone(), Vec::new())));
        let copied = Rest::next(&mut rest, CHUNK_BYTES, true).unwrap();
        assert_eq!(copied, encoding[..CHUNK_BYTES]);
        drop(rest);
        assert!(encoding.is_unique());
    }
}

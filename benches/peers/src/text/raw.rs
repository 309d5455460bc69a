//! The protocol of the raw server: payloads with a length before each.

use tidegate_bench::{Error, target::Outgoing};

use super::{Message, Protocol, put_payload};

/// The first byte of a subscriber.
const SUBSCRIBER: [u8; 1] = *b"S";

/// The first byte of a publisher.
pub(crate) const PUBLISHER: [u8; 1] = *b"P";

/// The confirmation of a subscription: an event without a payload.
pub(crate) const CONFIRMATION: [u8; 4] = [0; 4];

/// The raw protocol.
#[derive(Debug, Clone)]
pub(crate) struct Raw;

impl Protocol for Raw {
    const ANSWERS: bool = false;

    fn subscribe(&self, _topic: &str) -> Vec<u8> {
        SUBSCRIBER.to_vec()
    }

    fn introduce(&self) -> Vec<u8> {
        PUBLISHER.to_vec()
    }

    fn put(&self, out: &mut Vec<u8>, event: &Outgoing<'_>) {
        out.extend_from_slice(&(event.size as u32).to_le_bytes());
        put_payload(out, event);
    }

    fn farewell(&self) -> Vec<u8> {
        Vec::new()
    }

    fn message<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Message<'a>, usize)>, Error> {
        let Some((size, rest)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        let size = u32::from_le_bytes(*size) as usize;
        let message = match rest.get(..size) {
            Some([]) => Message::Confirmed,
            Some(payload) => Message::Event(payload),
            None => return Ok(None),
        };
        Ok(Some((message, 4 + size)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found() {
        let bytes = b"\0\0\0\0\x02\0\0\0xy\x05\0\0\0abc";
        assert_eq!(Raw.message(bytes).unwrap(), Some((Message::Confirmed, 4)));
        assert_eq!(
            Raw.message(&bytes[4..]).unwrap(),
            Some((Message::Event(b"xy"), 6))
        );
        assert_eq!(Raw.message(&bytes[10..]).unwrap(), None);
        assert_eq!(Raw.message(b"\0").unwrap(), None);
    }
}

//! Values as gRPC messages, in chunks for the transport.
//!
//! A message is a prefix, the shared encoding of the value, and the position behind it. Several that fit go
//! into one chunk. Of one that does not fit, the first chunk is a copy of a short beginning, and the others are
//! slices of the shared encoding, cut at the same places for every subscriber.

use std::{mem, sync::Arc};

use bytes::{BufMut, Bytes};
use prost::Message as _;
use tidegate_core::Event;

use super::{
    shared::{EncodedValue, Shared},
    value::Value,
};
use crate::framing::{CHUNK_BYTES, PREFIX, write_prefix};

/// Rest of a message that is larger than a chunk.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Slice of the shared encoding that is still to be sent.
    encoding: Bytes,
    /// The position, which goes after the encoding.
    position: Bytes,
}

impl Rest {
    /// Takes the next chunk of it, or `None` when all of it was taken.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        if self.encoding.is_empty() {
            return Some(mem::take(&mut self.position)).filter(|position| !position.is_empty());
        }
        let len = self.encoding.len().min(CHUNK_BYTES);
        Some(self.encoding.split_to(len))
    }
}

/// Writes a message for each event, and returns the chunk and the rest. Several events fit into a chunk; of a
/// single one that does not, only the beginning is written.
pub(super) fn write_messages<T: Value>(events: &[Arc<Event<EncodedValue<T>>>]) -> (Bytes, Rest) {
    if let [event] = events
        && message_len(event) > CHUNK_BYTES - PREFIX
    {
        return write_first_chunk(event);
    }
    let messages = events.iter().map(|event| PREFIX + message_len(event)).sum();
    let mut out = Vec::with_capacity(messages);
    for event in events {
        write_prefix(message_len(event), &mut out);
        out.put_slice(event.payload().encoding());
        event.payload().position().write(event.sequence(), &mut out);
    }
    (out.into(), Rest::default())
}

/// Appends one message.
pub(super) fn write_message<T: Value>(message: &Shared<T>, out: &mut Vec<u8>) {
    let len = message.encoded_len();
    out.reserve(PREFIX + len);
    write_prefix(len, out);
    message.encode_raw(out);
}

/// Writes the first chunk of a large event: as much of the encoding as leaves whole chunks for the rest.
fn write_first_chunk<T: Value>(event: &Event<EncodedValue<T>>) -> (Bytes, Rest) {
    let body = event.payload();
    let encoding = body.encoding();
    let copied = (encoding.len() % CHUNK_BYTES).min(CHUNK_BYTES - PREFIX);
    let mut out = Vec::with_capacity(PREFIX + copied);
    write_prefix(message_len(event), &mut out);
    out.put_slice(&encoding[..copied]);
    let mut position = Vec::new();
    body.position().write(event.sequence(), &mut position);
    let rest = Rest {
        encoding: encoding.slice(copied..),
        position: position.into(),
    };
    (out.into(), rest)
}

/// Length of the message of an event, with its position.
fn message_len<T: Value>(event: &Event<EncodedValue<T>>) -> usize {
    let body = event.payload();
    body.encoding().len() + body.position().len(event.sequence())
}

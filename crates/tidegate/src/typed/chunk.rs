//! Values as gRPC messages, in chunks for the transport.
//!
//! A message is a prefix, the shared encoding of the value, and the position behind it. Several that fit go
//! into one chunk. Of one that does not fit, the first chunk is a copy of a short beginning, and the others are
//! slices of the shared encoding, cut at the same places for every subscriber.

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use prost::Message as _;
use tidegate_core::Event;

use super::{
    shared::{EncodedValue, Shared},
    value::Value,
};
use crate::{
    framing::{CHUNK_BYTES, PREFIX, write_prefix},
    rest::{Encoding as _, Rest},
};

/// A chunk, and the rest of its message where that is larger than a chunk.
pub(super) type FirstChunk = (Bytes, Option<Box<Rest>>);

/// Writes a message for each event, and returns the chunk and the rest. Several events fit into a chunk; of a
/// single one that does not, only the beginning is written, and `send` returns its encoding for the rest.
pub(super) fn write_messages<T: Value>(
    events: &[Arc<Event<EncodedValue<T>>>],
    send: impl FnOnce(&Arc<Event<EncodedValue<T>>>) -> Bytes,
) -> FirstChunk {
    if let [event] = events
        && message_len(event) > CHUNK_BYTES - PREFIX
    {
        let mut out = Vec::new();
        let mut position = Vec::new();
        let body = event.payload();
        body.position().write(event.sequence(), &mut position);
        let rest = write_beginning(&send(event), position, &mut out);
        return (out.into(), Some(rest));
    }
    let messages = events.iter().map(|event| PREFIX + message_len(event)).sum();
    let mut out = Vec::with_capacity(messages);
    for event in events {
        write_prefix(message_len(event), &mut out);
        out.put_slice(event.payload().encoding());
        event.payload().position().write(event.sequence(), &mut out);
    }
    (out.into(), None)
}

/// Appends one message to a chunk. Of one that is larger than a chunk only the beginning is written, and the rest is
/// returned; `send` returns the encoding of an event for that.
pub(super) fn write_message<T: Value>(
    message: &Shared<T>,
    out: &mut Vec<u8>,
    send: impl FnOnce(&Arc<Event<EncodedValue<T>>>) -> Bytes,
) -> Option<Box<Rest>> {
    let len = message.encoded_len();
    if len <= CHUNK_BYTES - PREFIX {
        out.reserve(PREFIX + len);
        write_prefix(len, out);
        message.encode_raw(out);
        return None;
    }
    let mut position = Vec::new();
    let encoding = match message.event() {
        Some(event) => {
            let body = event.payload();
            body.position().write(event.sequence(), &mut position);
            send(event)
        }
        None => message.encoding().clone(),
    };
    Some(write_beginning(&encoding, position, out))
}

/// Writes the beginning of a large message into what is left of a chunk: as much of the encoding as leaves whole chunks
/// for the rest.
fn write_beginning(encoding: &Bytes, position: Vec<u8>, out: &mut Vec<u8>) -> Box<Rest> {
    let room = CHUNK_BYTES.saturating_sub(out.len() + PREFIX);
    let copied = (encoding.len() % CHUNK_BYTES).min(room);
    out.reserve(PREFIX + copied);
    write_prefix(encoding.len() + position.len(), out);
    out.put_slice(&encoding[..copied]);
    Box::new(Rest::new(encoding.slice(copied..), position))
}

/// Length of the message of an event, with its position.
fn message_len<T: Value>(event: &Event<EncodedValue<T>>) -> usize {
    let body = event.payload();
    body.encoding().len() + body.position().len(event.sequence())
}

//! The bytes of `SubscribeResponse` messages.
//!
//! An event is encoded once, when it is published, without its sequence, which is not known then. A batch is a
//! small header, and for each event a tag, a length, the sequence, and the shared bytes. Protobuf lets the
//! fields of a message come in any order, so every client decodes it as a normal message.

use bytes::{BufMut, Bytes};
use prost::{Message as _, encoding::encode_varint, encoding::encoded_len_varint};
use tidegate_core::{Batch, Event, Payload};
use tidegate_proto::v1::{SubscribeResponse, subscribe_response::Response};

use crate::{
    framing::{PREFIX, write_prefix},
    rest::Encoding,
};

// Tags of the fields that are written here: number and wire type.
const RESPONSE_BATCH: u8 = 2 << 3 | 2;
const BATCH_EVENTS: u8 = 1 << 3 | 2;
const BATCH_FIRST_INDEX: u8 = 2 << 3;
const EVENT_SEQUENCE: u8 = 1 << 3;

/// Maximum number of bytes that [`write_batch`] writes besides the events: the prefix, the tag and length of
/// the batch, and the index.
pub(super) const BATCH_OVERHEAD: usize = PREFIX + (1 + 5) + (1 + 10);

/// Maximum number of bytes that an event takes besides its own: tag, length, and the sequence with its tag.
pub(super) const EVENT_OVERHEAD: usize = (1 + 5) + (1 + 10);

/// Maximum number of bytes that a response takes besides a single event in it. gRPC's prefix is no part of the message.
pub(super) const RESPONSE_OVERHEAD: usize = BATCH_OVERHEAD - PREFIX + EVENT_OVERHEAD;

/// An event of `tidegate.v1` in its encoded form, without the sequence. [`encode`](crate::encode) makes it.
/// Cheap to clone: clones share the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded(Bytes);

impl Encoded {
    /// Wraps the encoded form of a [`proto::Event`](crate::proto::Event) whose sequence is 0.
    pub(super) const fn new(event: Bytes) -> Self {
        Self(event)
    }

    /// Returns the encoded event without its sequence: topic, payload, key, attributes and time.
    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl Payload for Encoded {
    fn size(&self) -> usize {
        self.0.len()
    }
}

impl Encoding for Encoded {
    fn encoding(&self) -> &Bytes {
        &self.0
    }
}

/// Appends `response` to `out` as one gRPC message.
pub(super) fn write_response(response: Response, out: &mut Vec<u8>) {
    let response = SubscribeResponse {
        response: Some(response),
    };
    write_prefix(response.encoded_len(), out);
    response.encode(out).expect("a vector has room");
}

/// Appends the events of `batch` to `out` as one gRPC message of at most `max_bytes` bytes.
///
/// Several events must fit. Of a single event that does not fit only the beginning is written, and its length is
/// returned: the rest of the event's shared bytes is to be sent next, in pieces of `max_bytes` bytes.
pub(super) fn write_batch(
    batch: &Batch<Encoded>,
    max_bytes: usize,
    out: &mut Vec<u8>,
) -> Option<usize> {
    let end = out.len() + max_bytes;
    let index_len = if batch.first_index == 0 {
        0
    } else {
        1 + encoded_len_varint(batch.first_index)
    };
    let events_len: usize = batch
        .events
        .iter()
        .map(|event| field_len(event_len(event)))
        .sum();
    let batch_len = index_len + events_len;
    let message_len = field_len(batch_len);
    out.reserve(if PREFIX + message_len <= max_bytes {
        PREFIX + message_len
    } else {
        BATCH_OVERHEAD + EVENT_OVERHEAD
    });
    write_prefix(message_len, out);
    write_field(RESPONSE_BATCH, batch_len, out);
    if batch.first_index != 0 {
        out.put_u8(BATCH_FIRST_INDEX);
        encode_varint(batch.first_index, out);
    }
    let mut cut = None;
    for event in &batch.events {
        write_field(BATCH_EVENTS, event_len(event), out);
        out.put_u8(EVENT_SEQUENCE);
        encode_varint(event.sequence(), out);
        let bytes = event.payload().as_bytes();
        let room = end.saturating_sub(out.len());
        if bytes.len() > room {
            debug_assert_eq!(batch.events.len(), 1, "only a single event is cut");
            // The copy is short, and the rest is whole chunks of the memory of the event, cut at the same places
            // for every subscriber whose windows admit whole chunks.
            let copied = (bytes.len() % max_bytes).min(room);
            out.put_slice(&bytes[..copied]);
            cut = Some(copied);
        } else {
            out.put_slice(bytes);
        }
    }
    cut
}

/// Length of an event with its sequence.
fn event_len(event: &Event<Encoded>) -> usize {
    1 + encoded_len_varint(event.sequence()) + event.payload().size()
}

/// Length of a field of `len` bytes, with its tag and length.
fn field_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// Appends the tag and length of a field of `len` bytes.
fn write_field(tag: u8, len: usize, out: &mut Vec<u8>) {
    out.put_u8(tag);
    encode_varint(len as u64, out);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;
    use tidegate_core::{
        ClientId, Filter, Hub, HubConfig, NewEvent, Room, SubscribeOptions, Topic,
    };
    use tidegate_proto::v1 as proto;

    use super::*;
    use crate::{framing::CHUNK_BYTES, service::config::PublishLimits};

    fn encoded(event: proto::NewEvent) -> NewEvent<Encoded> {
        let topic = Topic::new(&event.topic).unwrap();
        let event = proto::Event {
            sequence: 0,
            topic: event.topic,
            payload: event.payload,
            key: event.key,
            attributes: event.attributes,
            time: Some(prost_types::Timestamp::default()),
        };
        NewEvent {
            topic,
            key: None,
            payload: Encoded::new(event.encode_to_vec().into()),
        }
    }

    fn batch_of(events: Vec<proto::NewEvent>, skip: usize) -> Batch<Encoded> {
        let hub = Hub::new(HubConfig::new(1));
        let options =
            SubscribeOptions::new(ClientId::new("c").unwrap(), vec![Filter::new(">").unwrap()]);
        let mut subscription = hub.subscribe(options, Instant::now()).unwrap();
        let events: Vec<_> = events.into_iter().map(encoded).collect();
        hub.publish(events, Instant::now()).unwrap();
        let mut batch = Batch::default();
        for events in [skip, usize::MAX].into_iter().filter(|n| *n > 0) {
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            let _ = subscription.poll_next(&mut cx, Room::events(events), &mut batch);
        }
        batch
    }

    #[test]
    fn a_response_is_no_larger_than_the_limits_say() {
        let mut limits = PublishLimits::default();
        let mut event = proto::Event {
            topic: "t".into(),
            payload: vec![7; 1 << 20].into(),
            ..Default::default()
        };
        // As it is published.
        limits.max_event_bytes = event.encoded_len();
        event.sequence = u64::MAX;
        let response = SubscribeResponse {
            response: Some(Response::Batch(proto::Batch {
                events: vec![event],
                first_index: u64::MAX,
            })),
        };
        let max = limits.max_response_bytes();
        let len = response.encoded_len();
        // The lengths of the lengths may be less than they are reckoned with.
        assert!(len <= max && max - len <= 4, "{len}, at most {max}");
        limits.max_event_bytes = 1;
        assert_eq!(limits.max_response_bytes(), CHUNK_BYTES);
    }

    proptest! {
        /// The bytes decode to the events, wherever the cut is.
        #[test]
        fn prost_decodes_what_write_batch_wrote(
            sizes in prop::collection::vec(0..3_000usize, 1..6),
            skip in 0..3usize,
            max_bytes in 40..20_000usize,
            before in 0..100usize,
        ) {
            let events: Vec<_> = sizes.iter().enumerate().map(|(i, size)| proto::NewEvent {
                topic: format!("t.{i}"),
                payload: vec![i as u8; *size].into(),
                key: "k".repeat(i),
                attributes: [("name".to_owned(), "value".to_owned())].into(),
                ..Default::default()
            }).collect();
            let skip = skip.min(sizes.len() - 1);
            let mut batch = batch_of(events.clone(), skip);
            let single = sizes.len() - skip == 1;
            // As in the drainer: what several events need is known to fit, and gaps may stand before.
            let fits = batch.events.iter().map(|e| e.payload().size() + EVENT_OVERHEAD).sum::<usize>() + BATCH_OVERHEAD;
            let mut out = vec![7; before];
            let cut = write_batch(&batch, if single { max_bytes } else { fits }, &mut out);
            prop_assert!(single || cut.is_none());
            if let Some(written) = cut {
                let rest = batch.events[0].payload().as_bytes().slice(written..);
                prop_assert!(out.len() <= before + max_bytes);
                prop_assert!(rest.len().is_multiple_of(max_bytes) || out.len() == before + max_bytes);
                out.extend_from_slice(&rest);
            }
            out.drain(..before);
            prop_assert_eq!(out[0], 0);
            let len = u32::from_be_bytes(out[1..5].try_into().unwrap()) as usize;
            prop_assert_eq!(len, out.len() - PREFIX);
            let events_len: usize = batch.events.iter().map(|e| e.payload().size() + EVENT_OVERHEAD).sum();
            prop_assert!(out.len() <= BATCH_OVERHEAD + events_len);
            let Some(Response::Batch(decoded)) = SubscribeResponse::decode(&out[5..]).unwrap().response else {
                panic!("not a batch");
            };
            prop_assert_eq!(decoded.first_index, skip as u64);
            prop_assert_eq!(decoded.events.len(), batch.events.len());
            for (got, (sent, event)) in decoded.events.iter().zip(events[skip..].iter().zip(batch.events.drain(..))) {
                prop_assert_eq!(got.sequence, event.sequence());
                prop_assert_eq!((&got.topic, &got.payload), (&sent.topic, &sent.payload));
                prop_assert_eq!((&got.key, &got.attributes), (&sent.key, &sent.attributes));
                prop_assert!(got.time.is_some());
            }
        }
    }
}

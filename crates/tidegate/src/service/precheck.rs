//! Limits of requests, checked before the requests are decoded.
//!
//! A message of two-byte parts takes a hundred times its size when it is decoded: 8 MiB of empty events are 4,194,304
//! structs. So the limits are checked on the bytes first, where counting is one walk over them that allocates nothing,
//! and only a request within its limits is decoded, by [`messages`](super::messages). `convert` checks the values once more; the rules are there.

use std::fmt;

use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use tidegate_proto::v1::{PublishRequest, SubscribeRequest};
use tonic::Status;

use super::config::{PublishLimits, ServiceConfig};
use crate::reason::Reason;

/// Number of the field of events in a `PublishRequest`.
const EVENTS: u32 = 1;

/// Number of the field of attributes in a `NewEvent`.
const ATTRIBUTES: u32 = 4;

/// Number of the field of filters in a `SubscribeRequest`.
const FILTERS: u32 = 2;

/// A request whose limits can be checked on its bytes.
pub(super) trait Precheck: Message + Default + 'static {
    /// Limits of the request.
    type Limits: fmt::Debug + Send + Sync + 'static;

    /// Checks the bytes of one message.
    ///
    /// # Errors
    /// The status for bytes that break the limits. Bytes that are not a message pass: decoding refuses them.
    fn precheck(bytes: &[u8], limits: &Self::Limits) -> Result<(), Status>;
}

impl Precheck for PublishRequest {
    type Limits = PublishLimits;

    fn precheck(bytes: &[u8], limits: &PublishLimits) -> Result<(), Status> {
        let (mut count, mut total, mut attributes) = (0, 0, 0);
        for event in Parts::of(bytes, EVENTS) {
            let size = event.len();
            if count == limits.max_events {
                let problem = format!("more than {} events in one batch", limits.max_events);
                return Err(Reason::TooManyEvents.in_field("events", problem));
            }
            if size > limits.max_event_bytes {
                let max = limits.max_event_bytes;
                let problem = format!("{size} bytes; at most {max} are allowed");
                return Err(Reason::EventTooLarge.in_field(format!("events[{count}]"), problem));
            }
            total += size;
            if total > limits.max_batch_bytes {
                let max = limits.max_batch_bytes;
                let problem = format!("more than {max} bytes, the limit of a batch");
                return Err(Reason::BatchTooLarge.in_field("events", problem));
            }
            // An attribute of a few bytes becomes two strings and a place in a map, so bytes do not bound them.
            attributes += Parts::of(event, ATTRIBUTES).count();
            if attributes > limits.max_attributes {
                let max = limits.max_attributes;
                let problem =
                    format!("more than {max} attributes, the limit of a batch; send several");
                return Err(Reason::BatchTooLarge.in_field("events", problem));
            }
            count += 1;
        }
        Ok(())
    }
}

impl Precheck for SubscribeRequest {
    type Limits = ServiceConfig;

    fn precheck(bytes: &[u8], config: &ServiceConfig) -> Result<(), Status> {
        let max = config.max_filters;
        if Parts::of(bytes, FILTERS).nth(max).is_some() {
            let problem = format!("more than {max} filters");
            return Err(Reason::TooManyFilters.in_field("filters", problem));
        }
        Ok(())
    }
}

/// Iterator over the contents of the length-delimited fields of a message that have one number. It ends where the
/// bytes are no longer a message, which includes a part that is cut off.
struct Parts<'a> {
    rest: &'a [u8],
    number: u32,
}

impl<'a> Parts<'a> {
    const fn of(message: &'a [u8], number: u32) -> Self {
        Self {
            rest: message,
            number,
        }
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let (number, wire_type) = decode_key(&mut self.rest).ok()?;
            if number == self.number && wire_type == WireType::LengthDelimited {
                let size = usize::try_from(decode_varint(&mut self.rest).ok()?).ok()?;
                let (content, rest) = self.rest.split_at_checked(size)?;
                self.rest = rest;
                return Some(content);
            }
            skip_field(wire_type, number, &mut self.rest, DecodeContext::default()).ok()?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidegate_proto::v1::NewEvent;

    use super::*;

    #[test]
    fn parts_skip_other_fields_and_stop_at_garbage() {
        let event = |size: u8| [&[0x0A, size][..], &vec![0; usize::from(size)]].concat();
        // A varint, fixed numbers of both sizes, a group, and bytes, of other fields.
        let others = b"\x10\x05\x19\0\0\0\0\0\0\0\0\x25\0\0\0\0\x2b\x0a\x01x\x2c\x32\x01y";
        let message = [&event(3)[..], others, &event(0), b"\x0a\x7fcut"].concat();
        let sizes: Vec<_> = Parts::of(&message, 1).map(<[u8]>::len).collect();
        assert_eq!(sizes, [3, 0]);
    }

    #[test]
    fn attributes_are_limited_over_all_events_of_a_batch() {
        let limits = PublishLimits {
            max_attributes: 5,
            ..PublishLimits::default()
        };
        let precheck = |attributes: &[usize]| {
            let event = |count: &usize| NewEvent {
                topic: "t".to_owned(),
                attributes: (0..*count)
                    .map(|i| (i.to_string(), String::new()))
                    .collect(),
                ..NewEvent::default()
            };
            let events = attributes.iter().map(event).collect();
            PublishRequest::precheck(&PublishRequest { events }.encode_to_vec(), &limits)
        };
        assert!(precheck(&[2, 0, 3]).is_ok());
        let refused = precheck(&[2, 1, 3]).unwrap_err();
        assert!(
            refused.message().contains("more than 5 attributes"),
            "{refused}"
        );
    }

    #[test]
    fn batch_at_its_limits_passes_and_one_beyond_fails() {
        let limits = PublishLimits {
            max_events: 3,
            max_event_bytes: 100,
            max_batch_bytes: 200,
            ..PublishLimits::default()
        };
        let precheck = |sizes: &[usize]| {
            // A topic takes two bytes more than it has.
            let events = sizes.iter().map(|size| NewEvent {
                topic: "t".repeat(size - 2),
                ..NewEvent::default()
            });
            let events = events.collect();
            PublishRequest::precheck(&PublishRequest { events }.encode_to_vec(), &limits)
                .map_err(|status| status.message().to_owned())
        };
        assert_eq!(precheck(&[100, 50, 50]), Ok(()));
        assert!(precheck(&[10; 4]).unwrap_err().contains("more than 3"));
        assert!(precheck(&[101]).unwrap_err().contains("101 bytes"));
        assert!(precheck(&[100, 100, 10]).unwrap_err().contains("200 bytes"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let parts = Parts::of(&bytes, 1);
            prop_assert!(parts.map(<[u8]>::len).sum::<usize>() <= bytes.len());
        }
    }
}

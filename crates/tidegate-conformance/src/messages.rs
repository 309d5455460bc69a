//! Responses, as scenarios state them and as gRPC frames them.

use bytes::Bytes;
use prost::Message as _;
use tidegate_proto::v1::{
    Batch, CaughtUp, Event, Gap, GapReason, GoingAway, Heartbeat, Limits, Overflow,
    SubscribeResponse, Subscribed, subscribe_response::Response as Kind,
};

use crate::{
    position::At,
    scenario::{
        BatchStep, EventFields, GapReasonName, GapStep, GoingAwayStep, SubscribedStep, bytes_of,
    },
    told::{Told, ToldEvent, ToldGap},
};

/// Field number of a kind of response that no client knows yet, as its key: 15, a message.
const UNKNOWN_KIND: u8 = 15 << 3 | 2;

/// Topic of events whose scenario names none. It matches the default filter.
const TOPIC: &str = "conformance.event";

/// Makes the responses of one stream, and counts its indexes.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    next_index: u64,
}

/// A response that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Made {
    /// The message, framed.
    pub(crate) bytes: Bytes,
    /// Lines that the client must print for it.
    pub(crate) told: Vec<Told>,
    /// The response, for people.
    pub(crate) text: String,
}

impl Responses {
    pub(crate) fn subscribed(&mut self, step: &SubscribedStep, client_id: &str) -> Made {
        self.next_index = step.next_index;
        let kind = Kind::Subscribed(Subscribed {
            client_id: client_id.into(),
            subscription_id: "conformance".into(),
            position: step.head.on_the_wire(),
            next_index: step.next_index,
            limits: Some(Limits {
                max_events: 1024,
                max_bytes: 1 << 20,
                overflow: Overflow::DropOldest.into(),
            }),
        });
        let text = format!(
            "subscribed, head {}, next index {}",
            step.head, step.next_index
        );
        made(kind, Vec::new(), text)
    }

    pub(crate) fn events(&mut self, sequences: &[u64]) -> Made {
        let event = |sequence: &u64| EventFields {
            sequence: *sequence,
            ..EventFields::default()
        };
        self.batch(&BatchStep {
            events: sequences.iter().map(event).collect(),
            first_index: None,
            is_broken: false,
        })
    }

    pub(crate) fn batch(&mut self, step: &BatchStep) -> Made {
        let first_index = step.first_index.unwrap_or(self.next_index);
        let events: Vec<_> = step.events.iter().map(event).collect();
        self.next_index = first_index.wrapping_add(events.len() as u64);
        let told = events.iter().map(|event| {
            let event = ToldEvent {
                sequence: event.sequence,
                topic: event.topic.clone(),
                payload: event.payload.to_vec(),
                key: event.key.clone(),
                attributes: event.attributes.clone(),
            };
            Told::event(event, step.is_broken)
        });
        let told = told.collect();
        let sequences: Vec<_> = events.iter().map(|event| event.sequence).collect();
        let text = format!("batch of events {sequences:?}, first index {first_index}");
        made(
            Kind::Batch(Batch {
                events,
                first_index,
            }),
            told,
            text,
        )
    }

    pub(crate) fn gap(&mut self, step: &GapStep) -> Result<Made, String> {
        let reason = gap_reason(&step.reason)?;
        let first_index = step.first_index.unwrap_or(self.next_index);
        self.next_index = first_index.wrapping_add(step.count);
        let kind = Kind::Gap(Gap {
            first_sequence: step.first,
            last_sequence: step.last,
            count: step.count,
            reason,
            first_index,
        });
        let gap = ToldGap {
            first: step.first,
            last: step.last,
            count: step.count,
            reason: step.reason.clone(),
        };
        let text = format!("{gap}, first index {first_index}");
        Ok(made(kind, vec![Told::gap(gap)], text))
    }

    /// Returns the first half of a batch with one event, of which a client must tell nothing.
    pub(crate) fn half_event(&self, sequence: u64) -> Made {
        let fields = EventFields {
            sequence,
            ..EventFields::default()
        };
        let whole = framed(&encoded(Kind::Batch(Batch {
            events: vec![event(&fields)],
            first_index: self.next_index,
        })));
        Made {
            bytes: whole.slice(..whole.len() / 2),
            told: Vec::new(),
            text: format!("half of event {sequence}"),
        }
    }

    /// Returns a batch with one event of so many bytes.
    pub(crate) fn large_event(&mut self, sequence: u64, bytes: usize) -> Made {
        self.batch(&BatchStep {
            events: vec![EventFields {
                sequence,
                payload: Some("x".repeat(bytes)),
                ..EventFields::default()
            }],
            first_index: None,
            is_broken: false,
        })
    }
}

pub(crate) fn heartbeat(position: At) -> Made {
    let kind = Kind::Heartbeat(Heartbeat {
        position: position.on_the_wire(),
    });
    made(kind, Vec::new(), format!("heartbeat {position}"))
}

pub(crate) fn caught_up(position: At) -> Made {
    let kind = Kind::CaughtUp(CaughtUp {
        position: position.on_the_wire(),
    });
    made(kind, Vec::new(), format!("caught_up {position}"))
}

pub(crate) fn going_away(step: &GoingAwayStep) -> Made {
    let duration = |ms: u64| prost_types::Duration {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000 * 1_000_000).expect("is below a second"),
    };
    let kind = Kind::GoingAway(GoingAway {
        resume_after: step.resume_after.on_the_wire(),
        reconnect_after: step.reconnect_after_ms.map(duration),
        reason: step.reason.clone(),
    });
    let after = step.reconnect_after_ms.unwrap_or_default();
    let text = format!(
        "going_away, resume after {}, reconnect after {after} ms",
        step.resume_after
    );
    made(kind, Vec::new(), text)
}

pub(crate) fn unknown_response() -> Made {
    Made {
        bytes: framed(&[UNKNOWN_KIND, 2, 8, 1]),
        told: Vec::new(),
        text: "a response of an unknown kind".into(),
    }
}

pub(crate) fn message(digits: &str) -> Result<Made, String> {
    Ok(Made {
        bytes: framed(&bytes_of(digits)?),
        told: Vec::new(),
        text: format!("a message of the bytes {digits}"),
    })
}

pub(crate) fn raw(digits: &str) -> Result<Made, String> {
    Ok(Made {
        bytes: bytes_of(digits)?.into(),
        told: Vec::new(),
        text: format!("the bytes {digits}"),
    })
}

fn event(fields: &EventFields) -> Event {
    let sequence = fields.sequence;
    let payload = match (&fields.payload_hex, &fields.payload) {
        (Some(digits), _) => bytes_of(digits).expect("checked when the file was read"),
        (None, Some(text)) => text.clone().into_bytes(),
        (None, None) => format!("event {sequence}").into_bytes(),
    };
    Event {
        sequence,
        topic: fields.topic.clone().unwrap_or_else(|| TOPIC.into()),
        payload: payload.into(),
        key: fields.key.clone(),
        attributes: fields.attributes.clone().into_iter().collect(),
        time: Some(prost_types::Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        }),
    }
}

/// Returns the number of a reason.
pub(crate) fn gap_reason(reason: &GapReasonName) -> Result<i32, String> {
    match reason {
        GapReasonName::Newer(number) => Ok(*number),
        GapReasonName::Known(name) => GapReason::from_str_name(&format!("GAP_REASON_{name}"))
            .map(Into::into)
            .ok_or_else(|| {
                format!("{name:?} is no reason of a gap: write one such as OVERFLOW, or a number")
            }),
    }
}

fn made(kind: Kind, told: Vec<Told>, text: String) -> Made {
    Made {
        bytes: framed(&encoded(kind)),
        told,
        text,
    }
}

fn encoded(kind: Kind) -> Vec<u8> {
    SubscribeResponse {
        response: Some(kind),
    }
    .encode_to_vec()
}

/// A message of any bytes, as gRPC frames it.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("is shorter than 4 GiB");
    [&[0], &length.to_be_bytes()[..], message].concat().into()
}

//! The JSON form of updates: one object per line, for programs.
//!
//! Names and forms are part of the command's interface: members may be added, but none changes.

use std::{collections::BTreeMap, io, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Serialize;
use tidegate_client::{Error, Event, Gap, GoingAway, Limits, Overflow, Subscribed, Update};

use super::{code_name, position, reason, timestamp};

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Subscribed {
        client_id: &'a str,
        subscription_id: &'a str,
        position: Option<String>,
        next_index: u64,
        limits: Option<LimitsObject>,
    },
    Event(EventObject<'a>),
    Gap {
        first_sequence: u64,
        last_sequence: u64,
        count: u64,
        reason: String,
    },
    Heartbeat {
        position: String,
    },
    CaughtUp {
        position: String,
    },
    GoingAway {
        resume_after: Option<String>,
        reconnect_after: Option<String>,
        reason: &'a str,
    },
    Reconnecting {
        code: String,
        message: &'a str,
        retry_in: String,
        attempt: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    Ended {
        /// None if no server has said so.
        code: Option<String>,
        message: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

#[derive(Serialize)]
struct EventObject<'a> {
    sequence: u64,
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    /// Instead of `payload`, if that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    key: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    attributes: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
}

#[derive(Serialize)]
struct LimitsObject {
    max_events: u32,
    max_bytes: u64,
    overflow: String,
}

pub(super) fn render(out: &mut Vec<u8>, update: &Update) -> io::Result<()> {
    if let Some(line) = Line::new(update) {
        serde_json::to_writer(&mut *out, &line)?;
        out.push(b'\n');
    }
    Ok(())
}

/// Appends the line for the error that ends the subscription.
pub(super) fn render_end(out: &mut Vec<u8>, error: &Error) -> io::Result<()> {
    let line = Line::Ended {
        code: error.status().map(|status| code_name(status.code())),
        message: error.to_string(),
        reason: error.reason(),
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.push(b'\n');
    Ok(())
}

impl<'a> Line<'a> {
    /// Returns `None` for a kind of update that is newer than this command.
    fn new(update: &'a Update) -> Option<Self> {
        Some(match update {
            Update::Subscribed(subscribed) => Self::subscribed(subscribed),
            Update::Event(event) => Self::Event(EventObject::new(event)),
            Update::Gap(gap) => Self::gap(gap),
            Update::Heartbeat(position) => Self::Heartbeat {
                position: position.to_string(),
            },
            Update::CaughtUp(position) => Self::CaughtUp {
                position: position.to_string(),
            },
            Update::GoingAway(going_away) => Self::going_away(going_away),
            Update::Reconnecting {
                status,
                retry_in,
                attempt,
            } => Self::Reconnecting {
                code: code_name(status.code()),
                message: status.message(),
                retry_in: seconds(*retry_in),
                attempt: *attempt,
                reason: tidegate_client::reason(status),
            },
            _ => return None,
        })
    }

    fn subscribed(subscribed: &'a Subscribed) -> Self {
        Self::Subscribed {
            client_id: &subscribed.client_id,
            subscription_id: &subscribed.subscription_id,
            position: position(subscribed.position),
            next_index: subscribed.next_index,
            limits: subscribed.limits.map(LimitsObject::new),
        }
    }

    fn gap(gap: &Gap) -> Self {
        Self::Gap {
            first_sequence: gap.first_sequence,
            last_sequence: gap.last_sequence,
            count: gap.count,
            reason: reason(gap),
        }
    }

    fn going_away(going_away: &'a GoingAway) -> Self {
        let wait = going_away
            .reconnect_after
            .and_then(|after| Duration::try_from(after).ok());
        Self::GoingAway {
            resume_after: position(going_away.resume_after),
            reconnect_after: wait.map(seconds),
            reason: &going_away.reason,
        }
    }
}

impl<'a> EventObject<'a> {
    fn new(event: &'a Event) -> Self {
        let payload = std::str::from_utf8(&event.payload).ok();
        let base64 = || BASE64_STANDARD.encode(&event.payload);
        Self {
            sequence: event.sequence,
            topic: &event.topic,
            payload,
            payload_base64: payload.is_none().then(base64),
            key: &event.key,
            attributes: &event.attributes,
            time: timestamp(event.time).map(|time| time.to_string()),
        }
    }
}

impl LimitsObject {
    fn new(limits: Limits) -> Self {
        let name = match limits.overflow() {
            Overflow::Unspecified => "unspecified",
            Overflow::DropOldest => "drop_oldest",
            Overflow::Conflate => "conflate",
            Overflow::Disconnect => "disconnect",
        };
        Self {
            max_events: limits.max_events,
            max_bytes: limits.max_bytes,
            overflow: name.into(),
        }
    }
}

/// A duration as protobuf writes it in JSON.
fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use tidegate_client::GapReason;

    use super::{super::samples, *};

    fn json(update: &Update) -> String {
        let mut out = Vec::new();
        render(&mut out, update).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.strip_suffix('\n').unwrap().to_owned()
    }

    #[test]
    fn events() {
        assert_eq!(
            json(&samples::event(b"a\n\"b\"")),
            r#"{"type":"event","sequence":42,"topic":"orders.eu","payload":"a\n\"b\"","time":"2023-11-14T22:13:20.123456Z"}"#
        );
        assert_eq!(
            json(&samples::full_event()),
            r#"{"type":"event","sequence":42,"topic":"orders.eu","payload":"hello","key":"17","attributes":{"a":"1","b":"2"},"time":"2023-11-14T22:13:20.123456Z"}"#
        );
    }

    #[test]
    fn a_payload_that_is_not_utf8_is_base64() {
        let line = json(&samples::event(b"\xff\x00"));
        assert!(line.contains(r#""payload_base64":"/wA=""#), "{line}");
        assert!(!line.contains(r#""payload":"#), "{line}");
    }

    #[test]
    fn an_empty_payload_is_an_empty_string() {
        assert!(json(&samples::event(b"")).contains(r#""payload":"""#));
    }

    #[test]
    fn gaps() {
        assert_eq!(
            json(&samples::gap(12, GapReason::EpochChanged)),
            r#"{"type":"gap","first_sequence":5,"last_sequence":16,"count":12,"reason":"epoch_changed"}"#
        );
    }

    #[test]
    fn other_updates() {
        let position = r#""position":"0000000000000abc:42""#;
        assert_eq!(
            json(&samples::subscribed()),
            format!(
                r#"{{"type":"subscribed","client_id":"me","subscription_id":"s1",{position},"next_index":0,"limits":{{"max_events":1024,"max_bytes":1048576,"overflow":"drop_oldest"}}}}"#
            )
        );
        assert_eq!(
            json(&Update::Heartbeat(samples::POSITION)),
            format!(r#"{{"type":"heartbeat",{position}}}"#)
        );
        assert_eq!(
            json(&Update::CaughtUp(samples::POSITION)),
            format!(r#"{{"type":"caught_up",{position}}}"#)
        );
        assert_eq!(
            json(&samples::going_away()),
            r#"{"type":"going_away","resume_after":"0000000000000abc:42","reconnect_after":"1.5s","reason":"drain"}"#
        );
        assert_eq!(
            json(&samples::reconnecting()),
            r#"{"type":"reconnecting","code":"UNAVAILABLE","message":"gone\n","retry_in":"0.25s","attempt":2}"#
        );
    }
}

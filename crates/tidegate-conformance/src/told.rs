//! The events and gaps that a client tells its user, compared with those that it was sent.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::Value;

use crate::scenario::GapReasonName;

/// An event or a gap that a client was sent, and must tell of.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    kind: Kind,
    /// Whether the client may keep silent about it.
    is_optional: bool,
}

#[derive(Clone, Debug)]
enum Kind {
    Event(ToldEvent),
    Gap(ToldGap),
}

/// An event in a line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToldEvent {
    pub(crate) sequence: u64,
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) key: String,
    pub(crate) attributes: BTreeMap<String, String>,
}

/// A gap in a line of output.
#[derive(Clone, Debug)]
pub(crate) struct ToldGap {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) count: u64,
    pub(crate) reason: GapReasonName,
}

/// The part of a line of output that is judged.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    Event {
        sequence: u64,
        topic: String,
        #[serde(default)]
        payload: Option<String>,
        #[serde(default)]
        payload_base64: Option<String>,
        #[serde(default)]
        key: String,
        #[serde(default)]
        attributes: BTreeMap<String, String>,
    },
    Gap {
        first_sequence: u64,
        last_sequence: u64,
        count: u64,
        reason: String,
    },
    Error {},
    #[serde(other)]
    Other,
}

/// Meaning of a line of output.
#[derive(Debug)]
pub(crate) enum Meaning {
    /// The next event or gap, as it was sent.
    AsSent,
    /// A complaint about the server.
    Complaint,
    /// Anything else that a client may say.
    Other,
}

/// A line that a client must not print: what had to come instead, and what came.
#[derive(Debug)]
pub(crate) struct Mistake {
    pub(crate) expected: String,
    pub(crate) seen: String,
}

/// The events and gaps that were sent and that the client has not told of.
#[derive(Debug, Default)]
pub(crate) struct Account {
    untold: VecDeque<Told>,
    /// The newest line that was as sent, for people.
    last: Option<String>,
}

impl Told {
    pub(crate) fn event(event: ToldEvent, is_optional: bool) -> Self {
        Self {
            kind: Kind::Event(event),
            is_optional,
        }
    }

    pub(crate) fn gap(gap: ToldGap) -> Self {
        Self {
            kind: Kind::Gap(gap),
            is_optional: false,
        }
    }

    fn is(&self, line: &Line) -> bool {
        match (&self.kind, line) {
            (
                Kind::Event(sent),
                Line::Event {
                    sequence,
                    topic,
                    payload,
                    payload_base64,
                    key,
                    attributes,
                },
            ) => {
                let payload = match (payload, payload_base64) {
                    (Some(text), None) => Some(text.clone().into_bytes()),
                    (None, Some(text)) => BASE64_STANDARD.decode(text).ok(),
                    _ => None,
                };
                sent.sequence == *sequence
                    && sent.topic == *topic
                    && payload.as_ref() == Some(&sent.payload)
                    && sent.key == *key
                    && sent.attributes == *attributes
            }
            (
                Kind::Gap(sent),
                Line::Gap {
                    first_sequence,
                    last_sequence,
                    count,
                    reason,
                },
            ) => {
                sent.first == *first_sequence
                    && sent.last == *last_sequence
                    && sent.count == *count
                    && sent.reason.is_named(reason)
            }
            _ => false,
        }
    }
}

impl GapReasonName {
    /// Whether a line of output names this reason so: a known one by its name in lower case, a newer one by a word with
    /// its number.
    fn is_named(&self, word: &str) -> bool {
        match self {
            Self::Known(name) => name.eq_ignore_ascii_case(word),
            Self::Newer(number) => {
                let digits = word.trim_start_matches(|letter: char| !letter.is_ascii_digit());
                digits == number.to_string()
            }
        }
    }
}

impl Account {
    /// Adds what the client must tell of next.
    pub(crate) fn sent(&mut self, told: Vec<Told>) {
        self.untold.extend(told);
    }

    /// Takes a line of output.
    pub(crate) fn line(&mut self, text: &str) -> Result<Meaning, Mistake> {
        let line: Line = match serde_json::from_str(text) {
            Ok(line) => line,
            Err(error) => {
                let is_object =
                    serde_json::from_str(text).is_ok_and(|value: Value| value.is_object());
                let expected = match is_object {
                    true => "lines as docs/conformance.md has them",
                    false => "lines of JSON, one object each",
                };
                return Err(Mistake {
                    expected: expected.into(),
                    seen: format!("{text:?}: {error}"),
                });
            }
        };
        match line {
            Line::Other => return Ok(Meaning::Other),
            Line::Error {} => return Ok(Meaning::Complaint),
            Line::Event { .. } | Line::Gap { .. } => {}
        }
        while let Some(next) = self.untold.front() {
            if next.is(&line) {
                self.last = Some(next.to_string());
                self.untold.pop_front();
                return Ok(Meaning::AsSent);
            }
            if !next.is_optional {
                break;
            }
            self.untold.pop_front();
        }
        let expected = match (self.next(), &self.last) {
            (Some(next), _) => format!("the client to tell of {next} next"),
            (None, Some(last)) => format!("the client to tell of nothing more after {last}"),
            (None, None) => "the client to tell of nothing yet".into(),
        };
        Err(Mistake {
            expected,
            seen: text.into(),
        })
    }

    /// Returns the next thing that the client must tell of, for people.
    pub(crate) fn next(&self) -> Option<String> {
        let next = self.untold.iter().find(|told| !told.is_optional);
        next.map(ToString::to_string)
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Event(event) => {
                let payload = String::from_utf8_lossy(&event.payload);
                let start: String = payload.chars().take(40).collect();
                write!(
                    f,
                    "event {} of {} with payload {start:?}",
                    event.sequence, event.topic
                )
            }
            Kind::Gap(gap) => gap.fmt(f),
        }
    }
}

impl fmt::Display for ToldGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            first, last, count, ..
        } = self;
        match &self.reason {
            GapReasonName::Known(name) => write!(f, "gap {name}")?,
            GapReasonName::Newer(number) => write!(f, "gap of the unknown reason {number}")?,
        }
        write!(f, " from {first} to {last}, count {count}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64, payload: &[u8], is_optional: bool) -> Told {
        let event = ToldEvent {
            sequence,
            topic: "a".into(),
            payload: payload.into(),
            key: String::new(),
            attributes: BTreeMap::new(),
        };
        Told::event(event, is_optional)
    }

    fn account(told: Vec<Told>) -> Account {
        let mut account = Account::default();
        account.sent(told);
        account
    }

    const FIRST: &str =
        r#"{"type":"event","sequence":1,"topic":"a","payload":"x","time":"2023-11-14T22:13:20Z"}"#;
    const SECOND: &str = r#"{"type":"event","sequence":2,"topic":"a","payload_base64":"/wA="}"#;

    #[test]
    fn lines_in_order_are_as_sent() {
        let mut account = account(vec![event(1, b"x", false), event(2, b"\xff\0", false)]);
        assert!(matches!(account.line(FIRST), Ok(Meaning::AsSent)));
        assert!(matches!(
            account.line(r#"{"type":"newer"}"#),
            Ok(Meaning::Other)
        ));
        assert!(account.next().is_some());
        assert!(matches!(account.line(SECOND), Ok(Meaning::AsSent)));
        assert_eq!(account.next(), None);
    }

    #[test]
    fn line_that_was_not_sent_is_a_mistake() {
        for wrong in [
            SECOND,
            r#"{"type":"event","sequence":1,"topic":"b","payload":"x"}"#,
            r#"{"type":"event","sequence":1,"topic":"a","payload":"y"}"#,
            r#"{"type":"event","sequence":1,"topic":"a"}"#,
            r#"{"type":"event","sequence":1,"topic":"a","payload":"x","key":"k"}"#,
            r#"{"type":"gap","first_sequence":1,"last_sequence":1,"count":1,"reason":"overflow"}"#,
            r#"{"type":"event","sequence":"1","topic":"a","payload":"x"}"#,
            "event 1",
            "[]",
        ] {
            let mut account = account(vec![event(1, b"x", false), event(2, b"\xff\0", false)]);
            assert!(account.line(wrong).is_err(), "{wrong}");
        }
        let mut account = account(vec![event(1, b"x", false)]);
        account.line(FIRST).unwrap();
        assert!(account.line(FIRST).is_err(), "told twice");
    }

    #[test]
    fn optional_line_may_be_left_out() {
        let mut account = account(vec![event(1, b"x", true), event(2, b"\xff\0", false)]);
        assert!(matches!(account.line(SECOND), Ok(Meaning::AsSent)));
    }

    #[test]
    fn unknown_reason_is_named_by_its_number() {
        let newer = GapReasonName::Newer(99);
        for word in ["99", "unknown_99", "reason 99"] {
            assert!(newer.is_named(word), "{word}");
        }
        for word in ["unknown", "unknown_9", "overflow"] {
            assert!(!newer.is_named(word), "{word}");
        }
        assert!(GapReasonName::Known("EVICTED".into()).is_named("evicted"));
    }
}

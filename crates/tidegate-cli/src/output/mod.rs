//! Renders updates: as text for people, or as JSON lines for programs.

mod json;
mod text;

use std::io;

use clap::ValueEnum;
use jiff::Timestamp;
use tidegate_client::{Code, Error, Gap, GapReason, Position, Update};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    /// For people: time, topic, payload.
    Text,
    /// For programs: one JSON object per line.
    Json,
    /// For pipes: the bytes of each payload and a newline. Everything else goes to standard error.
    Raw,
}

/// Turns updates into lines.
#[derive(Debug)]
pub(crate) enum Renderer {
    Text {
        styles: text::Styles,
        repeated: Repeated,
    },
    Json,
    Raw(Repeated),
}

/// The reason for which a subscription is not connected, to say it once and not at each attempt.
#[derive(Debug, Default)]
pub(crate) struct Repeated(Option<String>);

/// Where an update was rendered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Output,
    /// The line is not of the output, and for people.
    Report,
}

impl Renderer {
    /// Returns a renderer for standard output: with colors if it can show them and NO_COLOR is not set.
    pub(crate) fn for_stdout(format: Format) -> Self {
        let choice = anstream::AutoStream::choice(&io::stdout());
        let styles = match choice {
            anstream::ColorChoice::Never => text::Styles::plain(),
            _ => text::Styles::colored(),
        };
        let repeated = Repeated::default();
        match format {
            Format::Json => Self::Json,
            Format::Text => Self::Text { styles, repeated },
            Format::Raw => Self::Raw(repeated),
        }
    }

    /// Appends the line for `update` to `out`, or nothing if the form does not show such updates. Returns where it is to
    /// go.
    pub(crate) fn render(&mut self, out: &mut Vec<u8>, update: &Update) -> io::Result<Target> {
        let is_known = match self {
            Self::Text { repeated, .. } | Self::Raw(repeated) => repeated.is_known(update),
            Self::Json => false,
        };
        match self {
            _ if is_known => {}
            Self::Json => json::render(out, update)?,
            Self::Text { styles, .. } => text::render(out, update, styles)?,
            Self::Raw(_) => match update {
                Update::Event(event) => {
                    out.extend_from_slice(&event.payload);
                    out.push(b'\n');
                }
                update => {
                    text::render(out, update, &text::Styles::plain())?;
                    return Ok(Target::Report);
                }
            },
        }
        Ok(Target::Output)
    }
}

impl Renderer {
    /// Appends the line for the error that ends the subscription, if the form shows it: people read it on standard error.
    pub(crate) fn render_end(&self, out: &mut Vec<u8>, error: &Error) -> io::Result<()> {
        match self {
            Self::Json => json::render_end(out, error),
            Self::Text { .. } | Self::Raw(_) => Ok(()),
        }
    }
}

impl Repeated {
    /// Whether `update` is another attempt that failed for the same reason as the one before.
    fn is_known(&mut self, update: &Update) -> bool {
        match update {
            Update::Reconnecting { status, .. } => {
                let message = status.message();
                let is_known = self.0.as_deref() == Some(message);
                self.0 = Some(message.to_owned());
                is_known
            }
            _ => {
                self.0 = None;
                false
            }
        }
    }
}

/// The name of a gap's reason, in lower case: `overflow`, `epoch_changed`. One that only a newer version knows is
/// `unknown_` and its number.
fn reason(gap: &Gap) -> String {
    let Ok(reason) = GapReason::try_from(gap.reason) else {
        return format!("unknown_{}", gap.reason);
    };
    let name = reason.as_str_name();
    name.strip_prefix("GAP_REASON_")
        .unwrap_or(name)
        .to_ascii_lowercase()
}

/// An event's time; `None` if it has none, or one outside the years that [`Timestamp`] can hold.
fn timestamp(time: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    let time = time?;
    Timestamp::new(time.seconds, time.nanos).ok()
}

fn position(position: Option<impl Into<Position>>) -> Option<String> {
    position.map(|position| position.into().to_string())
}

/// The name of a status code, as in gRPC's documentation: `UNAVAILABLE`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// Updates for the tests of both forms.
#[cfg(test)]
mod samples {
    use std::time::Duration;

    use tidegate_client::{
        Event, Gap, GapReason, GoingAway, Limits, Overflow, Position, Status, Subscribed, Update,
    };

    pub(super) const POSITION: Position = Position {
        epoch: 0xabc,
        sequence: 42,
    };

    pub(super) fn event(payload: &'static [u8]) -> Update {
        Update::Event(Event {
            sequence: 42,
            topic: "orders.eu".into(),
            payload: payload.into(),
            time: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 123_456_000,
            }),
            ..Default::default()
        })
    }

    pub(super) fn full_event() -> Update {
        let Update::Event(mut event) = event(b"hello") else {
            unreachable!()
        };
        event.key = "17".into();
        event.attributes = [("a", "1"), ("b", "2")]
            .map(|(name, value)| (name.into(), value.into()))
            .into();
        Update::Event(event)
    }

    pub(super) fn gap(count: u64, reason: GapReason) -> Update {
        Update::Gap(Gap {
            first_sequence: 5,
            last_sequence: 16,
            count,
            reason: reason.into(),
            first_index: 3,
        })
    }

    pub(super) fn subscribed() -> Update {
        Update::Subscribed(Subscribed {
            client_id: "me".into(),
            subscription_id: "s1".into(),
            position: Some(POSITION.into()),
            next_index: 0,
            limits: Some(Limits {
                max_events: 1024,
                max_bytes: 1_048_576,
                overflow: Overflow::DropOldest.into(),
            }),
        })
    }

    pub(super) fn going_away() -> Update {
        Update::GoingAway(GoingAway {
            resume_after: Some(POSITION.into()),
            reconnect_after: Some(prost_types::Duration {
                seconds: 1,
                nanos: 500_000_000,
            }),
            reason: "drain".into(),
        })
    }

    pub(super) fn reconnecting() -> Update {
        Update::Reconnecting {
            status: Status::unavailable("gone\n"),
            retry_in: Duration::from_millis(250),
            attempt: 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(renderer: &mut Renderer, update: &Update) -> (String, Target) {
        let mut out = Vec::new();
        let target = renderer.render(&mut out, update).unwrap();
        (String::from_utf8(out).unwrap(), target)
    }

    #[test]
    fn raw_output_is_payloads_and_reports_go_elsewhere() {
        let mut raw = Renderer::Raw(Repeated::default());
        let event = rendered(&mut raw, &samples::event(b"a b"));
        assert_eq!(event, ("a b\n".into(), Target::Output));
        let (gap, target) = rendered(&mut raw, &samples::gap(12, GapReason::Overflow));
        assert!(gap.contains("12 events are missing"), "{gap}");
        assert_eq!(target, Target::Report);
    }

    #[test]
    fn same_reason_is_told_once() {
        let styles = text::Styles::plain();
        let repeated = Repeated::default();
        let mut text = Renderer::Text { styles, repeated };
        let told = |text: &mut Renderer, update: &Update| !rendered(text, update).0.is_empty();
        assert!(told(&mut text, &samples::reconnecting()));
        assert!(!told(&mut text, &samples::reconnecting()));
        assert!(told(&mut text, &samples::subscribed()));
        assert!(told(&mut text, &samples::reconnecting()));
        assert!(told(&mut Renderer::Json, &samples::reconnecting()));
        assert!(told(&mut Renderer::Json, &samples::reconnecting()));
    }

    #[test]
    fn names_are_those_of_the_protocol() {
        let gap = |reason| Gap {
            reason,
            ..Gap::default()
        };
        let known = gap(GapReason::EpochChanged.into());
        assert_eq!(reason(&known), "epoch_changed");
        assert_eq!(reason(&gap(99)), "unknown_99");
        assert_eq!(code_name(Code::Unavailable), "UNAVAILABLE");
        assert_eq!(code_name(Code::OutOfRange), "OUT_OF_RANGE");
    }
}

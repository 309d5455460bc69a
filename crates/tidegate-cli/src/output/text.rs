//! The text form of updates: lines for people.

use std::{
    fmt,
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};
use tidegate_client::{Event, Gap, GoingAway, Subscribed, Update};

use super::{code_name, position, reason, timestamp};

/// The style of each part of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Styles {
    time: Style,
    topic: Style,
    /// Keys and attributes.
    detail: Style,
    gap: Style,
    /// Changes of the connection.
    note: Style,
    warning: Style,
}

/// Text with its control characters escaped, so that it cannot move the cursor, change colors or begin a line.
struct Escaped<'a>(&'a str);

impl Styles {
    pub(crate) fn plain() -> Self {
        let plain = Style::new();
        Self {
            time: plain,
            topic: plain,
            detail: plain,
            gap: plain,
            note: plain,
            warning: plain,
        }
    }

    pub(crate) fn colored() -> Self {
        Self {
            time: Style::new().dimmed(),
            topic: AnsiColor::Cyan.on_default(),
            detail: AnsiColor::Blue.on_default(),
            gap: AnsiColor::Red.on_default().bold(),
            note: Style::new().dimmed(),
            warning: AnsiColor::Yellow.on_default(),
        }
    }
}

pub(super) fn render(out: &mut Vec<u8>, update: &Update, styles: &Styles) -> io::Result<()> {
    match update {
        Update::Event(event) => render_event(out, event, styles),
        Update::Gap(gap) => line(out, styles.gap, format_args!("! {}", describe_gap(gap))),
        Update::Subscribed(subscribed) => render_subscribed(out, subscribed, styles),
        Update::CaughtUp(position) => line(
            out,
            styles.note,
            format_args!("# caught up at {position}, live from here"),
        ),
        Update::GoingAway(going_away) => render_going_away(out, going_away, styles),
        Update::Reconnecting {
            status, retry_in, ..
        } => {
            let (code, message) = (code_name(status.code()), Escaped(status.message()));
            let text = format_args!(
                "# {code}: {message}; reconnecting, for the first time in {retry_in:.1?}"
            );
            line(out, styles.warning, text)
        }
        // A heartbeat comes every few seconds of silence and would only fill the screen.
        _ => Ok(()),
    }
}

fn render_event(out: &mut Vec<u8>, event: &Event, styles: &Styles) -> io::Result<()> {
    let (time, topic, detail) = (styles.time, styles.topic, styles.detail);
    match timestamp(event.time) {
        Some(at) => write!(out, "{time}{at:.3}{time:#} ")?,
        None => write!(out, "{time}-{time:#} ")?,
    }
    write!(out, "{topic}{}{topic:#} ", Escaped(&event.topic))?;
    if !event.key.is_empty() {
        write!(out, "{detail}[{}]{detail:#} ", Escaped(&event.key))?;
    }
    if !event.attributes.is_empty() {
        write!(out, "{detail}{{")?;
        for (index, (name, value)) in event.attributes.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(out, "{separator}{}={}", Escaped(name), Escaped(value))?;
        }
        write!(out, "}}{detail:#} ")?;
    }
    match std::str::from_utf8(&event.payload) {
        Ok(payload) => writeln!(out, "{}", Escaped(payload)),
        Err(_) => writeln!(out, "{}", event.payload.escape_ascii()),
    }
}

fn describe_gap(gap: &Gap) -> String {
    let what = match gap.count {
        0 => "an unknown number of events is missing".into(),
        1 => "1 event is missing".into(),
        count => format!("{count} events are missing"),
    };
    let (first, last) = (gap.first_sequence, gap.last_sequence);
    format!("GAP: {what} ({}), sequence {first} to {last}", reason(gap))
}

fn render_subscribed(
    out: &mut Vec<u8>,
    subscribed: &Subscribed,
    styles: &Styles,
) -> io::Result<()> {
    let client_id = Escaped(&subscribed.client_id);
    let head = position(subscribed.position).unwrap_or_default();
    let text = format_args!("# subscribed as {client_id}, the server is at {head}");
    line(out, styles.note, text)
}

fn render_going_away(out: &mut Vec<u8>, going_away: &GoingAway, styles: &Styles) -> io::Result<()> {
    let reason = Escaped(&going_away.reason);
    // There is no position while nothing was settled.
    let after = position(going_away.resume_after);
    let after = after.map_or_else(String::new, |after| format!("; resume after {after}"));
    let text = format_args!("# the server is going away ({reason}){after}");
    line(out, styles.warning, text)
}

fn line(out: &mut Vec<u8>, style: Style, text: fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(out, "{style}{text}{style:#}")
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some((at, control)) = rest.char_indices().find(|(_, c)| c.is_control()) {
            f.write_str(&rest[..at])?;
            write!(f, "{}", control.escape_default())?;
            rest = &rest[at + control.len_utf8()..];
        }
        f.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use tidegate_client::GapReason;

    use super::{super::samples, *};

    fn plain(update: &Update) -> String {
        let mut out = Vec::new();
        render(&mut out, update, &Styles::plain()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_event_is_time_topic_and_payload() {
        assert_eq!(
            plain(&samples::event("grüß dich".as_bytes())),
            "2023-11-14T22:13:20.123Z orders.eu grüß dich\n"
        );
        assert_eq!(
            plain(&samples::full_event()),
            "2023-11-14T22:13:20.123Z orders.eu [17] {a=1, b=2} hello\n"
        );
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        assert!(plain(&samples::event(b"a\nb\x1b[31m\t")).ends_with(" a\\nb\\u{1b}[31m\\t\n"));
        assert!(plain(&samples::event(b"a\n\xff\\")).ends_with(" a\\n\\xff\\\\\n"));
        assert!(plain(&samples::event(b"")).ends_with(" orders.eu \n"));
    }

    #[test]
    fn gaps_say_how_many_and_why() {
        assert_eq!(
            plain(&samples::gap(12, GapReason::Overflow)),
            "! GAP: 12 events are missing (overflow), sequence 5 to 16\n"
        );
        assert_eq!(
            plain(&samples::gap(0, GapReason::Expired)),
            "! GAP: an unknown number of events is missing (expired), sequence 5 to 16\n"
        );
        let Update::Gap(mut gap) = samples::gap(12, GapReason::Overflow) else {
            unreachable!()
        };
        gap.reason = 99;
        assert_eq!(
            plain(&Update::Gap(gap)),
            "! GAP: 12 events are missing (unknown_99), sequence 5 to 16\n"
        );
    }

    #[test]
    fn connection_changes_are_shown_and_heartbeats_are_not() {
        assert_eq!(
            plain(&samples::subscribed()),
            "# subscribed as me, the server is at 0000000000000abc:42\n"
        );
        assert_eq!(
            plain(&Update::CaughtUp(samples::POSITION)),
            "# caught up at 0000000000000abc:42, live from here\n"
        );
        assert_eq!(
            plain(&samples::going_away()),
            "# the server is going away (drain); resume after 0000000000000abc:42\n"
        );
        let Update::GoingAway(mut going_away) = samples::going_away() else {
            unreachable!()
        };
        going_away.resume_after = None;
        assert_eq!(
            plain(&Update::GoingAway(going_away)),
            "# the server is going away (drain)\n"
        );
        assert_eq!(
            plain(&samples::reconnecting()),
            "# UNAVAILABLE: gone\\n; reconnecting, for the first time in 250.0ms\n"
        );
        assert_eq!(plain(&Update::Heartbeat(samples::POSITION)), "");
    }

    #[test]
    fn colors_begin_and_end_on_the_line() {
        let mut out = Vec::new();
        let update = samples::gap(1, GapReason::Evicted);
        render(&mut out, &update, &Styles::colored()).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("\x1b["), "{text:?}");
        assert!(text.ends_with("\x1b[0m\n"), "{text:?}");
    }
}

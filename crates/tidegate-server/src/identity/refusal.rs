//! The causes for which credentials are refused. The log has them, for the operator; the client is told none, since that
//! would help those most who try credentials that are not theirs.
//!
//! A cause never holds a token or a part of one that could be used. It may quote what a token says of itself, which a
//! stranger wrote: escaped, and cut short.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::network::listener::PeerAddress;

/// The most characters of a quotation.
const MAX_QUOTED: usize = 64;

/// The time in which each kind of cause is logged as a warning once. Strangers may cause refusals as often as they like.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// The cause of one refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    /// A word for all causes of its kind.
    pub(crate) kind: &'static str,
    /// The fault, with its details.
    pub(crate) text: Cow<'static, str>,
}

/// The log of refusals: a warning for the first of its kind in a while, with the number of those before it that got
/// none, and a line at `debug` for each of the others.
#[derive(Debug, Default)]
pub(crate) struct RefusalLog {
    /// By kind, of which there are few. Held for a look-up only.
    kinds: Mutex<HashMap<&'static str, Warned>>,
}

#[derive(Debug)]
struct Warned {
    at: Instant,
    /// Refusals since then.
    unlogged: u64,
}

impl Cause {
    pub(crate) fn new(kind: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }
}

impl RefusalLog {
    /// Logs the refusal of credentials that came from `address`.
    pub(crate) fn log(&self, address: PeerAddress, cause: &Cause) {
        let Cause { kind, text } = cause;
        match self.warns(kind, Instant::now()) {
            Some(unlogged) => tracing::warn!(
                address = format_args!("{address:#}"),
                kind,
                cause = %text,
                unlogged,
                "credentials refused; the next refusals of this kind are logged at debug for a while"
            ),
            None => tracing::debug!(
                address = format_args!("{address:#}"),
                kind,
                cause = %text,
                "credentials refused"
            ),
        }
    }

    /// The number of refusals of this kind that got no warning before, if this one is to get one.
    fn warns(&self, kind: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(warned) = kinds.get_mut(kind) else {
            kinds.insert(
                kind,
                Warned {
                    at: now,
                    unlogged: 0,
                },
            );
            return Some(0);
        };
        if now.saturating_duration_since(warned.at) < WARNING_INTERVAL {
            warned.unlogged += 1;
            return None;
        }
        warned.at = now;
        Some(std::mem::take(&mut warned.unlogged))
    }
}

/// The words of a stranger, so that they can stand in a line of a log.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?} and {} bytes more", &text[..end], text.len() - end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_refusal_is_warned_of_once_in_a_while() {
        let (log, start) = (RefusalLog::default(), Instant::now());
        assert_eq!(log.warns("a", start), Some(0));
        assert_eq!(log.warns("b", start), Some(0));
        for second in 1..10 {
            assert_eq!(log.warns("a", start + Duration::from_secs(second)), None);
        }
        assert_eq!(log.warns("a", start + WARNING_INTERVAL), Some(9));
        assert_eq!(log.warns("b", start + WARNING_INTERVAL), Some(0));
        assert_eq!(log.warns("a", start + WARNING_INTERVAL), None);
    }

    #[test]
    fn quotations_are_short_and_of_one_line() {
        assert_eq!(quoted("RS256"), r#""RS256""#);
        assert_eq!(quoted("a\n\u{1b}[31m"), r#""a\n\u{1b}[31m""#);
        let long = quoted(&"\u{1f30a}".repeat(100_000));
        assert!(long.ends_with("399744 bytes more"), "{long}");
        assert!(long.len() < 300, "{long}");
    }
}

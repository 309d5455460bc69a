//! The next step after a status: by its reason, or by its code if the reason is unknown.
//!
//! docs/protocol.md has the same table for authors of clients, and a test compares the two.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    advice::Advice,
    cause::{Cause, RETRY_TRAILER},
};

/// Domain of the reasons in `google.rpc.ErrorInfo`. A proxy may answer with reasons of another domain.
const DOMAIN: &str = "tidegate";

/// Trailer with the reason, beside the rich details.
const REASON_TRAILER: &str = "tidegate-reason";

/// Each reason of the protocol, with its code and the next step.
pub(crate) const REASONS: [(&str, Code, Advice); 31] = [
    ("INVALID_FILTER", Code::InvalidArgument, Advice::Correct),
    ("INVALID_TOPIC", Code::InvalidArgument, Advice::Correct),
    ("INVALID_CLIENT_ID", Code::InvalidArgument, Advice::Correct),
    ("INVALID_LIMITS", Code::InvalidArgument, Advice::Correct),
    ("INVALID_POSITION", Code::InvalidArgument, Advice::Correct),
    ("INVALID_REQUEST", Code::InvalidArgument, Advice::Correct),
    ("TOO_MANY_FILTERS", Code::InvalidArgument, Advice::Correct),
    ("FILTERS_TOO_COSTLY", Code::InvalidArgument, Advice::Correct),
    ("TOO_MANY_EVENTS", Code::InvalidArgument, Advice::Correct),
    ("EVENT_TOO_LARGE", Code::InvalidArgument, Advice::Correct),
    ("BATCH_TOO_LARGE", Code::InvalidArgument, Advice::Correct),
    (
        "COMPRESSION_UNSUPPORTED",
        Code::Unimplemented,
        Advice::Correct,
    ),
    ("MALFORMED_MESSAGE", Code::Internal, Advice::Correct),
    ("CLIENT_ID_TAKEN", Code::AlreadyExists, Advice::Stop),
    ("TAKEN_OVER", Code::Aborted, Advice::Stop),
    ("TOO_SLOW", Code::ResourceExhausted, Advice::Resume),
    ("STALLED", Code::ResourceExhausted, Advice::Resume),
    ("QUOTA_EXCEEDED", Code::ResourceExhausted, Advice::Resume),
    ("POSITION_AHEAD", Code::OutOfRange, Advice::StartAnew),
    ("SHUTTING_DOWN", Code::Unavailable, Advice::Resume),
    ("MAX_CONNECTION_AGE", Code::Unavailable, Advice::Resume),
    ("DEADLINE_EXCEEDED", Code::DeadlineExceeded, Advice::Resume),
    ("EPOCH_CHANGED", Code::Unavailable, Advice::Resume),
    ("DISCONNECTED", Code::Aborted, Advice::Stop),
    (
        "CREDENTIALS_MISSING",
        Code::Unauthenticated,
        Advice::Authenticate,
    ),
    (
        "CREDENTIALS_INVALID",
        Code::Unauthenticated,
        Advice::Authenticate,
    ),
    (
        "CREDENTIALS_EXPIRED",
        Code::Unauthenticated,
        Advice::Authenticate,
    ),
    (
        "CREDENTIALS_REVOKED",
        Code::Unauthenticated,
        Advice::Authenticate,
    ),
    ("KEYS_UNAVAILABLE", Code::Unavailable, Advice::Resume),
    ("NOT_ALLOWED", Code::PermissionDenied, Advice::Stop),
    ("INTERNAL", Code::Internal, Advice::Resume),
];

/// Returns the reason that the server gave for a status, such as `STALLED`, known or not: the one in the rich details, or
/// else in the trailer.
pub fn reason(status: &Status) -> Option<String> {
    let details = status.get_details_error_info();
    details
        .filter(|info| info.domain == DOMAIN && !info.reason.is_empty())
        .map(|info| info.reason)
        .or_else(|| trailer(status, REASON_TRAILER).map(Into::into))
}

/// Returns the delay that the server asks for: the one in the rich details, or else in the trailer.
pub(crate) fn retry_delay(status: &Status) -> Option<Duration> {
    let details = status.get_details_retry_info();
    details.and_then(|info| info.retry_delay).or_else(|| {
        let milliseconds = trailer(status, RETRY_TRAILER)?.parse().ok()?;
        Some(Duration::from_millis(milliseconds))
    })
}

/// Returns what the status means: the code that belongs to its reason, or its own, and the next step.
///
/// The reason decides, since one code has reasons with opposite steps. A reason that is newer than this client leaves
/// the decision to the code, which the server has chosen by what the client should do.
pub(crate) fn meaning(status: &Status) -> (Code, Advice) {
    if let Some(cause) = Cause::of(status) {
        return (cause.code, cause.advice);
    }
    if is_transport(status) {
        return (Code::Unavailable, Advice::Resume);
    }
    let by_reason = reason(status).and_then(|reason| {
        let row = REASONS.iter().find(|(name, ..)| *name == reason)?;
        Some((row.1, row.2))
    });
    by_reason.unwrap_or_else(|| (status.code(), by_code(status.code())))
}

/// The next step after a status without a reason. Proxies end streams with the codes that resume, so they count even if
/// no server sends them, and a code that does not exist reads as `UNKNOWN`.
const fn by_code(code: Code) -> Advice {
    match code {
        Code::Unavailable
        | Code::Unknown
        | Code::Internal
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted => Advice::Resume,
        Code::InvalidArgument => Advice::Correct,
        Code::Unauthenticated => Advice::Authenticate,
        Code::OutOfRange => Advice::StartAnew,
        _ => Advice::Stop,
    }
}

/// Whether the status describes a failed connection: the client made it, and no server sent it.
fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

fn trailer<'a>(status: &'a Status, name: &str) -> Option<&'a str> {
    let value = status.metadata().get(name)?.to_str().ok()?;
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn with_reason(code: Code, domain: &str, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, domain, HashMap::new());
        Status::with_error_details(code, "why", details)
    }

    fn with_trailer(mut status: Status, name: &'static str, value: &str) -> Status {
        let value = value.parse().unwrap();
        status.metadata_mut().insert(name, value);
        status
    }

    /// Name of a code as gRPC writes it.
    fn name(code: Code) -> String {
        let name = format!("{code:?}");
        let words = name.char_indices().map(|(i, letter)| match letter {
            'A'..='Z' if i > 0 => format!("_{letter}"),
            letter => letter.to_ascii_uppercase().to_string(),
        });
        words.collect()
    }

    /// Rows of the table of statuses in docs/protocol.md: code, reasons, advice.
    fn documented() -> Vec<(String, String, String)> {
        let document = include_str!("../../../docs/protocol.md");
        let table = document
            .lines()
            .skip_while(|line| !line.starts_with("| Code | reasons |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'));
        table
            .map(|line| {
                let cells: Vec<_> = line.trim_matches(['|', ' ']).split(" | ").collect();
                assert_eq!(cells.len(), 4, "{line}");
                (cells[0].into(), cells[1].into(), cells[3].into())
            })
            .collect()
    }

    fn documented_step(advice: Advice) -> &'static [&'static str] {
        match advice {
            Advice::Correct => &["stop, and correct"],
            Advice::Stop => &["stop"],
            Advice::Resume => &["resume with back-off", "resume after"],
            Advice::Authenticate => &["renew"],
            Advice::StartAnew => &["subscribe anew"],
        }
    }

    #[test]
    fn every_reason_does_what_the_protocol_says() {
        let documented = documented();
        let words = documented.iter().flat_map(|row| row.1.split(", "));
        let names = words.filter(|word| word.starts_with('`'));
        assert_eq!(names.count(), REASONS.len(), "a reason is missing here");
        for (reason, code, advice) in REASONS {
            let cell = format!("`{reason}`");
            let row = documented
                .iter()
                .find(|row| row.1.split(", ").any(|word| word == cell))
                .unwrap_or_else(|| panic!("{reason} is not in the document"));
            assert_eq!(row.0.trim_matches('`'), name(code), "{reason}");
            let steps = documented_step(advice);
            assert!(
                steps.iter().any(|step| row.2.contains(step)),
                "{reason}: none of {steps:?} in {row:?}"
            );
        }
    }

    #[test]
    fn reason_decides_before_the_code() {
        for (reason, code, advice) in REASONS {
            for stated in [Code::Unimplemented, code] {
                let status = with_reason(stated, DOMAIN, reason);
                assert_eq!(meaning(&status), (code, advice), "{reason} {stated:?}");
                let status = with_trailer(Status::new(stated, "why"), REASON_TRAILER, reason);
                assert_eq!(meaning(&status), (code, advice), "{reason} {stated:?}");
            }
        }
    }

    #[test]
    fn unknown_reason_leaves_the_decision_to_the_code() {
        for code in (1..17).map(Code::from_i32) {
            let plain = meaning(&Status::new(code, "why"));
            assert_eq!(plain, (code, by_code(code)));
            for (domain, reason) in [(DOMAIN, "NEWER"), ("proxy.example", "TAKEN_OVER")] {
                assert_eq!(meaning(&with_reason(code, domain, reason)), plain);
            }
        }
    }

    #[test]
    fn details_are_read_before_the_trailers() {
        let status = with_reason(Code::ResourceExhausted, DOMAIN, "STALLED");
        let status = with_trailer(status, REASON_TRAILER, "TAKEN_OVER");
        assert_eq!(reason(&status).as_deref(), Some("STALLED"));

        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1500)));
        let status = Status::with_error_details(Code::Unavailable, "why", details);
        let status = with_trailer(status, RETRY_TRAILER, "7");
        assert_eq!(retry_delay(&status), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn trailers_are_read_where_the_details_are_silent() {
        let foreign = with_reason(Code::ResourceExhausted, "proxy.example", "LIMIT");
        let status = with_trailer(foreign, REASON_TRAILER, "STALLED");
        assert_eq!(reason(&status).as_deref(), Some("STALLED"));
        for (text, expected) in [
            ("0", Some(0)),
            ("250", Some(250)),
            ("-1", None),
            ("soon", None),
            ("", None),
            ("99999999999999999999999", None),
        ] {
            let status = with_trailer(Status::unavailable("why"), RETRY_TRAILER, text);
            assert_eq!(
                retry_delay(&status),
                expected.map(Duration::from_millis),
                "{text:?}"
            );
        }
    }

    #[test]
    fn unreadable_details_are_as_none() {
        let garbage = [0xff; 20].as_slice().into();
        let status = Status::with_details(Code::Aborted, "why", garbage);
        assert_eq!(reason(&status), None);
        assert_eq!(retry_delay(&status), None);
        assert_eq!(meaning(&status), (Code::Aborted, Advice::Stop));
    }

    #[test]
    fn failed_connection_resumes_whatever_its_code() {
        let status = Status::from_error(Box::new(std::io::Error::other("cut")));
        assert_eq!(meaning(&status), (Code::Unavailable, Advice::Resume));
    }
}

//! Errors, one for each answer to "what to do next".

use std::time::Duration;

use tonic::{Code, Status};

use crate::{
    GapReason, Position,
    advice::Advice,
    cause::{self, Cause, CauseKind},
    reason,
};

/// The reason why a subscription ended or a call failed.
///
/// This crate retries none of them. A subscription ends with [`Error::Unavailable`] or [`Error::ResourceExhausted`] only
/// if reconnecting is off: it resumes after those by itself.
///
/// The variant follows from the [reason](Error::reason) that the server gave, and from the code of the status if there
/// is none or a newer one than this crate knows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The endpoint is not the URL of a server. Correct it.
    #[error(
        "{endpoint:?} is not the address of a server, such as http://127.0.0.1:50051: {reason}"
    )]
    InvalidEndpoint {
        /// The endpoint, as given.
        endpoint: String,
        /// The problem with it, such as "it has no host".
        reason: String,
    },

    /// The token, the token file or the certificates cannot be used. Nothing was sent.
    #[error("{0}")]
    InvalidCredentials(String),

    /// `UNAVAILABLE`, or the transport failed. A later attempt may succeed. It is unknown whether a publish was
    /// applied.
    #[error("the server cannot be reached or went away, try again later: {}", .0.message())]
    Unavailable(Status),

    /// No connection can be made, and another attempt would not change that: the server's certificate is not trusted, it
    /// does not accept the client's, or something else than a server of gRPC is at the address.
    #[error("{}", .0.message())]
    CannotConnect(Status),

    /// `UNAUTHENTICATED`: credentials are missing, wrong or expired. Get new ones first.
    #[error("the credentials are missing, wrong or expired; get new ones first: {}", .0.message())]
    Unauthenticated(Status),

    /// `PERMISSION_DENIED`: the rules of the server do not allow the request with these credentials.
    #[error("not allowed with these credentials: {}", .0.message())]
    PermissionDenied(Status),

    /// `INVALID_ARGUMENT`: the request is invalid, and the server would refuse it again.
    #[error("the server refused the request, correct it first: {}", .0.message())]
    InvalidArgument(Status),

    /// `ALREADY_EXISTS`: the client id is in use, and the server allows no takeover.
    #[error("the client id is in use, choose another or end the other stream first: {}", .0.message())]
    ClientIdInUse(Status),

    /// `ABORTED`: a newer stream with the same client id took over. Reconnecting would take the id back from the newer
    /// stream, and the two would do so forever.
    #[error("{}: {}", superseded(.0), .0.message())]
    Superseded(Status),

    /// `ABORTED` with the reason `DISCONNECTED`: the service, or its operator, ended the stream. Ask them before you
    /// reconnect.
    #[error("the service or its operator ended the stream; ask them before you reconnect: {}", .0.message())]
    Disconnected(Status),

    /// `RESOURCE_EXHAUSTED`: a call over a quota, a subscription that was too slow for an overflow policy of
    /// `DISCONNECT`, or one that was not read for too long. A subscription resumes by itself, after the delay that the
    /// server asks for, unless reconnecting is off.
    #[error("{}: {}", exhausted(.0), .0.message())]
    ResourceExhausted(Status),

    /// `OUT_OF_RANGE`: the position to resume from is ahead of the server. The server has lost events, or the position
    /// is from another server. [`SubscribeOptions::out_of_range`](crate::SubscribeOptions::out_of_range) sets how to go
    /// on.
    #[error(
        "position {position} is ahead of the server; decide whether to start live or from the whole history: {}",
        .status.message()
    )]
    PositionAhead {
        /// The position of the request.
        position: Position,
        /// The status that the server answered with.
        status: Status,
    },

    /// A response is larger than [`ClientBuilder::max_message_bytes`](crate::ClientBuilder::max_message_bytes), and would
    /// be again. What was published is stored.
    #[error("{}", .0.message())]
    ResponseTooLarge(Status),

    /// Any other status.
    #[error("the server answered {:?}: {}", .0.code(), .0.message())]
    Failed(Status),

    /// The server broke the protocol. Its further responses would be unreliable.
    #[error("the server broke the protocol: {0}")]
    Violation(Violation),
}

/// A rule of the protocol that a server broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The first response was not `Subscribed`, or `Subscribed` came twice.
    #[error("a stream must have exactly one `subscribed`, at its start")]
    Subscribed,

    /// A response lacks its position.
    #[error("a response has no position")]
    MissingPosition,

    /// A batch or gap does not continue the index: events are missing without a gap, or counted twice.
    #[error("index {expected} must come next, but {found} came")]
    Index {
        /// The next index, after all events and gaps so far.
        expected: u64,
        /// The index of the batch or gap that came.
        found: u64,
    },

    /// An event is not newer than the events and gaps before it.
    #[error("event {found} came after position {after}")]
    Order {
        /// Everything up to this position had been delivered or counted by a gap.
        after: Position,
        /// The sequence of the event that came.
        found: u64,
    },

    /// The stream is in another epoch than the position that it continues, without a gap `EPOCH_CHANGED`.
    #[error("epoch {found:016x} follows epoch {expected:016x} without a gap")]
    Epoch {
        /// The epoch of the position.
        expected: u64,
        /// The epoch of the stream.
        found: u64,
    },

    /// A gap has no count, although a gap of its reason must have one.
    #[error("a gap {} has no count", .0.as_str_name())]
    UncountedGap(GapReason),

    /// A gap came after an event, although a gap of its reason may come only before the first.
    #[error("a gap {} came after an event", .0.as_str_name())]
    LateGap(GapReason),

    /// A response of a `PublishStream` does not match the oldest unanswered request.
    #[error("the server acknowledged {found} events of a request with {expected}")]
    Acknowledgment {
        /// Events in the oldest unanswered request; 0 when there is none.
        expected: u64,
        /// Events that the server acknowledged.
        found: u64,
    },

    /// A page of a list names itself as the next one.
    #[error("a page of a list names itself as the next page")]
    Page,
}

impl Error {
    /// Converts a status, of every call but a subscribe that resumes.
    pub(crate) fn from_status(status: Status) -> Self {
        let status = with_cause(status);
        let (code, advice) = reason::meaning(&status);
        match Cause::of(&status).map(|cause| cause.kind) {
            Some(CauseKind::Connection) if advice == Advice::Stop => {
                return Self::CannotConnect(status);
            }
            Some(CauseKind::TooLarge) => return Self::ResponseTooLarge(status),
            _ => {}
        }
        match code {
            Code::Unavailable => Self::Unavailable(status),
            Code::Unauthenticated => Self::Unauthenticated(status),
            Code::PermissionDenied => Self::PermissionDenied(status),
            Code::InvalidArgument => Self::InvalidArgument(status),
            Code::AlreadyExists => Self::ClientIdInUse(status),
            Code::Aborted if is_disconnected(&status) => Self::Disconnected(status),
            Code::Aborted => Self::Superseded(status),
            Code::ResourceExhausted => Self::ResourceExhausted(status),
            _ => Self::Failed(status),
        }
    }

    /// Returns the reason that the server gave, such as `STALLED`, if it gave one. The protocol lists the reasons, and
    /// a newer server may have more.
    pub fn reason(&self) -> Option<String> {
        reason::reason(self.status()?)
    }

    /// Returns the delay that the server asks for before the next attempt, if it asks for one: over a quota, nothing
    /// of a batch was stored, and it can be published again then.
    pub fn retry_after(&self) -> Option<Duration> {
        reason::retry_delay(self.status()?)
    }

    /// Returns the server's status, if there is one. The crate `tonic-types` reads its rich details, such as
    /// `ErrorInfo`.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::InvalidEndpoint { .. } | Self::InvalidCredentials(_) | Self::Violation(_) => None,
            Self::Unavailable(status)
            | Self::CannotConnect(status)
            | Self::ResponseTooLarge(status)
            | Self::Unauthenticated(status)
            | Self::PermissionDenied(status)
            | Self::InvalidArgument(status)
            | Self::ClientIdInUse(status)
            | Self::Superseded(status)
            | Self::Disconnected(status)
            | Self::ResourceExhausted(status)
            | Self::PositionAhead { status, .. }
            | Self::Failed(status) => Some(status),
        }
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// Whether `ABORTED` is no takeover.
fn is_disconnected(status: &Status) -> bool {
    reason::reason(status).as_deref() == Some("DISCONNECTED")
}

/// The words for `ABORTED`, by the reason.
fn superseded(status: &Status) -> &'static str {
    match reason::reason(status).as_deref() {
        Some("TAKEN_OVER") => {
            "a newer stream took over the client id; give each client an id of its own"
        }
        _ => {
            "another stream took over the client id, or an operator ended it; give each client an id of its own"
        }
    }
}

/// The words for `RESOURCE_EXHAUSTED`, by the reason.
fn exhausted(status: &Status) -> &'static str {
    match reason::reason(status).as_deref() {
        Some("TOO_SLOW") => {
            "too slow for overflow policy \"disconnect\"; read faster or ask for larger limits, and resume"
        }
        Some("STALLED") => "nothing was read for too long; keep reading, and resume",
        Some("QUOTA_EXCEEDED") => "over a quota of the server; come back later",
        _ => "over a limit of the server; come back later",
    }
}

/// Explains a status that no server has sent. Adds the root cause to the message of a failed connection: "tcp connect
/// error" alone does not distinguish a refused connection from an unknown host.
pub(crate) fn with_cause(status: Status) -> Status {
    plain(explained(status))
}

/// The words for a body that is no message.
const NO_MESSAGE: &str = "the answer holds no message of gRPC";

/// Makes the message of a status one that can be shown: one line that controls no terminal, and says something.
fn plain(status: Status) -> Status {
    let code = status.code();
    let message = status.message();
    // The words of tonic for a body that is something else. What they have become may come here again.
    let is_no_message = code == Code::Internal
        && message.contains("invalid compression flag")
        && !message.starts_with(NO_MESSAGE);
    let words = match message {
        "" => format!("the status is {code:?}, without a message"),
        _ if is_no_message => format!(
            "{NO_MESSAGE}, so a proxy, or a server of something else, is at this address ({})",
            cause::escaped(message)
        ),
        _ if message.contains(cause::controls) => cause::escaped(message),
        _ => return status,
    };
    let (details, metadata) = (status.details().to_vec(), status.metadata().clone());
    let mut plain = Status::with_details_and_metadata(code, words, details.into(), metadata);
    // A source stands for a failed connection, so there is one only where there was one.
    if std::error::Error::source(&status).is_some() {
        plain.set_source(std::sync::Arc::new(status));
    }
    plain
}

fn explained(status: Status) -> Status {
    if let Some(explained) = cause::of_large_response(&status) {
        return explained;
    }
    let causes = std::iter::successors(std::error::Error::source(&status), |cause| cause.source());
    let Some(cause) = causes.last().map(ToString::to_string) else {
        return status;
    };
    if status.message().contains(&cause) {
        return status;
    }
    let mut explained = Status::new(status.code(), format!("{}: {cause}", status.message()));
    explained.set_source(std::sync::Arc::new(status));
    explained
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn with_reason(code: Code, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, "tidegate", HashMap::new());
        Status::with_error_details(code, "the words of the server", details)
    }

    #[test]
    fn failed_connection_is_unavailable_whatever_its_code() {
        let status = Status::from_error(Box::new(std::io::Error::other("cut")));
        assert!(matches!(Error::from_status(status), Error::Unavailable(_)));
    }

    #[test]
    fn failed_connection_tells_its_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);

        let status = Status::from_error(Box::new(Outer(std::io::Error::other("refused"))));
        let explained = with_cause(with_cause(status));
        assert_eq!(explained.message(), "outer: refused");
        assert!(matches!(
            Error::from_status(explained),
            Error::Unavailable(_)
        ));
        assert_eq!(with_cause(Status::internal("x")).message(), "x");
    }

    #[test]
    fn words_of_a_peer_are_one_line_that_controls_nothing() {
        let status = Status::unknown("a\n\u{1b}[2J\u{202e}b");
        let status = with_cause(with_cause(status));
        assert_eq!(status.message(), r"a\n\u{1b}[2J\u{202e}b");
        assert!(std::error::Error::source(&status).is_none());
        let named = with_cause(with_reason(Code::Aborted, "TAKEN_OVER"));
        assert_eq!(reason::reason(&named).as_deref(), Some("TAKEN_OVER"));
        let mute = Error::from_status(Status::unknown("")).to_string();
        assert!(mute.contains("without a message"), "{mute}");
        let flag = "protocol error: received message with invalid compression flag: 60";
        let page = with_cause(with_cause(Status::internal(flag)));
        assert!(
            page.message()
                .starts_with("the answer holds no message of gRPC")
        );
        assert_eq!(page.message().matches("holds no").count(), 1);
        // A peer that knows these words.
        for words in ["invalid compression flag", NO_MESSAGE] {
            let status = with_cause(with_cause(Status::internal(format!("{words}\u{1b}[2J"))));
            assert!(status.message().contains(r"\u{1b}[2J"), "{status}");
            assert!(!status.message().contains('\u{1b}'), "{status}");
        }
    }

    #[test]
    fn reason_decides_the_variant_before_the_code() {
        let error = Error::from_status(with_reason(Code::Unavailable, "NOT_ALLOWED"));
        assert!(matches!(error, Error::PermissionDenied(_)), "{error:?}");
        assert_eq!(error.reason().as_deref(), Some("NOT_ALLOWED"));
        let error = Error::from_status(with_reason(Code::Aborted, "NEWER"));
        assert!(matches!(error, Error::Superseded(_)), "{error:?}");
        assert_eq!(Error::from_status(Status::aborted("x")).reason(), None);
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
        let status = Status::with_error_details(Code::ResourceExhausted, "x", details);
        let retry_after = Error::from_status(status).retry_after();
        assert_eq!(retry_after, Some(Duration::from_secs(2)));
    }

    #[test]
    fn messages_carry_the_servers_words_and_advice() {
        for (code, reason, advice) in [
            (Code::Aborted, "TAKEN_OVER", "an id of its own"),
            (Code::Aborted, "DISCONNECTED", "ask them"),
            (Code::Aborted, "NEWER", "an id of its own"),
            (Code::ResourceExhausted, "TOO_SLOW", "\"disconnect\""),
            (Code::ResourceExhausted, "STALLED", "keep reading"),
            (Code::ResourceExhausted, "QUOTA_EXCEEDED", "a quota"),
            (Code::ResourceExhausted, "NEWER", "a limit"),
        ] {
            let message = Error::from_status(with_reason(code, reason)).to_string();
            assert!(message.contains("the words of the server"), "{message}");
            assert!(message.contains(advice), "{message}");
            let names_the_policy = message.contains("\"disconnect\"");
            assert_eq!(names_the_policy, reason == "TOO_SLOW", "{message}");
        }
    }
}

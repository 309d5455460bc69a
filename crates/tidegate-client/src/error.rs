//! Errors, one for each answer to "what to do next".

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{GapReason, Position};

/// The reason why a subscription ended or a call failed.
///
/// This crate retries none of them. A subscription ends with [`Error::Unavailable`] only if reconnecting is off: it
/// retries transport errors itself.
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

    /// `ABORTED`: a newer stream with the same client id took over, or an operator disconnected the client.
    /// Reconnecting would take the id back from the newer stream, and the two would do so forever.
    #[error(
        "another stream took over the client id, or an operator ended it; give each client an id of its own: {}",
        .0.message()
    )]
    Superseded(Status),

    /// `RESOURCE_EXHAUSTED`: too slow for an overflow policy of `DISCONNECT`, or a call over a quota. A subscription
    /// over a quota retries after the delay that the server asks for, unless reconnecting is off.
    #[error("too slow for overflow policy \"disconnect\", or over a quota: {}", .0.message())]
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
}

impl Error {
    /// Converts a status, of every call but a subscribe that resumes.
    pub(crate) fn from_status(status: Status) -> Self {
        let status = with_cause(status);
        match status.code() {
            _ if is_transport(&status) => Self::Unavailable(status),
            Code::Unavailable => Self::Unavailable(status),
            Code::Unauthenticated => Self::Unauthenticated(status),
            Code::PermissionDenied => Self::PermissionDenied(status),
            Code::InvalidArgument => Self::InvalidArgument(status),
            Code::AlreadyExists => Self::ClientIdInUse(status),
            Code::Aborted => Self::Superseded(status),
            Code::ResourceExhausted => Self::ResourceExhausted(status),
            _ => Self::Failed(status),
        }
    }

    /// Returns the server's status, if there is one. The crate `tonic-types` reads its rich details, such as
    /// `ErrorInfo`.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::InvalidEndpoint { .. } | Self::InvalidCredentials(_) | Self::Violation(_) => None,
            Self::Unavailable(status)
            | Self::Unauthenticated(status)
            | Self::PermissionDenied(status)
            | Self::InvalidArgument(status)
            | Self::ClientIdInUse(status)
            | Self::Superseded(status)
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

/// Whether the same subscribe may succeed later, although nothing has changed.
///
/// Proxies end streams with all of these codes, so they count even if the server never sends them. For a quota, a
/// server says when to come back. For a client that was too slow it does not, since the same would happen again.
pub(crate) fn is_transient(status: &Status) -> bool {
    is_transport(status)
        || match status.code() {
            Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::DeadlineExceeded => true,
            Code::ResourceExhausted => retry_hint(status).is_some(),
            _ => false,
        }
}

/// Whether the status describes a failed connection: the client made it, and no server sent it.
fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Adds the root cause to the message of a failed connection: "tcp connect error" alone does not distinguish a refused
/// connection from an unknown host.
pub(crate) fn with_cause(status: Status) -> Status {
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

/// Returns the delay that the server asks for.
pub(crate) fn retry_hint(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn each_status_is_transient_or_not() {
        let transient = [
            Code::Unavailable,
            Code::Unknown,
            Code::Internal,
            Code::Cancelled,
            Code::DeadlineExceeded,
        ];
        for code in (0..17).map(Code::from_i32) {
            let status = Status::new(code, "why");
            assert_eq!(is_transient(&status), transient.contains(&code), "{code:?}");
        }
    }

    #[test]
    fn quota_is_transient_and_too_slow_is_not() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
        let over_quota = Status::with_error_details(Code::ResourceExhausted, "quota", details);
        assert!(is_transient(&over_quota));
        assert!(!is_transient(&Status::resource_exhausted("too slow")));
        assert!(matches!(
            Error::from_status(over_quota),
            Error::ResourceExhausted(_)
        ));
    }

    #[test]
    fn a_failed_connection_is_transient_whatever_its_code() {
        let status = Status::from_error(Box::new(std::io::Error::other("cut")));
        assert!(is_transient(&status));
        assert!(matches!(Error::from_status(status), Error::Unavailable(_)));
    }

    #[test]
    fn a_failed_connection_tells_its_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);

        let status = Status::from_error(Box::new(Outer(std::io::Error::other("refused"))));
        let explained = with_cause(with_cause(status));
        assert_eq!(explained.message(), "outer: refused");
        assert!(is_transient(&explained));
        assert_eq!(with_cause(Status::internal("x")).message(), "x");
    }

    #[test]
    fn retry_info_is_read_from_rich_details() {
        let delay = Duration::from_millis(1500);
        let details = ErrorDetails::with_retry_info(Some(delay));
        let status = Status::with_error_details(Code::Unavailable, "drain", details);
        assert_eq!(retry_hint(&status), Some(delay));
        assert_eq!(retry_hint(&Status::unavailable("drain")), None);
    }

    #[test]
    fn messages_carry_the_servers_words_and_advice() {
        let error = Error::from_status(Status::aborted("taken over by subscription 7"));
        let message = error.to_string();
        assert!(
            message.contains("taken over by subscription 7"),
            "{message}"
        );
        assert!(message.contains("an id of its own"), "{message}");
    }
}

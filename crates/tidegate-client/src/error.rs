//! What ends a subscription or fails a publish, sorted by what to do next.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{GapReason, Position};

/// Why a subscription ended, or a publish failed.
///
/// None of these is retried by this crate; [`Error::Unavailable`] reaches the user of a subscription only when
/// reconnecting was turned off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address of the server cannot be used.
    #[error(
        "{endpoint:?} is not the address of a server, such as http://127.0.0.1:50051: {reason}"
    )]
    InvalidEndpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The token or the certificates to show cannot be used.
    #[error("{0}")]
    InvalidCredentials(String),

    /// `UNAVAILABLE`, or the transport failed. Trying again later may help. For a publish, whether it was
    /// applied is unknown.
    #[error("the server cannot be reached or went away, try again later: {}", .0.message())]
    Unavailable(Status),

    /// `UNAUTHENTICATED`: credentials are missing, wrong or expired. Get new ones first.
    #[error("the credentials are missing, wrong or expired, get new ones first: {}", .0.message())]
    Unauthenticated(Status),

    /// `PERMISSION_DENIED`: these credentials do not allow it.
    #[error("not allowed with these credentials: {}", .0.message())]
    PermissionDenied(Status),

    /// `INVALID_ARGUMENT`: the request is wrong and would be refused again.
    #[error("the server refused the request, correct it first: {}", .0.message())]
    InvalidArgument(Status),

    /// `ALREADY_EXISTS`: the client id is in use, and the server lets nobody take it over.
    #[error("the client id is in use, choose another or end the other stream first: {}", .0.message())]
    ClientIdInUse(Status),

    /// `ABORTED`: a newer stream with the same client id took over. Reconnecting would take it back, and the
    /// two would do so forever.
    #[error("another stream took this client id over, give each client an id of its own: {}", .0.message())]
    Superseded(Status),

    /// `RESOURCE_EXHAUSTED`: too slow for an overflow policy of `DISCONNECT`, or a publish over a quota. A subscription
    /// over a quota is tried again when the server says, as long as reconnecting is on.
    #[error("too slow for overflow policy \"disconnect\", or over a quota: {}", .0.message())]
    ResourceExhausted(Status),

    /// `OUT_OF_RANGE`: the position to resume from is ahead of the server, so that one of the two has lost
    /// something. [`SubscribeOptions::out_of_range`](crate::SubscribeOptions::out_of_range) says how to go on.
    #[error("position {position} is ahead of the server; decide whether to start live or from the whole history: {}", .status.message())]
    PositionAhead {
        /// The position that was asked for.
        position: Position,
        /// The server's answer.
        status: Status,
    },

    /// Any other status.
    #[error("the server answered {:?}: {}", .0.code(), .0.message())]
    Failed(Status),

    /// The server broke the protocol. What it says can no longer be relied on.
    #[error("the server broke the protocol: {0}")]
    Violation(Violation),
}

/// How a server broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Something other than `Subscribed` came first, or a second one came later.
    #[error("a stream has exactly one `subscribed`, at its start")]
    Subscribed,

    /// A response lacks its position.
    #[error("a response has no position")]
    MissingPosition,

    /// A batch or gap does not continue the index: events are missing without a gap, or counted twice.
    #[error("index {expected} was to come next, but {found} came")]
    Index {
        /// The index after everything so far.
        expected: u64,
        /// The index that the server gave.
        found: u64,
    },

    /// An event is not newer than what came before it.
    #[error("event {found} came after position {after}")]
    Order {
        /// Everything up to here had been delivered or reported as missing.
        after: Position,
        /// The sequence of the event.
        found: u64,
    },

    /// The stream is in another epoch than the position it continues, and no gap said so.
    #[error("epoch {found:016x} follows epoch {expected:016x} without a gap")]
    Epoch {
        /// The epoch to continue.
        expected: u64,
        /// The epoch that the server is in.
        found: u64,
    },

    /// A gap of this reason must say how many events are missing.
    #[error("a gap {} has no count", .0.as_str_name())]
    UncountedGap(GapReason),

    /// A gap of this reason may stand only before the first event of a stream.
    #[error("a gap {} came after an event", .0.as_str_name())]
    LateGap(GapReason),

    /// A response to a publish does not belong to the oldest unanswered request.
    #[error("{found} events were acknowledged where {expected} were to be")]
    Acknowledgment {
        /// Events in the oldest unanswered request; 0 when there is none.
        expected: u64,
        /// Events that the server acknowledged.
        found: u64,
    },
}

impl Error {
    /// The error that `status` means, for every call but a subscribe that resumes.
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

    /// The server's status, if there is one. Its rich details are read with the crate `tonic-types`.
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

/// Whether the same subscribe may succeed later without anyone changing anything.
///
/// Proxies end streams with all of these, so they count whoever they come from. Over a quota a server says when to come
/// back; of a client that was too slow it does not, as the same would happen again.
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

/// Whether the status was made here, of a failed connection, and not sent by the server.
fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Adds to the words for a failed connection what failed in the end: "tcp connect error" alone does not tell
/// a refused connection from an unknown host.
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

/// How long the server asks to wait.
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

//! The one place where errors and endings become gRPC statuses.
//!
//! The code is chosen by what the client should do next. Each status carries a
//! `google.rpc.ErrorInfo` with the domain [`DOMAIN`] and a stable reason, so that programs need not
//! read messages. Each reason has an [`Advice`]. Bad input carries a `BadRequest` that names the field, and
//! the end of a stream that goes away a `RetryInfo`.

use std::{collections::HashMap, time::Duration};

use http::HeaderMap;
use tidegate_core::{CloseReason, NameError, Payload, PublishError, SubscribeError, Subscription};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::gate::OverQuota;

/// The domain of the reasons in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "tidegate";

/// Why a request was refused or a stream ended, as `google.rpc.ErrorInfo` carries it. Names never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A filter breaks the rules. Mend it.
    InvalidFilter,
    /// A topic breaks the rules or is reserved. Mend it.
    InvalidTopic,
    /// A client id is not one token of at most 128 bytes. Mend it.
    InvalidClientId,
    /// Limits cannot be served. Mend them.
    InvalidLimits,
    /// `resume_after` cannot be used as given. Mend it.
    InvalidPosition,
    /// Another field cannot be used as given. Mend it.
    InvalidRequest,
    /// More filters than the server takes. Use fewer, or wildcards.
    TooManyFilters,
    /// More events in one batch than the server takes. Send several.
    TooManyEvents,
    /// An event is larger than the server takes.
    EventTooLarge,
    /// A batch is larger than the server takes. Send several.
    BatchTooLarge,
    /// The client id is in use. Use another, or wait until it is free.
    ClientIdTaken,
    /// A newer stream of this client id took over. Do not reconnect.
    TakenOver,
    /// The client fell behind by more than its limits. Resume if you can keep up.
    TooSlow,
    /// The client took nothing of what was there for too long. Resume, on a connection that is read.
    Stalled,
    /// The client, or all of its address or principal, would use more than a quota allows. Come back after the
    /// delay given.
    QuotaExceeded,
    /// `resume_after` is ahead of the newest event. Do not retry with this position.
    PositionAhead,
    /// The server is shutting down. Reconnect, after the delay given.
    ShuttingDown,
    /// The connection has reached its greatest age. Reconnect, after the delay given.
    MaxConnectionAge,
    /// The deadline that the client set has passed. Resume, if it was not meant.
    DeadlineExceeded,
    /// The sequences have begun anew. Resume; what lies between will be told.
    EpochChanged,
    /// The service ended the stream of its own will. Do not reconnect.
    Disconnected,
    /// The call carries no credentials, and the server asks for them.
    CredentialsMissing,
    /// The credentials are not accepted. Get others.
    CredentialsInvalid,
    /// The credentials have expired. Renew them, and resume.
    CredentialsExpired,
    /// The credentials, which were accepted when the stream began, no longer are. Get others, and resume.
    CredentialsRevoked,
    /// The keys that the credentials are checked with cannot be had, which is no fault of the caller's. Try again.
    KeysUnavailable,
    /// The caller may not do this. Ask for a rule that allows it.
    NotAllowed,
    /// A fault of the server.
    Internal,
}

/// What a client should do about a [`Reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// Mend the request: the same one will be refused again.
    Mend,
    /// Do not come back by itself.
    Stop,
    /// Resume from the last position, after a back-off.
    Resume,
    /// Resume from the last position, after the delay that the server gave.
    ResumeAfterDelay,
    /// Get new credentials, and resume from the last position with them. Stop if those are refused too.
    Authenticate,
    /// Forget the position, subscribe anew, and reload whatever state depends on it.
    StartAnew,
}

impl Reason {
    /// The name on the wire, the code that tells a client what to do next, and what that is.
    const fn row(self) -> (&'static str, Code, Advice) {
        match self {
            Self::InvalidFilter => ("INVALID_FILTER", Code::InvalidArgument, Advice::Mend),
            Self::InvalidTopic => ("INVALID_TOPIC", Code::InvalidArgument, Advice::Mend),
            Self::InvalidClientId => ("INVALID_CLIENT_ID", Code::InvalidArgument, Advice::Mend),
            Self::InvalidLimits => ("INVALID_LIMITS", Code::InvalidArgument, Advice::Mend),
            Self::InvalidPosition => ("INVALID_POSITION", Code::InvalidArgument, Advice::Mend),
            Self::InvalidRequest => ("INVALID_REQUEST", Code::InvalidArgument, Advice::Mend),
            Self::TooManyFilters => ("TOO_MANY_FILTERS", Code::InvalidArgument, Advice::Mend),
            Self::TooManyEvents => ("TOO_MANY_EVENTS", Code::InvalidArgument, Advice::Mend),
            Self::EventTooLarge => ("EVENT_TOO_LARGE", Code::InvalidArgument, Advice::Mend),
            Self::BatchTooLarge => ("BATCH_TOO_LARGE", Code::InvalidArgument, Advice::Mend),
            Self::ClientIdTaken => ("CLIENT_ID_TAKEN", Code::AlreadyExists, Advice::Stop),
            Self::TakenOver => ("TAKEN_OVER", Code::Aborted, Advice::Stop),
            Self::TooSlow => ("TOO_SLOW", Code::ResourceExhausted, Advice::Resume),
            Self::Stalled => ("STALLED", Code::ResourceExhausted, Advice::Resume),
            Self::QuotaExceeded => (
                "QUOTA_EXCEEDED",
                Code::ResourceExhausted,
                Advice::ResumeAfterDelay,
            ),
            Self::PositionAhead => ("POSITION_AHEAD", Code::OutOfRange, Advice::StartAnew),
            Self::ShuttingDown => ("SHUTTING_DOWN", Code::Unavailable, Advice::ResumeAfterDelay),
            Self::MaxConnectionAge => (
                "MAX_CONNECTION_AGE",
                Code::Unavailable,
                Advice::ResumeAfterDelay,
            ),
            Self::DeadlineExceeded => ("DEADLINE_EXCEEDED", Code::DeadlineExceeded, Advice::Resume),
            Self::EpochChanged => ("EPOCH_CHANGED", Code::Unavailable, Advice::Resume),
            Self::Disconnected => ("DISCONNECTED", Code::Aborted, Advice::Stop),
            Self::CredentialsMissing => (
                "CREDENTIALS_MISSING",
                Code::Unauthenticated,
                Advice::Authenticate,
            ),
            Self::CredentialsInvalid => (
                "CREDENTIALS_INVALID",
                Code::Unauthenticated,
                Advice::Authenticate,
            ),
            Self::CredentialsExpired => (
                "CREDENTIALS_EXPIRED",
                Code::Unauthenticated,
                Advice::Authenticate,
            ),
            Self::CredentialsRevoked => (
                "CREDENTIALS_REVOKED",
                Code::Unauthenticated,
                Advice::Authenticate,
            ),
            Self::KeysUnavailable => ("KEYS_UNAVAILABLE", Code::Unavailable, Advice::Resume),
            Self::NotAllowed => ("NOT_ALLOWED", Code::PermissionDenied, Advice::Stop),
            Self::Internal => ("INTERNAL", Code::Internal, Advice::Resume),
        }
    }

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The code that tells a client what to do next.
    #[must_use]
    pub const fn code(self) -> Code {
        self.row().1
    }

    /// What the client should do.
    #[must_use]
    pub const fn advice(self) -> Advice {
        self.row().2
    }

    fn details(self, metadata: HashMap<String, String>) -> ErrorDetails {
        ErrorDetails::with_error_info(self.as_str(), DOMAIN, metadata)
    }

    /// The status, with nothing but the reason and a message for people.
    #[must_use]
    pub fn status(self, message: impl Into<String>) -> Status {
        Status::with_error_details(self.code(), message, self.details(HashMap::new()))
    }

    /// The status for bad input, which names the field, for services that are served beside the events.
    #[must_use]
    pub fn in_field(self, field: impl Into<String>, problem: impl Into<String>) -> Status {
        let (field, problem) = (field.into(), problem.into());
        let message = format!("{field}: {problem}");
        let mut details = self.details(HashMap::new());
        details.add_bad_request_violation(field, problem);
        Status::with_error_details(self.code(), message, details)
    }

    /// The status with facts for programs.
    fn with_facts(
        self,
        message: impl Into<String>,
        facts: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> Status {
        let facts = facts
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_string()));
        Status::with_error_details(self.code(), message, self.details(facts.collect()))
    }
}

/// The status of a stream that the hub has ended, with where to resume, its limits, and how far it was
/// behind.
pub(crate) fn ended<P: Payload>(
    reason: CloseReason,
    subscription: &Subscription<P>,
    reconnect_after: Duration,
) -> Status {
    let status = end_reason(reason).with_facts(reason.to_string(), facts_of(subscription));
    if !is_going_away(reason) {
        return status;
    }
    let mut details = status.get_error_details();
    details.set_retry_info(Some(reconnect_after));
    Status::with_error_details(status.code(), status.message(), details)
}

/// The status of a stream whose deadline has passed, with the same facts.
pub(crate) fn deadline_exceeded<P: Payload>(subscription: &Subscription<P>) -> Status {
    let message = "the deadline that the client set has passed";
    Reason::DeadlineExceeded.with_facts(message, facts_of(subscription))
}

fn facts_of<P: Payload>(subscription: &Subscription<P>) -> [(&'static str, u64); 5] {
    let position = subscription.position();
    let limits = subscription.limits();
    [
        ("resume_after_epoch", position.epoch),
        ("resume_after_sequence", position.sequence),
        ("max_events", limits.max_events.get()),
        ("max_bytes", limits.max_bytes.get()),
        ("backlog", subscription.backlog()),
    ]
}

/// Whether a stream that ends for `reason` is told so by `GoingAway`, with a delay to come back after.
pub(crate) fn is_going_away(reason: CloseReason) -> bool {
    let advice = end_reason(reason).advice();
    matches!(advice, Advice::ResumeAfterDelay | Advice::Authenticate)
}

/// The status of what was ended and has no position to resume from: another call, or a stream that had not begun.
pub(crate) fn ended_without_position(reason: CloseReason) -> Status {
    end_reason(reason).status(reason.to_string())
}

/// A status as the trailers that end a response.
pub(crate) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    status
        .add_header(&mut trailers)
        .expect("a status is made of valid header values");
    trailers
}

/// Every cause for which the hub ends a stream, and what the client is told. What each means for the
/// client is with the [`Reason`].
pub(crate) const fn end_reason(reason: CloseReason) -> Reason {
    match reason {
        CloseReason::TakenOver => Reason::TakenOver,
        CloseReason::ShuttingDown => Reason::ShuttingDown,
        CloseReason::MaxConnectionAge => Reason::MaxConnectionAge,
        CloseReason::TooSlow => Reason::TooSlow,
        CloseReason::Stalled => Reason::Stalled,
        CloseReason::EpochChanged => Reason::EpochChanged,
        CloseReason::Disconnected => Reason::Disconnected,
        CloseReason::CredentialsExpired => Reason::CredentialsExpired,
        CloseReason::CredentialsRevoked => Reason::CredentialsRevoked,
        CloseReason::NoLongerAllowed => Reason::NotAllowed,
    }
}

/// The status of a call that would exceed a quota.
pub(crate) fn over_quota(over: OverQuota) -> Status {
    let reason = Reason::QuotaExceeded;
    let facts = HashMap::from([("quota".to_owned(), over.quota.to_owned())]);
    let mut details = reason.details(facts);
    details.set_retry_info(Some(over.retry_after));
    let message = format!(
        "over the quota on {}; try again after {:?}",
        over.quota, over.retry_after
    );
    Status::with_error_details(reason.code(), message, details)
}

/// The status for a message that tonic could not read. It has a code for one that is too large which
/// means something else here.
pub(crate) fn unreadable(status: Status, too_large: Reason) -> Status {
    match (status.code(), too_large) {
        (Code::OutOfRange, Reason::BatchTooLarge) => too_large.in_field("events", status.message()),
        (Code::OutOfRange, _) => too_large.status(status.message()),
        _ => status,
    }
}

pub(crate) fn not_subscribed(error: SubscribeError) -> Status {
    match error {
        SubscribeError::ClientIdTaken => {
            Reason::ClientIdTaken.in_field("client_id", error.to_string())
        }
        SubscribeError::PositionAhead { head } => {
            Reason::PositionAhead.with_facts(error.to_string(), [("head", head)])
        }
        SubscribeError::Closed(reason) => end_reason(reason).status(error.to_string()),
        other => Reason::Internal.status(other.to_string()),
    }
}

pub(crate) fn not_published(error: PublishError) -> Status {
    match error {
        PublishError::Closed(reason) => end_reason(reason).status(error.to_string()),
        other => Reason::Internal.status(other.to_string()),
    }
}

pub(crate) fn bad_name(reason: Reason, field: impl Into<String>, error: &NameError) -> Status {
    reason.in_field(field, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Reason; 28] = [
        Reason::InvalidFilter,
        Reason::InvalidTopic,
        Reason::InvalidClientId,
        Reason::InvalidLimits,
        Reason::InvalidPosition,
        Reason::InvalidRequest,
        Reason::TooManyFilters,
        Reason::TooManyEvents,
        Reason::EventTooLarge,
        Reason::BatchTooLarge,
        Reason::ClientIdTaken,
        Reason::TakenOver,
        Reason::TooSlow,
        Reason::Stalled,
        Reason::QuotaExceeded,
        Reason::PositionAhead,
        Reason::ShuttingDown,
        Reason::MaxConnectionAge,
        Reason::DeadlineExceeded,
        Reason::EpochChanged,
        Reason::Disconnected,
        Reason::CredentialsMissing,
        Reason::CredentialsInvalid,
        Reason::CredentialsExpired,
        Reason::CredentialsRevoked,
        Reason::KeysUnavailable,
        Reason::NotAllowed,
        Reason::Internal,
    ];

    /// The name of a code as gRPC writes it.
    fn name(code: Code) -> String {
        let name = format!("{code:?}");
        let words = name.char_indices().map(|(i, letter)| match letter {
            'A'..='Z' if i > 0 => format!("_{letter}"),
            letter => letter.to_ascii_uppercase().to_string(),
        });
        words.collect()
    }

    /// `docs/protocol.md` has each reason with its code, and advice of that kind.
    #[test]
    fn the_protocol_document_has_every_reason_with_its_code_and_advice() {
        let document = include_str!("../../../docs/protocol.md");
        for reason in ALL {
            let cell = format!("`{}`", reason.as_str());
            let rows: Vec<Vec<&str>> = document
                .lines()
                .map(|line| line.split(" | ").collect())
                .filter(|row: &Vec<_>| row.len() == 4 && row[1].contains(&cell))
                .collect();
            let [row] = &rows[..] else {
                panic!("{cell}: {rows:?}")
            };
            assert_eq!(row[0].trim_matches(['|', ' ', '`']), name(reason.code()));
            let advice = match reason.advice() {
                Advice::Mend => "stop, and correct",
                Advice::Stop => "stop",
                Advice::Resume => "resume with back-off",
                Advice::ResumeAfterDelay => "resume after",
                Advice::Authenticate => "renew",
                Advice::StartAnew => "subscribe anew",
            };
            assert!(
                row[3].contains(advice),
                "{cell}: {advice} is not in {row:?}"
            );
        }
    }
}

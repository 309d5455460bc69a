//! Reasons for which requests are refused and streams end.
//!
//! Each [`Reason`] has a name on the wire, a gRPC code and an [`Advice`], in one row of one table. docs/protocol.md has
//! the same table for authors of clients, and a test compares the two.

use std::time::Duration;

use tonic::Code;

/// Domain of the reasons in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "tidegate";

/// Reason for which a request was refused or a stream ended. `google.rpc.ErrorInfo` carries its
/// [name](Self::as_str), which never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A filter breaks the rules of [filters](crate::filter). Correct it.
    InvalidFilter,
    /// A topic breaks the rules of [topics](crate::topic), or is reserved. Correct it.
    InvalidTopic,
    /// A client id is not one token of at most 128 bytes. Correct it.
    InvalidClientId,
    /// The limits are not ones that exist. Correct them.
    InvalidLimits,
    /// `resume_after` cannot be used as given. Correct it.
    InvalidPosition,
    /// Another field cannot be used as given. Correct it.
    InvalidRequest,
    /// The subscription has more filters than the server allows. Use fewer, or wildcards.
    TooManyFilters,
    /// The filters add more work to the search for the subscriptions of an event than one subscription may. Use fewer wildcards
    /// in the same places, or several subscriptions.
    FiltersTooCostly,
    /// The batch has more events than the server allows. Send several batches.
    TooManyEvents,
    /// An event has more bytes than the server allows. Make it smaller.
    EventTooLarge,
    /// The batch has more bytes than the server allows. Send several batches.
    BatchTooLarge,
    /// The request is compressed in a way that the server does not read. Send it with gzip, or without compression.
    CompressionUnsupported,
    /// The bytes of the request are no messages of gRPC. Correct what makes them.
    MalformedMessage,
    /// The client id is in use. Use another, or wait until it is free.
    ClientIdTaken,
    /// A newer stream of this client id took over. Do not reconnect.
    TakenOver,
    /// The client fell behind by more than its limits. Resume if you can keep up.
    TooSlow,
    /// The client read nothing for too long while events were waiting. Resume, and keep reading.
    Stalled,
    /// The client, together with others of its address or principal, would exceed a quota. Come back after the delay
    /// given.
    QuotaExceeded,
    /// `resume_after` is ahead of the newest event. Do not retry with this position.
    PositionAhead,
    /// The server is shutting down. Reconnect, after the delay given.
    ShuttingDown,
    /// The connection has reached its maximum age. Reconnect, after the delay given.
    MaxConnectionAge,
    /// The deadline that the client set has passed. Resume, if you did not mean to end the stream.
    DeadlineExceeded,
    /// The hub has begun a new sequence space. Resume: a gap tells what is missing.
    EpochChanged,
    /// The service or an operator disconnected the client. Do not reconnect.
    Disconnected,
    /// The call carries no credentials, and the server requires them. Send them.
    CredentialsMissing,
    /// The credentials are not accepted. Get new ones.
    CredentialsInvalid,
    /// The credentials have expired. Renew them, and resume.
    CredentialsExpired,
    /// The credentials were accepted when the stream began, and no longer are. Get new ones, and resume.
    CredentialsRevoked,
    /// The server cannot get the keys that it checks credentials with, which is no fault of the caller. Try again.
    KeysUnavailable,
    /// The caller may not do this. Ask for a rule that allows it.
    NotAllowed,
    /// The server failed. Resume, after a back-off.
    Internal,
}

/// Next step for a client that got a [`Reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// Correct the request: the same one would be refused again.
    Correct,
    /// Do not reconnect without a person's or the application's decision.
    Stop,
    /// Resume from the last position, after a back-off.
    Resume,
    /// Resume from the last position, after the delay that the server gives.
    ResumeAfterDelay,
    /// Get new credentials, and resume from the last position with them. Stop if those are refused too.
    Authenticate,
    /// Forget the position, subscribe anew, and reload the state that depends on it.
    StartAnew,
}

/// Refusal of a call that would exceed a quota. Turned into a `Status`, it is `RESOURCE_EXHAUSTED` with reason
/// `QUOTA_EXCEEDED` and a `RetryInfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverQuota {
    /// Name of the quota, such as `subscriptions`. Part of the wire contract, as `quota` in the metadata of
    /// `ErrorInfo`.
    pub quota: &'static str,
    /// Delay after which the call can succeed.
    pub retry_after: Duration,
}

impl Reason {
    /// The row of the table: name on the wire, code, advice.
    const fn row(self) -> (&'static str, Code, Advice) {
        match self {
            Self::InvalidFilter => ("INVALID_FILTER", Code::InvalidArgument, Advice::Correct),
            Self::InvalidTopic => ("INVALID_TOPIC", Code::InvalidArgument, Advice::Correct),
            Self::InvalidClientId => ("INVALID_CLIENT_ID", Code::InvalidArgument, Advice::Correct),
            Self::InvalidLimits => ("INVALID_LIMITS", Code::InvalidArgument, Advice::Correct),
            Self::InvalidPosition => ("INVALID_POSITION", Code::InvalidArgument, Advice::Correct),
            Self::InvalidRequest => ("INVALID_REQUEST", Code::InvalidArgument, Advice::Correct),
            Self::TooManyFilters => ("TOO_MANY_FILTERS", Code::InvalidArgument, Advice::Correct),
            Self::FiltersTooCostly => {
                ("FILTERS_TOO_COSTLY", Code::InvalidArgument, Advice::Correct)
            }
            Self::TooManyEvents => ("TOO_MANY_EVENTS", Code::InvalidArgument, Advice::Correct),
            Self::EventTooLarge => ("EVENT_TOO_LARGE", Code::InvalidArgument, Advice::Correct),
            Self::BatchTooLarge => ("BATCH_TOO_LARGE", Code::InvalidArgument, Advice::Correct),
            Self::CompressionUnsupported => (
                "COMPRESSION_UNSUPPORTED",
                Code::Unimplemented,
                Advice::Correct,
            ),
            Self::MalformedMessage => ("MALFORMED_MESSAGE", Code::Internal, Advice::Correct),
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

    /// Returns the name on the wire, such as `TOO_SLOW`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// Returns the gRPC code, which was chosen by what the client should do next.
    #[must_use]
    pub const fn code(self) -> Code {
        self.row().1
    }

    /// Returns what the client should do next.
    #[must_use]
    pub const fn advice(self) -> Advice {
        self.row().2
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const ALL: [Reason; 31] = [
        Reason::InvalidFilter,
        Reason::InvalidTopic,
        Reason::InvalidClientId,
        Reason::InvalidLimits,
        Reason::InvalidPosition,
        Reason::InvalidRequest,
        Reason::TooManyFilters,
        Reason::FiltersTooCostly,
        Reason::TooManyEvents,
        Reason::EventTooLarge,
        Reason::BatchTooLarge,
        Reason::CompressionUnsupported,
        Reason::MalformedMessage,
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

    /// Name of a code as gRPC writes it.
    fn name(code: Code) -> String {
        let name = format!("{code:?}");
        let words = name.char_indices().map(|(i, letter)| match letter {
            'A'..='Z' if i > 0 => format!("_{letter}"),
            letter => letter.to_ascii_uppercase().to_string(),
        });
        words.collect()
    }

    /// `docs/protocol.md` has each reason with its code, and with advice of the same kind.
    #[test]
    fn protocol_document_lists_every_reason() {
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
                Advice::Correct => "stop, and correct",
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

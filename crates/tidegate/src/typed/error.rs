//! Errors of a typed hub, and their statuses.

use tidegate_core::{NameError, PublishError, SubscribeError};
use tonic::Status;

use crate::{
    reason::Reason,
    status::{bad_name, not_published, not_subscribed},
};

/// Error of a call of a typed hub. The call has changed nothing.
///
/// In a method of a service `?` makes it the right [`Status`]: the code says what the client is to do next, and
/// `google.rpc.ErrorInfo` carries a stable [`Reason`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The topic breaks a rule of [topics](crate::topic).
    #[error("topic: {0}")]
    Topic(NameError),
    /// The filter breaks a rule of [filters](crate::filter).
    #[error("filter: {0}")]
    Filter(NameError),
    /// The client id is not one token of at most 128 bytes.
    #[error("client id: {0}")]
    ClientId(NameError),
    /// No client id was given, and the operating system provides no randomness to make one.
    #[error("no randomness for a client id")]
    NoRandomness,
    /// The hub did not publish.
    #[error(transparent)]
    Publish(PublishError),
    /// The hub did not subscribe.
    #[error(transparent)]
    Subscribe(SubscribeError),
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Topic(e) => bad_name(Reason::InvalidTopic, "topic", &e),
            Error::Filter(e) => bad_name(Reason::InvalidFilter, "filter", &e),
            Error::ClientId(e) => bad_name(Reason::InvalidClientId, "client_id", &e),
            Error::NoRandomness => Reason::Internal.status(error.to_string()),
            Error::Publish(e) => not_published(e),
            Error::Subscribe(e) => not_subscribed(e),
        }
    }
}

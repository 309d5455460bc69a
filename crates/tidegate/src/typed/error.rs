//! What can go wrong, and the status that tells a client.

use tidegate_core::{NameError, PublishError, SubscribeError};
use tonic::Status;

use crate::{
    reason::Reason,
    status::{bad_name, not_published, not_subscribed},
};

/// Why a call of a typed hub was refused. Nothing has changed then.
///
/// It becomes the right [`Status`] with `?`: the code says what the client is to do next, and
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
    /// No client id was given, and the operating system has no randomness to make one.
    #[error("no randomness for a client id")]
    NoRandomness,
    /// Not published.
    #[error(transparent)]
    Publish(PublishError),
    /// Not subscribed.
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

//! Why a subscription or a hub has ended.

/// Why a subscription or a hub has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CloseReason {
    /// A newer subscription of the same client id took over. The client must not come back by itself:
    /// the two would take over from each other forever.
    #[error("a newer subscription of the same client id took over")]
    TakenOver,
    /// The hub is closing. Come back elsewhere, or later.
    #[error("the hub is shutting down")]
    ShuttingDown,
    /// The connection that it came over has reached its greatest age, by [`Hub::end`](crate::Hub::end). Come back over
    /// another.
    #[error("the connection has reached its greatest age")]
    MaxConnectionAge,
    /// It was behind by more than its limits, and had asked to be ended then.
    #[error("the subscriber fell behind by more than its limits")]
    TooSlow,
    /// It had something before it and took nothing for the stall timeout of [`SweepRules`](crate::SweepRules).
    #[error("the subscriber took nothing of what was there for too long")]
    Stalled,
    /// The sequences begin anew, in another hub. Resume there: what lies between will be told.
    #[error("the sequences have begun anew")]
    EpochChanged,
    /// The application ended it: [`Hub::disconnect`](crate::Hub::disconnect), [`Hub::end`](crate::Hub::end).
    #[error("the subscription was ended by the service")]
    Disconnected,
    /// The credentials that it began with have expired, by [`Hub::end`](crate::Hub::end). Come back with new ones.
    #[error("the credentials have expired")]
    CredentialsExpired,
    /// The credentials that it began with are no longer accepted, by [`Hub::end`](crate::Hub::end). Come back with others.
    #[error("the credentials are no longer accepted")]
    CredentialsRevoked,
    /// What it asked for is no longer allowed, by [`Hub::end`](crate::Hub::end).
    #[error("what was asked for is no longer allowed")]
    NoLongerAllowed,
}

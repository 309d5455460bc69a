//! Why a subscription or a hub has ended.

/// The reason why a subscription or a hub has ended.
///
/// A subscription ends once, and the first reason holds. The text of each reason is written for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CloseReason {
    /// A newer subscription of the same client id took over. The client must not come back by itself:
    /// the two would take over from each other forever.
    #[error("a newer subscription of the same client id took over")]
    TakenOver,
    /// The hub is closing. Come back elsewhere, or later.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The connection under the subscription has reached its greatest age, by [`Hub::end`](crate::Hub::end).
    /// Come back over another.
    #[error("the connection has reached its maximum age")]
    MaxConnectionAge,
    /// The subscriber was behind by more than its limits and had asked for
    /// [`Overflow::Disconnect`](crate::Overflow::Disconnect).
    #[error("the subscriber fell behind by more than its limits")]
    TooSlow,
    /// The subscriber had events to take and took none for the stall timeout of
    /// [`SweepRules`](crate::SweepRules), or it was among those that had been [sending](crate::Sending) one event the
    /// longest when others needed the memory.
    #[error("the subscriber took none of its events for too long")]
    Stalled,
    /// The sequences begin anew, in another hub. Resume there: a gap will tell what lies between.
    #[error("the sequences have started anew, in a new epoch")]
    EpochChanged,
    /// The application ended the subscription: [`Hub::disconnect`](crate::Hub::disconnect),
    /// [`Hub::end`](crate::Hub::end).
    #[error("the subscription was ended by the service")]
    Disconnected,
    /// The credentials of the subscription have expired, by [`Hub::end`](crate::Hub::end). Come back with
    /// new ones.
    #[error("the credentials have expired")]
    CredentialsExpired,
    /// The credentials of the subscription are no longer accepted, by [`Hub::end`](crate::Hub::end). Come
    /// back with others.
    #[error("the credentials are no longer accepted")]
    CredentialsRevoked,
    /// The rights of the principal no longer cover the subscription, by [`Hub::end`](crate::Hub::end).
    #[error("the subscription is no longer allowed")]
    NoLongerAllowed,
}

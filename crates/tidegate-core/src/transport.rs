//! The transport under a subscription, as the hub knows it.

use std::fmt;

/// The transport of one subscription: where its events go once they were handed out.
///
/// The hub hands out and cannot see whether the peer takes. A transport that knows says so with
/// [`taken`](Self::taken): then a peer that is slow is told from one that is stalled. And since a transport that
/// holds bytes for a peer that does not read cannot be told anything by polling, the hub reaches it with
/// [`reset`](Self::reset).
pub trait Transport: fmt::Debug + Send + Sync {
    /// How many bytes have left for the peer so far, whatever their meaning. Only whether it rises matters, so a
    /// transport that does not know returns 0. [`Hub::sweep`](crate::Hub::sweep) asks under a lock: answer from
    /// memory.
    fn taken(&self) -> u64;

    /// Gives up on the peer: drop the subscription, and all that is held for it, with the next turn. The hub
    /// calls it under no lock, and expects no answer.
    fn reset(&self);
}

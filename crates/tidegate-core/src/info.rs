//! A subscription as others see it: its holder and its counts.

// Plain atomics, not those of `sync`: they are statistics that order nothing, and loom need not know of them.
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64 as AtomicCounter, Ordering::Relaxed},
};

use crate::{standing::Pending, topic::ClientId};

/// A subscription of a hub, as its last poll left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionInfo {
    /// The identity of the subscription within its hub.
    pub id: u64,
    /// The client that holds it.
    pub client_id: ClientId,
    /// The principal on whose behalf it subscribed, where clients authenticate.
    pub principal: Option<Arc<str>>,
    /// Matching events that it has still to see. During a replay: the rest of the current round, and the
    /// live events since the round began.
    pub backlog: u64,
    /// Events of the backlog that are lost already, beyond its limits or evicted, and that the gaps of its next poll will
    /// count. Estimated where the limit in bytes cuts through several filters; otherwise exact. A subscription that asked
    /// for [`Overflow::Disconnect`](crate::Overflow::Disconnect) ends instead.
    pub pending_loss: u64,
    /// Events of the backlog that newer ones have replaced already, because it asked for
    /// [`Overflow::Conflate`](crate::Overflow::Conflate).
    pub pending_conflation: u64,
    /// Events that it was handed.
    pub handed_off: u64,
    /// Events that gaps counted for it, those of [`GapReason::Conflated`](crate::GapReason::Conflated) aside.
    pub lost: u64,
    /// Events that newer ones replaced, because it asked for
    /// [`Overflow::Conflate`](crate::Overflow::Conflate).
    pub conflated: u64,
    /// Whether the last sweep found it stalled and left it as it is.
    pub is_stalled: bool,
}

/// The client and the principal behind a subscription.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    /// The client id that the subscription holds.
    pub(crate) client: ClientId,
    /// The principal that may take it over; `None` where clients do not authenticate.
    pub(crate) principal: Option<Arc<str>>,
}

/// The counts of one subscription, as its last poll left them. Written by the subscription, read by
/// listings.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The numbers of its cursors, summed, less what a replay has still to give. The backlog is the sum of
    /// the ends of its feeds less this.
    pub(crate) stands_at: AtomicCounter,
    /// Events that its cursors have passed because they were replaced, and that no gap has told of yet.
    pub(crate) untold: AtomicCounter,
    /// Events that were handed out.
    pub(crate) handed_off: AtomicCounter,
    /// Events that were counted by gaps, those of conflation aside.
    pub(crate) lost: AtomicCounter,
    /// Events that were counted by gaps of conflation.
    pub(crate) conflated: AtomicCounter,
    /// Whether the last sweep found it stalled and left it as it is. Written by sweeps.
    pub(crate) is_stalled: AtomicBool,
}

impl Tally {
    /// The public form of these counts, with a `backlog` that the caller has computed, and the part of it that the
    /// subscription will not see.
    pub(crate) fn info(
        &self,
        id: u64,
        holder: &Holder,
        backlog: u64,
        pending: Pending,
    ) -> SubscriptionInfo {
        // A poll may have gone on between the two.
        let pending_loss = pending.lost.min(backlog);
        let replaced = pending.conflated + self.untold.load(Relaxed);
        SubscriptionInfo {
            id,
            client_id: holder.client.clone(),
            principal: holder.principal.clone(),
            backlog,
            pending_loss,
            pending_conflation: replaced.min(backlog - pending_loss),
            handed_off: self.handed_off.load(Relaxed),
            lost: self.lost.load(Relaxed),
            conflated: self.conflated.load(Relaxed),
            is_stalled: self.is_stalled.load(Relaxed),
        }
    }
}

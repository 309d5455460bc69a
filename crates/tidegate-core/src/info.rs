//! A subscription as others see it: who holds it, and what it has come to.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64 as AtomicCounter, Ordering::Relaxed},
};

use crate::topic::ClientId;

/// A subscription that is here, as its last poll left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionInfo {
    /// The identity of the subscription within its hub.
    pub id: u64,
    /// Who holds it.
    pub client_id: ClientId,
    /// On whose behalf, where clients prove who they are.
    pub principal: Option<Arc<str>>,
    /// How many matching events it has still to see. During a replay, what the current round still has and
    /// what came since.
    pub backlog: u64,
    /// How many events it was handed.
    pub handed_off: u64,
    /// How many events it was told that it lost, those of conflation aside.
    pub lost: u64,
    /// How many events newer ones replaced, because it asked for
    /// [`Overflow::Conflate`](crate::Overflow::Conflate).
    pub conflated: u64,
    /// Whether the last sweep found it stalled and left it as it is.
    pub is_stalled: bool,
}

/// Who holds a subscription.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    pub(crate) client: ClientId,
    pub(crate) principal: Option<Arc<str>>,
}

/// What a subscription has come to, as its last poll left it. Written by the subscription, read by
/// whoever lists subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The numbers at which its cursors stand, summed, less what a replay has still to give. What is behind
    /// is the ends of its feeds, summed, less this.
    pub(crate) stands_at: AtomicCounter,
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
    pub(crate) fn info(&self, id: u64, holder: &Holder, backlog: u64) -> SubscriptionInfo {
        SubscriptionInfo {
            id,
            client_id: holder.client.clone(),
            principal: holder.principal.clone(),
            backlog,
            handed_off: self.handed_off.load(Relaxed),
            lost: self.lost.load(Relaxed),
            conflated: self.conflated.load(Relaxed),
            is_stalled: self.is_stalled.load(Relaxed),
        }
    }
}

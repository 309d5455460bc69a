//! The seam between the service and whoever keeps quotas, and books of who is here.
//!
//! Without a [`Gate`] in [`ServiceConfig`](crate::ServiceConfig) everything is let through, at no cost.

use std::{fmt, net::SocketAddr, sync::Arc};

use tidegate_core::Limits;

use crate::reason::{OverQuota, Reason};

/// Who makes a call. Whoever serves a connection puts it into the extensions of each request; a request without
/// one is of nobody that is known. Where there is an [`Access`](crate::Access) in the extensions too, its principal is the caller's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// Where the connection comes from.
    pub address: Option<SocketAddr>,
    /// Whom the credentials of the call stand for, if it has any.
    pub principal: Option<Arc<str>>,
}

/// Lets calls through, or not.
///
/// Called before anything is changed; a call that is not let through leaves no trace in the hub.
pub trait Gate: fmt::Debug + Send + Sync + 'static {
    /// Takes a permit for a subscription of these filters. Dropping the permit gives it back.
    ///
    /// # Errors
    /// [`OverQuota`].
    fn subscribe(&self, caller: &Caller, filters: &[String]) -> Result<Box<dyn Permit>, OverQuota>;

    /// Whether [`publish`](Self::publish) has a limit to apply. While it has none, it is not called, and the size of
    /// batches is not added up.
    fn limits_publishing(&self) -> bool;

    /// Lets a batch of so many events be published, which have so many bytes encoded.
    ///
    /// # Errors
    /// [`OverQuota`]; then nothing of the batch is published.
    fn publish(&self, caller: &Caller, events: usize, bytes: u64) -> Result<(), OverQuota>;
}

/// The permit of one subscription. Dropped with the subscription, or without one where the hub refuses it.
pub trait Permit: fmt::Debug + Send + Sync {
    /// The subscription has begun, under this [identity](tidegate_core::Subscription::id) and with these limits in
    /// force.
    fn begun(&mut self, id: u64, limits: &Limits);

    /// The subscription has ended for this reason, or because its client left. Not called if it has not begun.
    fn ended(&mut self, reason: Option<Reason>);
}

/// The permit of a subscription, if there is a gate, told once how the subscription ended.
#[derive(Debug)]
pub(super) struct HeldPermit(Option<Box<dyn Permit>>);

impl HeldPermit {
    pub(super) const fn new(permit: Option<Box<dyn Permit>>) -> Self {
        Self(permit)
    }

    pub(super) fn begun(&mut self, id: u64, limits: &Limits) {
        if let Some(permit) = &mut self.0 {
            permit.begun(id, limits);
        }
    }

    pub(super) fn ended(&mut self, reason: Option<Reason>) {
        if let Some(mut permit) = self.0.take() {
            permit.ended(reason);
        }
    }
}

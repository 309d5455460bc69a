//! The seam between the service and the keeper of quotas and of records of who is subscribed.
//!
//! Without a [`Gate`] in [`ServiceConfig`](crate::ServiceConfig) every call passes, and nothing is counted.

use std::{fmt, net::SocketAddr, sync::Arc};

use tidegate_core::{Limits, SubscribeOptions};

use crate::reason::{OverQuota, Reason};

/// Origin of a call: an address and a principal.
///
/// The server puts it into the extensions of each request; a request without one is anonymous. If the
/// extensions have an [`Access`](crate::Access) too, the caller's principal is that of the access.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// Address of the connection's other end.
    pub address: Option<SocketAddr>,
    /// Principal that the call's credentials stand for, if it has any.
    pub principal: Option<Arc<str>>,
}

/// Decides which calls pass, by quotas or anything else that counts.
///
/// The service asks it after the rights of the caller, so a call that is not allowed is not counted, and before
/// the hub, so a call that does not pass leaves no trace there. Methods are called from many threads at once,
/// and must not block.
pub trait Gate: fmt::Debug + Send + Sync + 'static {
    /// Takes a permit for a subscription with these options: its client id, and its filters as the client wrote
    /// them. Dropping the permit gives it back.
    ///
    /// # Errors
    /// [`OverQuota`], which the client gets as `RESOURCE_EXHAUSTED`.
    fn subscribe(
        &self,
        caller: &Caller,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Permit>, OverQuota>;

    /// Whether [`publish`](Self::publish) has a limit to apply. While it has none, it is not called, and the size of
    /// batches is not added up.
    fn limits_publishing(&self) -> bool;

    /// Lets a batch pass that has this number of events and of encoded bytes.
    ///
    /// # Errors
    /// [`OverQuota`], which the client gets as `RESOURCE_EXHAUSTED`. Nothing of the batch is published then.
    fn publish(&self, caller: &Caller, events: usize, bytes: u64) -> Result<(), OverQuota>;
}

/// Permit of one subscription. It is dropped with the subscription, or at once if the hub refuses the subscription.
pub trait Permit: fmt::Debug + Send + Sync {
    /// Called once, when the subscription has begun, with its [identity](tidegate_core::Subscription::id) and
    /// the limits in force.
    fn begun(&mut self, id: u64, limits: &Limits);

    /// Called once, when the subscription has ended, before the permit is dropped. `None`: its client left. Not
    /// called if the subscription did not begin.
    fn ended(&mut self, reason: Option<Reason>);
}

/// The permit of a subscription, where there is a gate, and nothing where there is none.
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

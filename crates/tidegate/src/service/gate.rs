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
    /// Takes a place for a subscription of these filters. It is given back when the place is dropped.
    ///
    /// # Errors
    /// [`OverQuota`].
    fn subscribe(&self, caller: &Caller, filters: &[String]) -> Result<Box<dyn Place>, OverQuota>;

    /// Whether [`publish`](Self::publish) would look at anything. While not, batches are not measured.
    fn measures_publishing(&self) -> bool;

    /// Lets a batch of so many events be published, which have so many bytes encoded.
    ///
    /// # Errors
    /// [`OverQuota`]; then nothing of the batch is published.
    fn publish(&self, caller: &Caller, events: usize, bytes: u64) -> Result<(), OverQuota>;
}

/// The place of one subscription. Dropped when the subscription is, or when it was not let in after all.
pub trait Place: fmt::Debug + Send + Sync {
    /// The subscription has begun, under this [identity](tidegate_core::Subscription::id) and with these limits in
    /// force.
    fn begun(&mut self, id: u64, limits: &Limits);

    /// The subscription has ended for this reason, or because its client left. Not called if it has not begun.
    fn ended(&mut self, reason: Option<Reason>);
}

/// Tells a place how its subscription ended, when that is over.
#[derive(Debug)]
pub(super) struct Permit(Option<Box<dyn Place>>);

impl Permit {
    pub(super) const fn new(place: Option<Box<dyn Place>>) -> Self {
        Self(place)
    }

    pub(super) fn begun(&mut self, id: u64, limits: &Limits) {
        if let Some(place) = &mut self.0 {
            place.begun(id, limits);
        }
    }

    pub(super) fn ended(&mut self, reason: Option<Reason>) {
        if let Some(mut place) = self.0.take() {
            place.ended(reason);
        }
    }
}

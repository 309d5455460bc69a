//! The inside of a hub, which its handles and its subscriptions share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidegate_core::Limits;
use tokio::sync::Notify;

use super::{entry::Entry, hooks::Hooks, position::PositionFields, shared::EncodedValue};
use crate::chunks::Sharing;

pub(super) struct Inner<T> {
    pub(super) core: tidegate_core::Hub<EncodedValue<T>>,
    pub(super) hooks: Hooks,
    /// The subscriptions that are here, by their identity.
    pub(super) entries: Mutex<HashMap<u64, Arc<Entry>>>,
    /// Told when a subscription has gone.
    pub(super) departed: Notify,
    pub(super) limits: Limits,
    pub(super) reconnect_spread: Duration,
    pub(super) position: PositionFields,
    pub(super) sharing: Sharing,
}

impl<T> Inner<T> {
    pub(super) fn entries(&self) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The inside of a hub, which its handles and its subscriptions share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidegate_core::Limits;
use tokio::sync::Notify;

use super::{
    entry::Entry,
    hooks::Hooks,
    position::PositionFields,
    shared::{EncodedValue, ValueMemory},
};
use crate::chunks::Sharing;

/// The hub itself.
pub(super) struct Inner<T> {
    pub(super) core: tidegate_core::Hub<EncodedValue<T>>,
    pub(super) hooks: Hooks,
    /// Subscriptions that are here, by their identity. Under this lock neither a hook nor a
    /// method of the core is called.
    pub(super) entries: Mutex<HashMap<u64, Arc<Entry>>>,
    /// Notified when a subscription has gone.
    pub(super) departed: Notify,
    /// Limits of a subscription that sets none.
    pub(super) limits: Limits,
    /// Maximum delay after which a client is told to come back.
    pub(super) reconnect_spread: Duration,
    /// Fields of the message that carry positions.
    pub(super) position: PositionFields,
    /// Bytes of memory behind a value, if the application tells them.
    pub(super) value_memory: Option<Box<ValueMemory<T>>>,
    /// Source of the chunks that subscriptions share.
    pub(super) sharing: Sharing,
}

impl<T> Inner<T> {
    pub(super) fn entries(&self) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

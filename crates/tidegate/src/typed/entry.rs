//! Subscriptions, as the hub keeps them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tidegate_core::{ClientId, Filter};
use tokio::sync::oneshot;
use tonic::Status;

use super::hooks::Departure;

/// A subscription, for those who look at it or end it from outside.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) client_id: ClientId,
    pub(super) filters: Box<[Filter]>,
    pub(super) state: Mutex<EntryState>,
}

#[derive(Debug, Default)]
pub(super) struct EntryState {
    /// The status to end it with, if the service does.
    pub(super) status: Option<Status>,
    /// Who waits for it to go.
    pub(super) waiting: Vec<oneshot::Sender<Departure>>,
}

impl Entry {
    pub(super) fn set_status(&self, status: Status) {
        self.lock().status.get_or_insert(status);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, EntryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The entry of a subscription in its hub.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tidegate_core::{ClientId, Filter};
use tokio::sync::oneshot;
use tonic::Status;

use super::hooks::Departure;

/// Part of a subscription that is seen and changed from outside of its stream.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) client_id: ClientId,
    pub(super) filters: Box<[Filter]>,
    pub(super) state: Mutex<EntryState>,
}

#[derive(Debug, Default)]
pub(super) struct EntryState {
    /// Status that the service disconnects it with. The first one counts.
    pub(super) status: Option<Status>,
    /// Senders for those who wait until it has gone.
    pub(super) waiting: Vec<oneshot::Sender<Departure>>,
}

impl Entry {
    /// Sets the status to end with, unless one is set.
    pub(super) fn set_status(&self, status: Status) {
        self.lock().status.get_or_insert(status);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, EntryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

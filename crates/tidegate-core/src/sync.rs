//! Locks and atomics of the crate: those of the standard library, or of loom when the models are checked
//! (`--cfg tidegate_loom`).

#[cfg(all(test, tidegate_loom))]
pub(crate) use loom::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard, atomic::AtomicU64};
#[cfg(not(all(test, tidegate_loom)))]
pub(crate) use std::sync::atomic::AtomicU64;
#[cfg(not(test))]
pub(crate) use std::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

#[cfg(all(test, not(tidegate_loom)))]
pub(crate) use crate::held::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

#[cfg(all(test, tidegate_loom))]
use loom::sync as inner;
#[cfg(not(all(test, tidegate_loom)))]
use std::sync as inner;

use std::sync::PoisonError;

/// The guard, which unit tests measure how long it is held.
#[cfg(not(all(test, not(tidegate_loom))))]
fn measured<G>(guard: G) -> G {
    guard
}

#[cfg(all(test, not(tidegate_loom)))]
use crate::held::measured;

/// A mutex without poisoning.
///
/// No code of an application runs under a lock of this crate except the `Drop` of a payload. If that
/// panics, the event was taken out before, and the state is whole.
pub(crate) struct Mutex<T>(inner::Mutex<T>);

/// A lock for one writer or many readers, without poisoning: see [`Mutex`].
pub(crate) struct RwLock<T>(inner::RwLock<T>);

impl<T> Mutex<T> {
    /// An unlocked mutex.
    pub(crate) fn new(value: T) -> Self {
        Self(inner::Mutex::new(value))
    }

    /// Waits for the lock and takes it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        measured(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> RwLock<T> {
    /// An unlocked lock.
    pub(crate) fn new(value: T) -> Self {
        Self(inner::RwLock::new(value))
    }

    /// Waits for the lock and takes it to read.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        measured(self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for the lock and takes it to write.
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        measured(self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> std::fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mutex")
    }
}

impl<T> std::fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RwLock")
    }
}

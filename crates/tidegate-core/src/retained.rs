//! The bytes that events hold, counted as they are made and freed.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// How many bytes all events of a hub hold, wherever they are referred to from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Retained(Arc<AtomicU64>);

/// The bytes of one thing, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    /// The count that they are part of.
    retained: Retained,
    /// How many.
    bytes: u64,
}

impl Retained {
    /// The count now.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Counts `bytes` until the charge is dropped.
    pub(crate) fn charge(&self, bytes: u64) -> Charge {
        self.add(bytes);
        Charge {
            retained: self.clone(),
            bytes,
        }
    }

    /// Counts `bytes` that [`subtract`](Self::subtract) takes away again.
    pub(crate) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Relaxed);
    }

    /// Takes away `bytes` that were added.
    pub(crate) fn subtract(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Relaxed);
    }
}

impl Charge {
    /// The bytes that it counts.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.retained.subtract(self.bytes);
    }
}

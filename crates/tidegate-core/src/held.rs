//! How long locks are held, measured in unit tests.
//!
//! In processor time of the thread: what others do to the machine meanwhile does not count.

use std::{
    any::type_name,
    cell::RefCell,
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

thread_local! {
    static LONGEST: RefCell<BTreeMap<&'static str, Duration>> = const { RefCell::new(BTreeMap::new()) };
}

/// A guard, and since when it is held.
pub(crate) struct Measured<G> {
    guard: G,
    since: Duration,
}

pub(crate) type MutexGuard<'a, T> = Measured<sync::MutexGuard<'a, T>>;
pub(crate) type RwLockReadGuard<'a, T> = Measured<sync::RwLockReadGuard<'a, T>>;
pub(crate) type RwLockWriteGuard<'a, T> = Measured<sync::RwLockWriteGuard<'a, T>>;

/// Measures how long `guard` is held.
pub(crate) fn measured<G>(guard: G) -> Measured<G> {
    Measured {
        guard,
        since: processor_time(),
    }
}

/// The longest that this thread has held a lock of each type of content since it asked last.
pub(crate) fn take_longest() -> BTreeMap<&'static str, Duration> {
    LONGEST.take()
}

/// The processor time of this thread.
pub(crate) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap(),
        time.tv_nsec.try_into().unwrap(),
    )
}

impl<G: Deref> Deref for Measured<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Measured<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

impl<G> Drop for Measured<G> {
    fn drop(&mut self) {
        // The guard is let go of after this, which adds nothing that depends on anything.
        let held = processor_time() - self.since;
        LONGEST.with_borrow_mut(|longest| {
            let entry = longest.entry(type_name::<G>()).or_default();
            *entry = held.max(*entry);
        });
    }
}

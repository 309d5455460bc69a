//! Code of others that must be called to the last: wakers and transports.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    task::Waker,
    thread,
};

/// Wakes each of `wakers`, as [`for_all`] does. The caller holds no lock: a waker runs code of the executor, and may
/// poll a subscription of this hub at once.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for_all(wakers, Waker::wake);
}

/// Calls `act` with each of `items`. If it panics for one, the others have their turn all the same: they belong to
/// other tasks, which would sleep forever. The first panic goes on after the last call, unless it would meet one that is
/// under way already, and abort the process.
pub(crate) fn for_all<T>(items: impl IntoIterator<Item = T>, mut act: impl FnMut(T)) {
    let mut first_panic = None;
    for item in items {
        // What `act` leaves behind when it panics is the item's, which is gone.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| act(item))) {
            first_panic.get_or_insert(panic);
        }
    }
    if let Some(panic) = first_panic
        && !thread::panicking()
    {
        resume_unwind(panic);
    }
}

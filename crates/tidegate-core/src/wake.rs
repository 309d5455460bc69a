//! Waking many: a fault of one must not leave the others asleep.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    task::Waker,
};

/// Wakes all of `wakers`, which the caller has taken out of the places where others would find them. The caller holds no
/// lock: a waker runs code of an executor, and may poll a subscription at once.
///
/// If wakers panic, the first panic goes on when all were woken.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    let mut first = None;
    for waker in wakers {
        let woken = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        first = first.or(woken.err());
    }
    if let Some(panic) = first {
        resume_unwind(panic);
    }
}

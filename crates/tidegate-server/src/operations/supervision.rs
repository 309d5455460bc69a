//! Work in the background that outlives its panics.
//!
//! Nobody waits for the tasks that read files again, serve HTTP or keep the hub. One that ended by a panic would be missed
//! by nobody either, and a token that was withdrawn would stay good. So it begins again, and every panic is counted.

use std::{
    any::Any,
    collections::BTreeMap,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

/// The delay before a task that has panicked begins again.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// The longest delay, after which a task begins again that panics each time. Less than the 5 s within which a credential
/// that is withdrawn has to be noticed.
const MAX_DELAY: Duration = Duration::from_secs(2);

/// The time after which a task that has run so long is taken to be sound again.
const SOUND: Duration = Duration::from_secs(60);

/// The counts of panics, by the name of the work.
#[derive(Debug, Default)]
pub(crate) struct Panics(Mutex<BTreeMap<&'static str, u64>>);

impl Panics {
    /// Runs a task for as long as this future is polled, in a task of its own: if it panics, `begin` makes another after
    /// a pause. Returns when one ends by itself. Dropping the future ends the task.
    pub(crate) async fn supervise<F>(&self, task: &'static str, mut begin: impl FnMut() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.watch(task);
        let mut delay = FIRST_DELAY;
        loop {
            let began = Instant::now();
            let ended = AbortOnDropHandle::new(tokio::spawn(begin())).await;
            // The other error is that the runtime shuts down, and drops this future too.
            let Err(error) = ended else { return };
            let Ok(panic) = error.try_into_panic() else {
                return;
            };
            if began.elapsed() >= SOUND {
                delay = FIRST_DELAY;
            }
            self.note(task, &*panic);
            sleep(delay).await;
            delay = (delay * 2).min(MAX_DELAY);
        }
    }

    /// Does a piece of work that comes up again and again. If it panics, the next one is done all the same.
    pub(crate) fn guard(&self, task: &'static str, work: impl FnOnce()) {
        // Whatever the panic left half done: every lock of the hub and of the server is used in spite of one, and holds
        // nothing that a later look could not put right.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            self.note(task, &*panic);
        }
    }

    /// Lists the work `task` from here on, with 0 panics.
    pub(crate) fn watch(&self, task: &'static str) {
        self.counts().entry(task).or_default();
    }

    /// Counts a panic of `task`, and logs it.
    pub(crate) fn note(&self, task: &'static str, panic: &(dyn Any + Send)) {
        *self.counts().entry(task).or_default() += 1;
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a value that is no text");
        tracing::error!(
            task,
            panic = message,
            "work in the background panicked, and begins again: please report it"
        );
    }

    /// The number of panics of each.
    pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
        self.counts().iter().map(|(name, n)| (*name, *n)).collect()
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    };

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn task_that_panics_begins_again_and_is_counted() {
        let (panics, begun) = (Arc::new(Panics::default()), Arc::new(AtomicU32::new(0)));
        let counts = Arc::clone(&begun);
        let supervised = panics.supervise("test", move || {
            let counts = Arc::clone(&counts);
            async move {
                assert!(counts.fetch_add(1, Relaxed) >= 3, "on purpose");
            }
        });
        let start = Instant::now();
        supervised.await;
        assert_eq!(begun.load(Relaxed), 4);
        assert_eq!(panics.all(), [("test", 3)]);
        // It does not panic in a loop without a pause.
        assert_eq!(start.elapsed(), FIRST_DELAY * 7);
    }

    #[tokio::test]
    async fn dropping_the_supervision_ends_the_task() {
        struct Ended(Arc<Notify>);

        impl Drop for Ended {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }

        let (panics, ended) = (Panics::default(), Arc::new(Notify::new()));
        let running = Arc::new(Notify::new());
        let begin = || {
            let (ended, running) = (Ended(Arc::clone(&ended)), Arc::clone(&running));
            async move {
                let _ended = ended;
                running.notify_one();
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = panics.supervise("test", begin) => unreachable!("it never ends"),
            () = running.notified() => {}
        }
        ended.notified().await;
    }

    #[test]
    fn work_that_panics_is_done_again() {
        let panics = Panics::default();
        let mut done = 0;
        for round in 0..3 {
            panics.guard("test", || {
                assert!(round != 1, "on purpose");
                done += 1;
            });
        }
        assert_eq!((done, panics.all()), (2, vec![("test", 1)]));
    }
}

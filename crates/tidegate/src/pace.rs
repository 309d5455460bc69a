//! A pace for replays: one after the other, however many there are.
//!
//! A replay that finds nothing to send asks for another turn at once. Each turn is bounded, but as many connections as
//! somebody opens would ask for one, and everybody else would wait for all of them in each round. So their wake-ups
//! pass through here: one goes, and the next not before the tasks that were ready had their turn. No place is held by
//! a replay that was woken, so one whose peer reads nothing keeps no other from going on.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Wake, Waker},
};

use tokio::{runtime::Handle, task::yield_now};

/// Wake-ups that wait for their turn. Shared by the subscriptions of a service.
#[derive(Debug, Default)]
pub(crate) struct Pacer(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waker>,
    /// Whether a task lets them go.
    is_running: bool,
}

/// Waker whose wake-ups pass through a pacer.
struct Paced {
    pacer: Arc<Pacer>,
    waker: Waker,
}

/// Mark of the task that lets wake-ups go, until it ends for whatever reason.
struct Running(Arc<Pacer>);

impl Pacer {
    /// Returns a waker that wakes `waker` when it is its turn.
    pub(crate) fn paced(self: &Arc<Self>, waker: &Waker) -> Waker {
        Arc::new(Paced {
            pacer: Arc::clone(self),
            waker: waker.clone(),
        })
        .into()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a wake-up for its turn.
    fn add(self: &Arc<Self>, waker: Waker) {
        // Outside of a runtime nobody can be asked to wait.
        let Ok(runtime) = Handle::try_current() else {
            return waker.wake();
        };
        let mut queue = self.queue();
        queue.waiting.push_back(waker);
        if !queue.is_running {
            queue.is_running = true;
            drop(queue);
            runtime.spawn(let_go(Running(Arc::clone(self))));
        }
    }
}

/// Lets the wake-ups of a pacer go, until none is left.
async fn let_go(running: Running) {
    loop {
        let next = {
            let mut queue = running.0.queue();
            let next = queue.waiting.pop_front();
            // Under the same lock, so that whoever adds one from here on begins another task.
            queue.is_running = next.is_some();
            next
        };
        let Some(waker) = next else { return };
        // The others are to be woken, even if an application's waker panics.
        let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        yield_now().await;
    }
}

impl Drop for Running {
    /// Wakes all that wait, if the runtime drops the task: another runtime may serve them.
    fn drop(&mut self) {
        let waiting = {
            let mut queue = self.0.queue();
            if !queue.is_running {
                return;
            }
            queue.is_running = false;
            std::mem::take(&mut queue.waiting)
        };
        for waker in waiting {
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

impl Wake for Paced {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.pacer.add(self.waker.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::task::yield_now;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// Panics when it is woken, as the waker of an application might.
    struct Fragile;

    impl Wake for Fragile {
        fn wake(self: Arc<Self>) {
            panic!("as a waker of an application might");
        }
    }

    #[tokio::test]
    async fn wake_ups_go_one_by_one_and_none_is_lost() {
        let (pacer, woken) = (Arc::<Pacer>::default(), Arc::<Woken>::default());
        for _ in 0..10 {
            pacer.paced(&Arc::clone(&woken).into()).wake();
        }
        let mut before = 0;
        while before < 10 {
            yield_now().await;
            let now = woken.0.load(SeqCst);
            assert!(now <= before + 1, "{now} after {before}");
            before = now;
        }
        // Another begins when the first has ended.
        pacer.paced(&Arc::clone(&woken).into()).wake();
        while woken.0.load(SeqCst) < 11 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn waker_that_panics_keeps_no_other_from_being_woken() {
        let (pacer, woken) = (Arc::<Pacer>::default(), Arc::<Woken>::default());
        pacer.paced(&Arc::new(Fragile).into()).wake();
        pacer.paced(&Arc::clone(&woken).into()).wake();
        while woken.0.load(SeqCst) < 1 {
            yield_now().await;
        }
    }

    #[test]
    fn wake_ups_go_when_their_runtime_ends() {
        let (pacer, woken) = (Arc::<Pacer>::default(), Arc::<Woken>::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            pacer.paced(&Arc::clone(&woken).into()).wake();
            pacer.paced(&Arc::clone(&woken).into()).wake();
        });
        drop(runtime);
        assert_eq!(woken.0.load(SeqCst), 2);
        pacer.paced(&Arc::clone(&woken).into()).wake();
        assert_eq!(woken.0.load(SeqCst), 3);
    }
}

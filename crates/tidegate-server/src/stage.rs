//! The stage of a server, which its connections follow: it serves them, lets them end, or cuts them.
//!
//! A connection asks for it in each of its turns, so that is one read of memory that all share and nobody writes in between;
//! the lock is for what happens once in the life of a connection.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU8,
            Ordering::{Acquire, Release},
        },
    },
    task::{Context, Waker},
};

/// A stage of a server. Later ones are greater, and it never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Connections are served.
    Serving,
    /// Connections are to end in good order.
    Draining,
    /// Connections are to end at once.
    Cut,
}

/// The stage of one server, and the tasks that follow it.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    current: AtomicU8,
    followers: Mutex<Followers>,
}

#[derive(Debug, Default)]
struct Followers {
    last: u64,
    wakers: HashMap<u64, Waker>,
}

impl Stages {
    pub(crate) fn current(&self) -> Stage {
        match self.current.load(Acquire) {
            0 => Stage::Serving,
            1 => Stage::Draining,
            _ => Stage::Cut,
        }
    }

    /// Goes on to a stage, unless it is there or beyond, and wakes every task that follows.
    pub(crate) fn advance(&self, stage: Stage) {
        self.current.fetch_max(stage as u8, Release);
        // Woken without the lock: runtimes take locks of their own, and a task that ends takes this one.
        let wakers: Vec<Waker> = self.lock().wakers.values().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A follower for one task. It is woken at each change once it was polled.
    pub(crate) fn follow(self: Arc<Self>) -> Follower {
        Follower {
            stages: self,
            registered: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Followers> {
        self.followers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task that follows the stages of its server, as long as it lives.
#[derive(Debug)]
pub(crate) struct Follower {
    stages: Arc<Stages>,
    /// Its number, and the waker that it left.
    registered: Option<(u64, Waker)>,
}

impl Follower {
    /// Returns the stage, and has the task woken at the next.
    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Stage {
        let waker = cx.waker();
        let is_known = (self.registered.as_ref()).is_some_and(|(_, known)| known.will_wake(waker));
        if !is_known {
            self.register(waker);
        }
        // After the waker is there: a stage that comes later finds it.
        self.stages.current()
    }

    fn register(&mut self, waker: &Waker) {
        let mut followers = self.stages.lock();
        let number = match &self.registered {
            Some((number, _)) => *number,
            None => {
                followers.last += 1;
                followers.last
            }
        };
        followers.wakers.insert(number, waker.clone());
        self.registered = Some((number, waker.clone()));
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some((number, _)) = &self.registered {
            let mut followers = self.stages.lock();
            followers.wakers.remove(number);
            // Room of a crowd that has gone is given back, at the latest by the time when as many more have gone.
            if followers.wakers.capacity() > 64.max(8 * followers.wakers.len()) {
                followers.wakers.shrink_to_fit();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::task::{ArcWake, waker};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wakes {
        fn count(&self) -> usize {
            self.0.load(Acquire)
        }
    }

    impl ArcWake for Wakes {
        fn wake_by_ref(wakes: &Arc<Self>) {
            wakes.0.fetch_add(1, Release);
        }
    }

    #[test]
    fn followers_are_woken_at_each_stage_and_see_it() {
        let stages = Arc::<Stages>::default();
        let wakes = Arc::<Wakes>::default();
        let waker = waker(Arc::clone(&wakes));
        let cx = Context::from_waker(&waker);
        let (mut first, mut second) = (Arc::clone(&stages).follow(), Arc::clone(&stages).follow());
        assert_eq!(
            (first.poll(&cx), second.poll(&cx)),
            (Stage::Serving, Stage::Serving)
        );
        assert_eq!(first.poll(&cx), Stage::Serving);
        stages.advance(Stage::Draining);
        assert_eq!(wakes.count(), 2);
        assert_eq!(
            (first.poll(&cx), second.poll(&cx)),
            (Stage::Draining, Stage::Draining)
        );
        drop(second);
        stages.advance(Stage::Cut);
        assert_eq!(wakes.count(), 3);
        assert_eq!(first.poll(&cx), Stage::Cut);
        assert_eq!(Arc::clone(&stages).follow().poll(&cx), Stage::Cut);
        stages.advance(Stage::Draining);
        assert_eq!(stages.current(), Stage::Cut);
    }

    #[test]
    fn task_that_changes_its_waker_is_woken_by_the_last_one() {
        let stages = Arc::<Stages>::default();
        let (before, after) = (Arc::<Wakes>::default(), Arc::<Wakes>::default());
        let mut follower = Arc::clone(&stages).follow();
        for wakes in [&before, &after] {
            follower.poll(&Context::from_waker(&waker(Arc::clone(wakes))));
        }
        stages.advance(Stage::Draining);
        assert_eq!((before.count(), after.count()), (0, 1));
    }

    #[test]
    fn followers_that_have_gone_leave_nothing() {
        let stages = Arc::<Stages>::default();
        let wakes = Arc::<Wakes>::default();
        let waker = waker(Arc::clone(&wakes));
        let mut followers: Vec<Follower> =
            (0..10_000).map(|_| Arc::clone(&stages).follow()).collect();
        for follower in &mut followers {
            follower.poll(&Context::from_waker(&waker));
        }
        drop(followers);
        let left = stages.lock();
        assert!(left.wakers.is_empty() && left.wakers.capacity() <= 64);
    }
}

//! Hooks of the application for clients that come and go.
//!
//! # Order
//! A notification is put into a queue under a lock, in the order in which things happened. The thread that put
//! it there calls the hooks after it has released the lock, unless another thread is calling hooks: then that
//! one goes on with it. So hooks are called in order, one at a time, and never under a lock.
//!
//! # Reentrancy
//! A hook may use the hub. If it subscribes or unsubscribes, its thread is the one that is calling hooks, so the new
//! notification is queued and called after this hook has returned.
//!
//! # Panics
//! A hook that panics keeps no other from being called. The first panic goes on when the queue is empty, in the thread
//! that was calling; during another panic it does not, since two at once abort the process.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use tidegate_core::{ClientId, CloseReason, Filter, Position};

/// A client that has gone, with its final counts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Departure {
    /// Client id that it had.
    pub client_id: ClientId,
    /// Identity of its subscription within the hub.
    pub subscription_id: u64,
    /// Cause of its departure.
    pub reason: LeaveReason,
    /// Number of events that it was given, not counting those of a snapshot. The peer may not have read those that were
    /// given to a transport.
    pub delivered: u64,
    /// Number of events that it lost: the counts of its gaps, except those of conflation.
    pub lost: u64,
    /// Number of events that newer ones replaced under [`Overflow::Conflate`](crate::Overflow::Conflate).
    pub conflated: u64,
    /// Number of events that it had still to see.
    pub backlog: u64,
    /// Position after which it can resume.
    pub position: Position,
}

/// Cause of a client's departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaveReason {
    /// Its stream was dropped: it cancelled, or its connection died.
    Dropped,
    /// The hub ended its subscription.
    Ended(CloseReason),
    /// Its policy for losses ended it, or its snapshot failed.
    Failed,
}

/// A client that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arrival {
    /// Client id that it has.
    pub client_id: ClientId,
    /// Identity of its subscription within the hub.
    pub subscription_id: u64,
    /// Topics and patterns that it subscribed to.
    pub filters: Vec<Filter>,
}

type Hook<A> = Box<dyn Fn(&A) + Send + Sync>;

/// The hooks of a hub, and what they have still to be told.
pub(super) struct Hooks {
    pub(super) on_join: Option<Hook<Arrival>>,
    pub(super) on_leave: Option<Hook<Departure>>,
    pub(super) on_first: Option<Hook<Filter>>,
    pub(super) on_last: Option<Hook<Filter>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Number of subscriptions that have each filter. A filter without any is not in it.
    subscribers: HashMap<Filter, usize>,
    /// Notifications that the hooks have still to be told, the oldest first.
    queue: VecDeque<Notification>,
    /// Whether a thread is calling hooks. It is the only one that takes from the queue.
    is_calling: bool,
}

enum Notification {
    Joined(Arrival),
    Left(Departure),
    First(Filter),
    Last(Filter),
}

impl Hooks {
    pub(super) fn new() -> Self {
        Self {
            on_join: None,
            on_leave: None,
            on_first: None,
            on_last: None,
            state: Mutex::default(),
        }
    }

    /// Notifies that a client has come, and of each filter whose first subscriber it is.
    pub(super) fn joined(&self, arrival: Arrival) {
        let mut state = self.lock();
        let filters = arrival.filters.clone();
        state.queue.push_back(Notification::Joined(arrival));
        for filter in filters {
            let count = state.subscribers.entry(filter.clone()).or_default();
            *count += 1;
            if *count == 1 {
                state.queue.push_back(Notification::First(filter));
            }
        }
        self.call(state);
    }

    /// Notifies that a client has gone, which had `filters`, and of each filter whose last subscriber it was.
    pub(super) fn left(&self, departure: Departure, filters: &[Filter]) {
        let mut state = self.lock();
        state.queue.push_back(Notification::Left(departure));
        for filter in filters {
            let Some(count) = state.subscribers.get_mut(filter) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                state.subscribers.remove(filter);
                state.queue.push_back(Notification::Last(filter.clone()));
            }
        }
        self.call(state);
    }

    /// Returns the number of subscriptions that have exactly this filter.
    pub(super) fn subscribers(&self, filter: &Filter) -> usize {
        self.lock().subscribers.get(filter).copied().unwrap_or(0)
    }

    /// Calls the hooks until the queue is empty, unless another thread is calling them.
    fn call<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        if std::mem::replace(&mut state.is_calling, true) {
            // That thread looks into the queue once more under this lock before it stops, so it finds what is
            // there now.
            return;
        }
        let mut first_panic = None;
        while let Some(notification) = state.queue.pop_front() {
            // A hook may use the hub, and with it this lock.
            drop(state);
            // The hooks are shared, and take what they are told by reference: one that panics leaves nothing half done
            // but in the application.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.notify(notification))) {
                first_panic.get_or_insert(panic);
            }
            state = self.lock();
        }
        // Under the lock that found the queue empty: a notification that came between the two would be left to a thread
        // that has stopped.
        state.is_calling = false;
        drop(state);
        if let Some(panic) = first_panic
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }

    fn notify(&self, notification: Notification) {
        fn notify<A>(hook: Option<&Hook<A>>, notification: &A) {
            if let Some(hook) = hook {
                hook(notification);
            }
        }
        match notification {
            Notification::Joined(arrival) => notify(self.on_join.as_ref(), &arrival),
            Notification::Left(departure) => notify(self.on_leave.as_ref(), &departure),
            Notification::First(filter) => notify(self.on_first.as_ref(), &filter),
            Notification::Last(filter) => notify(self.on_last.as_ref(), &filter),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

//! Telling the application who comes and goes.
//!
//! # Order
//! What happened is put into a queue under a lock, in the order in which it happened; who put it there calls
//! the hooks after letting go of the lock, unless another thread is calling them already, which then goes on
//! with it. So hooks are called in order, one at a time, and never under a lock.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tidegate_core::{ClientId, CloseReason, Filter, Position};

/// A client that has gone, and what it had come to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Departure {
    /// Who it was.
    pub client_id: ClientId,
    /// The identity of its subscription within the hub.
    pub subscription_id: u64,
    /// Why it went.
    pub reason: LeaveReason,
    /// How many events it was given, those of a snapshot aside. What was given to a transport may not have
    /// been read.
    pub delivered: u64,
    /// How many events it lost, those of conflation aside: the counts of its gaps.
    pub lost: u64,
    /// How many events newer ones replaced, because it asked for that.
    pub conflated: u64,
    /// How many events it had still to see.
    pub backlog: u64,
    /// From where it can resume.
    pub position: Position,
}

/// Why a client went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaveReason {
    /// Its stream was dropped: it cancelled, or its connection died.
    Dropped,
    /// The hub ended its subscription.
    Ended(CloseReason),
    /// What it lost ended it, because its policy says so; or its snapshot failed.
    Failed,
}

/// A client that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arrival {
    /// Who it is.
    pub client_id: ClientId,
    /// The identity of its subscription within the hub.
    pub subscription_id: u64,
    /// What it wants.
    pub filters: Vec<Filter>,
}

type Hook<A> = Box<dyn Fn(&A) + Send + Sync>;

/// What the application wants to be told.
pub(super) struct Hooks {
    pub(super) on_join: Option<Hook<Arrival>>,
    pub(super) on_leave: Option<Hook<Departure>>,
    pub(super) on_first: Option<Hook<Filter>>,
    pub(super) on_last: Option<Hook<Filter>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many subscriptions have each filter.
    subscribers: HashMap<Filter, usize>,
    /// What the hooks have still to be told.
    queue: VecDeque<Notification>,
    /// Whether a thread is calling hooks.
    is_calling: bool,
}

enum Notification {
    Joined(Arrival),
    Left(Departure),
    First(Filter),
    Last(Filter),
}

/// Notes, when it is dropped, that no thread is calling hooks any more, also when a hook has panicked.
struct CallingGuard<'a>(&'a Hooks);

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

    /// Notes that a client has come.
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

    /// Notes that a client has gone, which had `filters`.
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

    /// How many subscriptions have exactly this filter.
    pub(super) fn subscribers(&self, filter: &Filter) -> usize {
        self.lock().subscribers.get(filter).copied().unwrap_or(0)
    }

    /// Calls the hooks, unless somebody does already.
    fn call<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        if std::mem::replace(&mut state.is_calling, true) {
            return;
        }
        let calling = CallingGuard(self);
        while let Some(notification) = state.queue.pop_front() {
            drop(state);
            self.notify(notification);
            state = self.lock();
        }
        // Under the lock, or what is put into the queue now would wait for the next.
        state.is_calling = false;
        drop(state);
        std::mem::forget(calling);
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

impl Drop for CallingGuard<'_> {
    fn drop(&mut self) {
        self.0.lock().is_calling = false;
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

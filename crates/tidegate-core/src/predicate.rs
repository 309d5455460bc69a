//! Predicates: subscribing by the payload of events.
//!
//! A predicate has an identity, and its clones share it. Subscriptions with the same filters and the same predicate
//! share a feed, so a predicate is run once for each event, by the publisher and before the publish lock is
//! taken, whatever the number of subscriptions. It is run only on events that match the filters. While history is
//! replayed it is run for a subscription alone.
//!
//! # Late comers
//! A publisher searches the index, runs the predicates that it finds and then takes the publish lock. A subscription with
//! a predicate can begin in between, and must not miss the event. Then the publisher searches once more, while nobody
//! can begin: so it decides after one more try, however many come and go.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::event::Event;

/// A test of payloads. Its clones are the same predicate: subscriptions with the same filters and the same predicate
/// share a feed.
pub struct Predicate<P>(Arc<Test<P>>);

/// A test with its identity.
struct Test<P> {
    /// Never used twice in a process.
    id: u64,
    /// The code of the application.
    test: Box<dyn Fn(&P) -> bool + Send + Sync>,
}

impl<P> Predicate<P> {
    /// Makes a predicate. `test` must always give the same answer for one event, must not block, and must not
    /// publish or subscribe to its hub or drop a subscription, which can wait for the publisher that runs it.
    ///
    /// A publisher asks it once about an event, replays ask it again. If it changes its mind there, a replay is given what it
    /// answers then, and its counts of what is to come are not exact.
    pub fn new(test: impl Fn(&P) -> bool + Send + Sync + 'static) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Test {
            id: NEXT_ID.fetch_add(1, Relaxed),
            test: Box::new(test),
        }))
    }

    /// The identity of the predicate, never used twice in a process.
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    /// Whether `event` passes. Runs code of the application: the caller holds no lock that it may take.
    pub(crate) fn accepts(&self, event: &Event<P>) -> bool {
        (self.0.test)(event.payload())
    }
}

impl<P> Clone for Predicate<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P> fmt::Debug for Predicate<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Predicate").field(&self.0.id).finish()
    }
}

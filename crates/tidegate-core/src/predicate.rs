//! Predicates: subscribing by the payload of events.
//!
//! A predicate has an identity, and its clones share it. Subscriptions with the same filters and the same
//! predicate share a feed, so a predicate is run once for each event, by the publisher and before any lock is
//! taken, whatever the number of subscriptions. Only while history is replayed is it run for a subscription
//! alone, on events from before anyone had it.
//!
//! # Late comers
//! A publisher runs the predicates that it finds and then takes the publish lock. A subscription with a new
//! predicate can begin in between, and must not miss the event. So the list has a version; if it is another
//! one under the lock, the publisher lets go of it, runs what is new, and tries again.

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

/// The predicates of all feeds, as a publisher takes them along.
pub(crate) struct PredicateList<P> {
    /// Rises with each predicate that is added.
    pub(crate) version: u64,
    /// Each predicate, and how many feeds have it.
    predicates: Arc<[(Predicate<P>, usize)]>,
}

impl<P> Predicate<P> {
    /// Makes a predicate. `test` must always give the same answer for one event, and must not block.
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

    /// Whether `event` passes: by the publisher's note, or else by running the test.
    pub(crate) fn accepts(&self, event: &Event<P>) -> bool {
        event
            .verdict(self.id())
            .unwrap_or_else(|| (self.0.test)(event.payload()))
    }
}

impl<P> PredicateList<P> {
    /// A list with one more predicate, or with one more feed of a known one.
    pub(crate) fn with(&self, predicate: &Predicate<P>) -> Self {
        let mut predicates = self.predicates.to_vec();
        let known = predicates
            .iter_mut()
            .find(|(known, _)| known.id() == predicate.id());
        match known {
            Some((_, users)) => *users += 1,
            None => predicates.push((predicate.clone(), 1)),
        }
        Self {
            version: self.version + 1,
            predicates: predicates.into(),
        }
    }

    /// A list with one feed less of `predicate`. The version stays: a publisher with the older list has run more than
    /// it needs, which does no harm.
    pub(crate) fn without(&self, predicate: &Predicate<P>) -> Self {
        let mut predicates = self.predicates.to_vec();
        for (known, users) in &mut predicates {
            *users -= usize::from(known.id() == predicate.id());
        }
        predicates.retain(|(_, users)| *users > 0);
        Self {
            version: self.version,
            predicates: predicates.into(),
        }
    }

    /// Runs each predicate on each event that has no note of it, and notes the answer.
    pub(crate) fn evaluate(&self, events: &mut [Arc<Event<P>>]) {
        if self.predicates.is_empty() {
            return;
        }
        for event in events {
            let event = Arc::get_mut(event).expect("nobody else has it yet");
            for (predicate, _) in &*self.predicates {
                if event.verdict(predicate.id()).is_none() {
                    let verdict = predicate.accepts(event);
                    event.note_verdict(predicate.id(), verdict);
                }
            }
        }
    }
}

impl<P> Default for PredicateList<P> {
    fn default() -> Self {
        Self {
            version: 0,
            predicates: Arc::new([]),
        }
    }
}

impl<P> Clone for PredicateList<P> {
    fn clone(&self) -> Self {
        Self {
            version: self.version,
            predicates: Arc::clone(&self.predicates),
        }
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

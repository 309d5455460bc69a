//! Publishing a batch: searching for the feeds of its events, outside of the publish lock, then committing them under it.
//!
//! # Steps and parts
//! A batch is published in parts, mostly one, each under one hold of the publish lock. A part ends where it would make
//! the others wait too long: its appends and its search are bounded. A step does a bounded part of the search or commits
//! one part, so that a task can let others run in between.

use std::{sync::Arc, time::Instant};

use crate::{
    event::{Event, Payload},
    part::Part,
    publish::{Numbering, PublishError, Published, Shared},
};

/// The work of a step: 16,384 places take about 0.4 ms, after which a task lets others run.
const STEP_WORK: u64 = 16_384;

/// A batch of events that is being published, by [`Hub::begin_publish`](crate::Hub::begin_publish).
///
/// Nothing is published before the first [`step`](Self::step) that commits. Dropped before that, it publishes nothing; dropped
/// after it, it publishes the rest, so that a batch is published whole or not at all.
#[derive(Debug)]
pub struct Publishing<P: Payload> {
    /// The hub.
    shared: Arc<Shared<P>>,
    /// The sequences of the events.
    numbering: Numbering,
    /// The events, and how far the search for their feeds is.
    part: Part<P>,
    /// The place of the parts that were committed.
    published: Option<Published>,
    /// The time that the last step was handed.
    now: Option<Instant>,
    /// Whether it is over: everything was committed, or nothing will be.
    is_over: bool,
}

// ===== impl Publishing =====

impl<P: Payload> Publishing<P> {
    /// A batch that is about to be published.
    pub(crate) fn new(
        shared: Arc<Shared<P>>,
        events: Vec<Arc<Event<P>>>,
        numbering: Numbering,
    ) -> Self {
        shared.index.begin_searching();
        Self {
            shared,
            numbering,
            part: Part::new(events),
            published: None,
            now: None,
            is_over: false,
        }
    }

    /// Goes on, for a bounded time: under 1 ms of work by itself, and the predicates of subscribers. Returns the place of the
    /// batch once all of it is published, and `None` while there is more to do.
    ///
    /// History measures the age of events from `now`.
    ///
    /// # Errors
    /// As [`Hub::publish`](crate::Hub::publish), at the first step that commits; then nothing is published, and the events
    /// are dropped.
    ///
    /// # Panics
    /// When a predicate panics, and when it is called again after it has returned the place or an error.
    pub fn step(&mut self, now: Instant) -> Result<Option<Published>, PublishError> {
        assert!(!self.is_over, "the batch was published, or refused");
        self.now = Some(now);
        let is_full = self.part.search(&self.shared.index, STEP_WORK);
        let is_last = self.part.is_last();
        if !is_full && !is_last {
            return Ok(None);
        }
        let is_first = self.published.is_none();
        let committed = self
            .shared
            .commit(&mut self.part, now, &self.numbering, is_first, is_last);
        self.is_over = is_last || committed.is_err();
        let committed = committed?;
        let published = self.published.insert(match self.published {
            Some(before) => before.and(committed),
            None => committed,
        });
        Ok(is_last.then_some(*published))
    }
}

impl<P: Payload> Drop for Publishing<P> {
    fn drop(&mut self) {
        // Whole or not at all. Not while a panic unwinds: if a predicate has panicked, it would again.
        if self.published.is_some() && !std::thread::panicking() {
            while !self.is_over
                && let Some(now) = self.now
                && self.step(now).is_ok()
            {}
        }
        if !self.is_over {
            self.shared.index.end_searching();
        }
    }
}

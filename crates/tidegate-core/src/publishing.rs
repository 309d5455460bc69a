//! Publishing a batch: searching for the feeds of its events, outside of the publish lock, then committing them under it.
//!
//! # Steps and parts
//! A batch is published in parts, mostly one, each under one hold of the publish lock. A part ends where it would make
//! the others wait too long: its appends and its search are bounded. A step does a bounded part of the search or commits
//! one part, so that a task can let others run in between.

use std::{collections::HashMap, sync::Arc, time::Instant};

use crate::{
    event::{Event, Payload},
    feed::Feed,
    index::{Index, Late},
    predicate::Predicate,
    publish::{Numbering, PublishError, Published, Shared},
};

/// The most appends to feeds under one hold of the publish lock; a single event may have more. 131,072 take 3 ms at 25 ns,
/// which `.ci/counts` gives for one.
const PART_APPENDS: usize = 131_072;

/// The most work of the search for the feeds of one part, which is done again while nobody can subscribe if subscribers came
/// meanwhile. 262,144 places take about 6 ms.
const PART_WORK: u64 = 262_144;

/// The work of a step: 16,384 places take about 0.4 ms, after which a task lets others run.
const STEP_WORK: u64 = 16_384;

/// The most that is matched under the publish lock: filters of late feeds, times events. 4,096 take about 0.2 ms.
const LATE_WORK: usize = 4_096;

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

/// The events of a batch, and the feeds that those of one part go to.
#[derive(Debug)]
pub(crate) struct Part<P> {
    /// All events, in their order.
    batch: Vec<Arc<Event<P>>>,
    /// The number of the first event of the part: those before it were committed.
    first: usize,
    /// The number behind the last: those from it on are to be searched for.
    end: usize,
    /// Which events of the part go to which feeds.
    runs: Vec<Run>,
    /// The feeds of all runs, one after the other.
    feeds: Vec<Arc<Feed<P>>>,
    /// The answers of predicates, by the number of the event and their identity: each is asked once, also when the search is done again.
    answers: Answers,
    /// The work of the search so far.
    work: u64,
    /// How many appends it takes.
    appends: usize,
}

/// See [`Part::answers`].
type Answers = HashMap<(usize, u64), bool>;

/// Consecutive events that go to the same feeds.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// The number of the event behind the last.
    events_end: usize,
    /// The place behind the last of its feeds; the first is behind those of the run before.
    feeds_end: usize,
    /// The version of the index in which they were found.
    version: u64,
    /// Whether events of the same topic have the same feeds: none of them has a predicate.
    is_by_topic: bool,
}

/// An event of a part, and the feeds that it goes to.
pub(crate) struct Target<'a, P> {
    /// The event.
    pub(crate) event: &'a Arc<Event<P>>,
    /// The feeds that the search has found.
    pub(crate) feeds: &'a [Arc<Feed<P>>],
    /// The version of the index that it searched: late feeds with a higher one are to be matched.
    pub(crate) version: u64,
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
        let is_last = self.part.end == self.part.batch.len();
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

// ===== impl Part =====

impl<P: Payload> Part<P> {
    /// The first part of a batch, without events yet.
    fn new(batch: Vec<Arc<Event<P>>>) -> Self {
        Self {
            batch,
            first: 0,
            end: 0,
            runs: Vec::new(),
            feeds: Vec::new(),
            answers: Answers::new(),
            work: 0,
            appends: 0,
        }
    }

    /// Takes events and finds their feeds, until the part is full or the step has done its work. Returns whether the part is
    /// full.
    fn search(&mut self, index: &Index<P>, step_work: u64) -> bool {
        let enough = self.work.saturating_add(step_work);
        while self.work < enough {
            if self.appends >= PART_APPENDS || self.work >= PART_WORK {
                return true;
            }
            if self.end == self.batch.len() {
                return false;
            }
            self.end += 1;
            self.find_feeds(index);
        }
        false
    }

    /// Finds the feeds of the last event. Runs predicates: the caller holds no lock that they may take.
    fn find_feeds(&mut self, index: &Index<P>) {
        let events_end = self.end;
        let event = &self.batch[events_end - 1];
        // At least one a event, so that a part has an end, whatever matches.
        self.work += 1;
        // A batch is often of one topic: then one search does for all of it.
        if let Some(run) = self.runs.last_mut()
            && run.is_by_topic
            && let Some(before) = events_end.checked_sub(2)
            && self.batch[before].topic() == event.topic()
        {
            run.events_end = events_end;
            let first = self.runs.iter().rev().nth(1).map_or(0, |run| run.feeds_end);
            self.appends += self.feeds.len() - first;
            return;
        }
        let before = self.feeds.len();
        let found = index.search(event.topic().as_str(), &mut self.feeds);
        self.work += found.work;
        let is_by_topic = self.feeds[before..]
            .iter()
            .all(|feed| feed.predicate().is_none());
        if !is_by_topic {
            keep_accepting(&mut self.feeds, before, &mut |predicate| {
                let asked = self.answers.entry((events_end - 1, predicate.id()));
                *asked.or_insert_with(|| predicate.accepts(event))
            });
        }
        self.appends += self.feeds.len() - before;
        self.runs.push(Run {
            events_end,
            feeds_end: self.feeds.len(),
            version: found.version,
            is_by_topic,
        });
    }

    /// Finds the feeds of all events of the part anew.
    pub(crate) fn search_again(&mut self, index: &Index<P>) {
        self.forget_search();
        for end in self.first + 1..=self.end {
            self.end = end;
            self.find_feeds(index);
        }
    }

    /// The events of the part, in their order.
    pub(crate) fn events(&self) -> &[Arc<Event<P>>] {
        &self.batch[self.first..self.end]
    }

    /// As [`events`](Self::events), to number them: with the number of each in the batch.
    pub(crate) fn events_mut(&mut self) -> impl Iterator<Item = (usize, &mut Arc<Event<P>>)> {
        let part = self.batch.iter_mut().enumerate().take(self.end);
        part.skip(self.first)
    }

    /// Empties the part, for the next one.
    pub(crate) fn clear(&mut self) {
        self.first = self.end;
        self.answers = Answers::new();
        self.forget_search();
    }

    /// Forgets which feeds the events go to.
    fn forget_search(&mut self) {
        self.runs.clear();
        self.feeds.clear();
        (self.work, self.appends) = (0, 0);
    }

    /// Whether every search has seen this version of the index.
    pub(crate) fn is_since(&self, version: u64) -> bool {
        self.runs.iter().all(|run| run.version >= version)
    }

    /// The events with their feeds, in their order.
    pub(crate) fn targets(&self) -> impl Iterator<Item = Target<'_, P>> {
        let starts = [(self.first, 0)].into_iter();
        let ends = self.runs.iter().map(|run| (run.events_end, run.feeds_end));
        let runs = self.runs.iter().zip(starts.chain(ends));
        runs.flat_map(move |(run, (events_start, feeds_start))| {
            self.batch[events_start..run.events_end]
                .iter()
                .map(move |event| Target {
                    event,
                    feeds: &self.feeds[feeds_start..run.feeds_end],
                    version: run.version,
                })
        })
    }

    /// Whether the late feeds can be matched under the publish lock: the work is small, and no code of an application has
    /// to run.
    pub(crate) fn can_match(&self, late: &[Late<P>]) -> bool {
        let oldest = self.runs.iter().map(|run| run.version).min();
        let mut to_match = late
            .iter()
            .filter(|late| oldest.is_some_and(|oldest| late.version > oldest))
            .peekable();
        // Most often there is none.
        if to_match.peek().is_none() {
            return true;
        }
        let mut filters = 0;
        for late in to_match {
            filters += late.feed.filters().len();
            if filters.saturating_mul(self.events().len()) > LATE_WORK {
                return false;
            }
            let is_matched = |target: Target<'_, P>| {
                late.version > target.version && late.feed.matches(target.event.topic())
            };
            if late.feed.predicate().is_some() && self.targets().any(is_matched) {
                return false;
            }
        }
        true
    }
}

/// Keeps, of the feeds from `start` on, those without a predicate, and those whose predicate accepts.
fn keep_accepting<P: Payload>(
    feeds: &mut Vec<Arc<Feed<P>>>,
    start: usize,
    accepts: &mut impl FnMut(&Predicate<P>) -> bool,
) {
    let mut found = feeds.split_off(start);
    found.retain(|feed| feed.predicate().is_none_or(&mut *accepts));
    feeds.append(&mut found);
}

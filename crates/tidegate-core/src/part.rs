//! A part of a batch: its events, and the feeds that they go to.
//!
//! The search for the feeds is done outside of the publish lock, in bounded steps; a part ends where its appends or its search would
//! make others wait too long.

use std::{collections::HashMap, sync::Arc};

use crate::{
    event::{Event, Payload},
    feed::Feed,
    index::{Index, Late},
    predicate::Predicate,
};

/// The most appends to feeds under one hold of the publish lock; a single event may have more. 131,072 take 3 ms
/// at 25 ns each. An estimate; `cost_tests.rs` measures the locks.
const PART_APPENDS: usize = 131_072;

/// The appends that an event counts for beside those to feeds, whatever it matches: it is numbered, appended to history, and
/// drops another from there, which is freed. An estimate.
const EVENT_APPENDS: usize = 4;

/// The most work of the search for the feeds of one part, which is done again while nobody can subscribe if subscribers came
/// meanwhile. 131,072 places take 3 ms at 25 ns each. An estimate.
const PART_WORK: u64 = 131_072;

/// The most that is matched under the publish lock: filters of late feeds, times events. 4,096 take 0.2 ms at 50 ns each. An
/// estimate.
const LATE_WORK: usize = 4_096;

/// The events of a batch, and the feeds that those of one part go to.
#[derive(Debug)]
pub(crate) struct Part<P> {
    /// All events, in their order.
    batch: Vec<Arc<Event<P>>>,
    /// The number of the first event of the part: those before it were committed.
    first: usize,
    /// The number behind the last: those from it on are to be searched for.
    end: usize,
    /// Which events of the part go to which feeds: all runs but the last.
    runs: Vec<Run>,
    /// The last run, beside the others because most parts have only one.
    last: Option<Run>,
    /// The feeds of all runs, one after the other.
    feeds: Vec<Arc<Feed<P>>>,
    /// The answers of predicates, by the number of the event and their identity: each is asked once, also when the search is done again.
    answers: Option<Box<Answers>>,
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

// ===== impl Part =====

impl<P: Payload> Part<P> {
    /// The first part of a batch, without events yet.
    pub(crate) const fn new(batch: Vec<Arc<Event<P>>>) -> Self {
        Self {
            batch,
            first: 0,
            end: 0,
            runs: Vec::new(),
            last: None,
            feeds: Vec::new(),
            answers: None,
            work: 0,
            appends: 0,
        }
    }

    /// Takes events and finds their feeds, until the part is full or the step has done its work. Returns whether the part is
    /// full.
    pub(crate) fn search(&mut self, index: &Index<P>, step_work: u64) -> bool {
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
        if let Some(run) = &mut self.last
            && run.is_by_topic
            && let Some(before) = events_end.checked_sub(2)
            && self.batch[before].topic() == event.topic()
        {
            run.events_end = events_end;
            let first = self.runs.last().map_or(0, |run| run.feeds_end);
            self.appends += EVENT_APPENDS + self.feeds.len() - first;
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
                let answers = self.answers.get_or_insert_default();
                let asked = answers.entry((events_end - 1, predicate.id()));
                *asked.or_insert_with(|| predicate.accepts(event))
            });
        }
        self.appends += EVENT_APPENDS + self.feeds.len() - before;
        let run = Run {
            events_end,
            feeds_end: self.feeds.len(),
            version: found.version,
            is_by_topic,
        };
        self.runs.extend(self.last.replace(run));
    }

    /// Finds the feeds of all events of the part anew.
    pub(crate) fn search_again(&mut self, index: &Index<P>) {
        self.forget_search();
        for end in self.first + 1..=self.end {
            self.end = end;
            self.find_feeds(index);
        }
    }

    /// Whether no event of the batch is behind the part.
    pub(crate) const fn is_last(&self) -> bool {
        self.end == self.batch.len()
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
        self.answers = None;
        self.forget_search();
    }

    /// Forgets which feeds the events go to.
    fn forget_search(&mut self) {
        self.runs.clear();
        self.last = None;
        self.feeds.clear();
        (self.work, self.appends) = (0, 0);
    }

    /// Whether every search has seen this version of the index.
    pub(crate) fn is_since(&self, version: u64) -> bool {
        self.runs().all(|run| run.version >= version)
    }

    /// All runs.
    fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().chain(&self.last)
    }

    /// The events with their feeds, in their order.
    pub(crate) fn targets(&self) -> impl Iterator<Item = Target<'_, P>> {
        let starts = [(self.first, 0)].into_iter();
        let ends = self.runs().map(|run| (run.events_end, run.feeds_end));
        let runs = self.runs().zip(starts.chain(ends));
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
        // Most often there is none.
        if late.is_empty() {
            return true;
        }
        let oldest = self.runs().map(|run| run.version).min();
        let to_match = oldest.map_or(&[][..], |oldest| Late::after(late, oldest));
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

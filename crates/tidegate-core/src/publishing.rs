//! Publishing a batch: searching for the feeds of its events, outside of the publish lock, then committing them under it.
//!
//! # Steps and parts
//! A batch is published in parts, mostly one, each under one hold of the publish lock. A part ends where it would make
//! the others wait too long: its appends and its search are bounded. A step does a bounded part of the search or commits
//! one part, so that a task can let others run in between.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    task::Waker,
    thread,
    time::Instant,
};

use crate::{
    event::{Event, Payload},
    freed::Freed,
    part::Part,
    publish::{Numbering, PublishError, Published, Shared},
    wake::wake_all,
};

/// The work of a step: 16,384 places take 0.4 ms at 25 ns each, after which a task lets others run. An estimate.
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
    /// Whether a step has begun in which predicates run, and has not come to its end: if it never does, one has panicked.
    is_in_predicates: bool,
    /// Wakers of those who are to be woken.
    wake: Vec<Waker>,
    /// Payloads and feeds to be let go of.
    freed: Freed<P>,
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
            is_in_predicates: false,
            wake: Vec::new(),
            freed: Freed::new(),
        }
    }

    /// Whether a part of the batch was committed, and another is to come: dropped now, it publishes the rest at once.
    #[must_use]
    pub const fn is_partial(&self) -> bool {
        self.published.is_some() && !self.is_over
    }

    /// Goes on, for a bounded work of its own, and the predicates of subscribers. Returns the place of the
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
        let published = self.go_on(now);
        self.settle();
        published
    }

    /// As [`step`](Self::step), but wakes nobody and lets go of nothing: [`settle`](Self::settle) does, when the caller holds no
    /// lock.
    pub(crate) fn go_on(&mut self, now: Instant) -> Result<Option<Published>, PublishError> {
        assert!(!self.is_over, "the batch was published, or refused");
        self.now = Some(now);
        // Predicates run from here on, and nothing else that can panic.
        self.is_in_predicates = true;
        let is_full = self.part.search(&self.shared.index, STEP_WORK);
        let is_last = self.part.is_last();
        if !is_full && !is_last {
            self.is_in_predicates = false;
            return Ok(None);
        }
        let is_first = self.published.is_none();
        let committed = self.shared.commit(
            &mut self.part,
            now,
            &self.numbering,
            (is_first, is_last),
            &mut self.wake,
            &mut self.freed,
        );
        self.is_in_predicates = false;
        self.is_over = is_last || committed.is_err();
        let committed = committed?;
        let published = self.published.insert(match self.published {
            Some(before) => before.and(committed),
            None => committed,
        });
        Ok(is_last.then_some(*published))
    }

    /// Wakes those who have news, and lets go of what was freed. The caller holds no lock. All that was committed is noted: a waker
    /// may panic.
    pub(crate) fn settle(&mut self) {
        if !self.wake.is_empty() {
            wake_all(mem::take(&mut self.wake));
        }
        // Last, should one of them panic.
        self.freed.clear();
    }
}

impl<P: Payload> Drop for Publishing<P> {
    fn drop(&mut self) {
        let mut panic = None;
        // Whole or not at all. Unless a predicate has panicked: it would again.
        if !self.is_over && self.published.is_some() && !self.is_in_predicates {
            // This may be while a waker's panic unwinds, which another would turn into an abort.
            let rest = catch_unwind(AssertUnwindSafe(|| {
                while !self.is_over
                    && let Some(now) = self.now
                    && self.go_on(now).is_ok()
                {}
            }));
            panic = rest.err();
        }
        if !self.is_over {
            let mut state = self.shared.publish.lock();
            self.shared.end_searching(&mut state, &mut self.freed);
        }
        self.settle();
        if let Some(panic) = panic
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

#[cfg(all(test, not(tidegate_loom)))]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;

    use super::Publishing;
    use crate::{
        event::NewEvent,
        filter::Filter,
        hub::Hub,
        options::{HubConfig, SubscribeOptions},
        topic::{ClientId, Topic},
    };

    fn event() -> NewEvent<Bytes> {
        NewEvent::new(Topic::new("a").unwrap(), Bytes::new())
    }

    /// Subscribes with this many filters that make one feed, and leaves.
    fn come_and_go(hub: &Hub<Bytes>, client: usize, filters: usize) {
        let others = (1..filters).map(|i| format!("*.b{i}"));
        let filters = others.chain(["a.*".to_owned()]);
        let filters = filters.map(|filter| Filter::new(&filter).unwrap());
        let client = ClientId::new(&client.to_string()).unwrap();
        let options = SubscribeOptions::new(client, filters.collect());
        drop(hub.subscribe(options, Instant::now()).unwrap());
    }

    fn late_filters(publishing: &Publishing<Bytes>) -> usize {
        let state = publishing.shared.publish.lock();
        let late = state.late.iter();
        late.map(|late| late.feed.filters().len()).sum()
    }

    #[test]
    fn a_batch_that_is_given_up_lets_late_feeds_go() {
        let hub = Hub::new(HubConfig::new(1));
        let publishing = hub.begin_publish([event()]);
        come_and_go(&hub, 1, 3);
        // The feed of the filters and that of the client.
        assert_eq!(late_filters(&publishing), 3 + 1);
        let shared = std::sync::Arc::clone(&publishing.shared);
        drop(publishing);
        assert!(shared.publish.lock().late.is_empty());
        assert_eq!(hub.position().sequence, 0);
    }

    #[test]
    fn late_feeds_are_bounded_by_their_filters() {
        let hub = Hub::new(HubConfig::new(1));
        let mut publishing = hub.begin_publish([event()]);
        for client in 0..20 {
            come_and_go(&hub, client, 500);
            assert!(late_filters(&publishing) <= 1_024);
        }
        assert!(late_filters(&publishing) > 500);
        // Searched once more, because feeds were forgotten.
        assert!(publishing.step(Instant::now()).unwrap().is_some());
    }

    /// An event costs others time under the publish lock, also if nobody wants it.
    #[test]
    fn a_part_is_bounded_in_events() {
        let hub = Hub::new(HubConfig::new(1));
        let mut publishing = hub.begin_publish(vec![event(); 100_000]);
        let mut most = 0;
        loop {
            let before = hub.position().sequence;
            let is_done = publishing.step(Instant::now()).unwrap().is_some();
            most = most.max(hub.position().sequence - before);
            if is_done {
                break;
            }
        }
        assert_eq!(hub.position().sequence, 100_000);
        assert!(most <= 32_768, "{most}");
    }
}

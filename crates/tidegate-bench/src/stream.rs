//! The accounts of one subscription, and of all subscriptions on one thread.
//!
//! # Accounting
//!
//! A stream is *settled* up to the number of events that were delivered to it or counted as missing. Each arrival
//! must continue without a hole: [`Stream::deliver`] and [`Stream::miss`] compare the server's index with the settled
//! count, [`Stream::deliver_numbered`] the numbers in the payloads. When the publishers have ended, a stream must
//! settle at exactly the number of events that match it, no less and no more.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::Notify;

use crate::{Clock, Error, Latencies, clock::Window, gate::Gate, payload::Head, plan::StreamPlan};

/// Running counts of one thread, which the thread of the run reads.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Events delivered.
    pub(crate) delivered: AtomicU64,
    /// Events that were counted as missing.
    pub(crate) missed: AtomicU64,
}

/// The events whose latency is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sampling {
    /// Every event.
    Each,
    /// The first of the events that arrive together, which has waited longest.
    FirstOfBatch,
}

/// State shared by the streams of all threads of a run.
#[derive(Debug)]
pub(crate) struct RunShared {
    /// The clock of the run.
    pub(crate) clock: Clock,
    /// The measured window.
    pub(crate) window: Window,
    /// The gate that holds the publisher to the pace of the slowest subscriber, if there is one.
    pub(crate) gate: Option<Gate>,
    /// The events whose latency is measured.
    pub(crate) sampling: Sampling,
    /// Number of topics.
    pub(crate) topics: usize,
}

/// State shared by the streams of one thread.
#[derive(Debug)]
pub(crate) struct ThreadShared {
    pub(crate) shared: Arc<RunShared>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) latencies: RefCell<Latencies>,
    /// Streams that have not reached their goal, once the goals are known.
    pub(crate) unsettled: Cell<usize>,
    /// The first failure, until it is taken.
    failure: RefCell<Option<Error>>,
    /// Notified when no stream is unsettled any more, and on failure.
    pub(crate) changed: Notify,
}

/// The accounts of one subscription.
#[derive(Debug)]
pub struct Stream {
    thread: Rc<ThreadShared>,
    plan: StreamPlan,
    /// Whether the stream stops reading once it has begun.
    stalled: bool,
    /// The index of the first event to come, as the server stated it.
    origin: Cell<u64>,
    /// Events delivered or counted as missing.
    settled: Cell<u64>,
    missed: Cell<u64>,
    /// The count at which it must settle, once the publishers have ended.
    goal: Cell<Option<u64>>,
    /// The step of the gate that the stream is in, and the settled count at which that step ends.
    step: Cell<u64>,
    step_end: Cell<u64>,
    /// Events of a step that match the stream. 0 without a gate.
    step_share: u64,
}

// ===== impl ThreadShared =====

impl ThreadShared {
    pub(crate) fn new(shared: Arc<RunShared>, meter: Arc<Meter>) -> Self {
        Self {
            shared,
            meter,
            latencies: RefCell::default(),
            unsettled: Cell::new(0),
            failure: RefCell::default(),
            changed: Notify::new(),
        }
    }

    /// Takes the first failure since the last call, if there was one.
    pub(crate) fn take_failure(&self) -> Option<Error> {
        self.failure.take()
    }
}

// ===== impl Stream =====

impl Stream {
    pub(crate) fn new(thread: Rc<ThreadShared>, plan: StreamPlan, stalled: bool) -> Self {
        let gate = thread.shared.gate.as_ref();
        let step_share = gate.map_or(0, |gate| plan.matching(gate.step(), thread.shared.topics));
        Self {
            thread,
            plan,
            stalled,
            origin: Cell::new(0),
            settled: Cell::new(0),
            missed: Cell::new(0),
            goal: Cell::new(None),
            step: Cell::new(0),
            step_end: Cell::new(if step_share == 0 {
                u64::MAX
            } else {
                step_share
            }),
            step_share,
        }
    }

    /// Returns the filters to subscribe with.
    #[must_use]
    pub fn filters(&self) -> &[String] {
        &self.plan.filters
    }

    /// Returns its number among all streams, from 0.
    #[must_use]
    pub const fn number(&self) -> usize {
        self.plan.number
    }

    /// Records that the server has confirmed the subscription, with `origin` as the first index to come.
    pub fn begin(&self, origin: u64) {
        self.origin.set(origin);
    }

    /// Records a batch of `count` events, the first of which has the index `first_index`.
    ///
    /// # Errors
    ///
    /// [`Error::Violation`] if that is not the next index.
    pub fn deliver<'a>(
        &self,
        first_index: u64,
        count: u64,
        payloads: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), Error> {
        self.expect(first_index)?;
        self.sample(payloads.filter_map(Head::of));
        self.count_delivered(count);
        Ok(())
    }

    /// Records a gap of `count` events, the first of which has the index `first_index`. A gap of 0 takes no index.
    ///
    /// # Errors
    ///
    /// [`Error::Violation`] if that is not the next index.
    pub fn miss(&self, first_index: u64, count: u64) -> Result<(), Error> {
        if count > 0 {
            self.expect(first_index)?;
            self.count_missed(count);
        }
        Ok(())
    }

    /// Records payloads from a server that has no index. The numbers in their heads reveal missing events, with one
    /// publisher and one topic only.
    ///
    /// # Errors
    ///
    /// [`Error::Violation`] if a payload has no head, or an event came again.
    pub fn deliver_numbered<'a>(
        &self,
        payloads: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), Error> {
        let mut heads = Vec::new();
        let (mut next, mut missed) = (self.settled.get(), 0);
        let mut count = 0;
        for payload in payloads {
            let head = Head::of(payload).ok_or_else(|| {
                Error::Violation("an event came that this benchmark did not publish".into())
            })?;
            missed += head.number.checked_sub(next).ok_or_else(|| {
                Error::Violation(format!(
                    "event {} came when {next} events were settled already",
                    head.number
                ))
            })?;
            next = head.number + 1;
            count += 1;
            if self.thread.shared.sampling == Sampling::Each || count == 1 {
                heads.push(head);
            }
        }
        self.sample(heads.into_iter());
        if missed > 0 {
            self.count_missed(missed);
        }
        self.count_delivered(count);
        Ok(())
    }

    /// Records that the subscription cannot go on. That fails the run.
    pub fn fail(&self, error: Error) {
        // A server may end a subscription that reads nothing; the others are what the run measures.
        if !self.stalled {
            self.thread.failure.borrow_mut().get_or_insert(error);
            self.thread.changed.notify_one();
        }
    }

    /// Returns the number of events delivered or counted as missing.
    pub(crate) fn settled(&self) -> u64 {
        self.settled.get()
    }

    pub(crate) fn missed(&self) -> u64 {
        self.missed.get()
    }

    /// Returns how many events match, given how many each publisher has sent.
    pub(crate) fn matching(&self, published: &[u64]) -> u64 {
        let matching = |&published: &u64| self.plan.matching(published, self.thread.shared.topics);
        published.iter().map(matching).sum()
    }

    /// Sets the count at which the stream must settle. Returns whether it has reached it already.
    pub(crate) fn set_goal(&self, goal: u64) -> bool {
        self.goal.set(Some(goal));
        self.settled.get() >= goal
    }

    fn expect(&self, index: u64) -> Result<(), Error> {
        let next = self.origin.get() + self.settled.get();
        if index == next {
            return Ok(());
        }
        Err(Error::Violation(format!(
            "stream {} was to continue at index {next}, but continued at {index}",
            self.plan.number
        )))
    }

    fn sample(&self, heads: impl Iterator<Item = Head>) {
        let shared = &self.thread.shared;
        let most = match shared.sampling {
            Sampling::Each => usize::MAX,
            Sampling::FirstOfBatch => 1,
        };
        let now = shared.clock.now();
        let mut latencies = self.thread.latencies.borrow_mut();
        for head in heads.take(most) {
            if shared.window.contains(head.due) {
                latencies.record(now.saturating_sub(head.due));
            }
        }
    }

    fn count_delivered(&self, count: u64) {
        self.thread.meter.delivered.fetch_add(count, Relaxed);
        self.settle(count);
    }

    fn count_missed(&self, count: u64) {
        self.thread.meter.missed.fetch_add(count, Relaxed);
        self.missed.set(self.missed.get() + count);
        self.settle(count);
    }

    fn settle(&self, count: u64) {
        let before = self.settled.get();
        let settled = before + count;
        self.settled.set(settled);
        // Crossing the goal counts, not being beyond it: a stream that settles too much crosses it once, and the final
        // verification finds the excess.
        if let Some(goal) = self.goal.get()
            && before < goal
            && settled >= goal
        {
            self.thread.unsettled.set(self.thread.unsettled.get() - 1);
            if self.thread.unsettled.get() == 0 {
                self.thread.changed.notify_one();
            }
        }
        // One batch may end several steps, and the gate wants each of them, in order.
        if let Some(gate) = &self.thread.shared.gate {
            while settled >= self.step_end.get() {
                gate.settled(self.step.replace(self.step.get() + 1));
                self.step_end.set(self.step_end.get() + self.step_share);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, Shape};

    fn stream(gate: Option<Gate>) -> Stream {
        let shared = RunShared {
            clock: Clock::start(),
            window: Window::closed(),
            gate,
            sampling: Sampling::Each,
            topics: 1,
        };
        shared.window.open(0, u64::MAX);
        let plan = Plan::new(Shape::Literal, 1, 1, "p").unwrap();
        let thread = Rc::new(ThreadShared::new(Arc::new(shared), Arc::default()));
        thread.unsettled.set(1);
        Stream::new(thread, plan.streams()[0].clone(), false)
    }

    fn payload(number: u64) -> [u8; 16] {
        Head { due: 1, number }.to_bytes()
    }

    #[test]
    fn an_index_must_follow_the_one_before() {
        let stream = stream(None);
        stream.begin(100);
        let none = || std::iter::empty();
        stream.deliver(100, 2, none()).unwrap();
        stream.miss(102, 5).unwrap();
        stream.miss(0, 0).unwrap();
        assert!(matches!(
            stream.deliver(108, 1, none()),
            Err(Error::Violation(_))
        ));
        assert!(stream.miss(106, 1).is_err());
        stream.deliver(107, 1, none()).unwrap();
        assert_eq!((stream.settled(), stream.missed()), (8, 5));
    }

    #[test]
    fn payload_numbers_reveal_missing_events() {
        let stream = stream(None);
        let events = [0, 1, 4].map(payload);
        stream
            .deliver_numbered(events.iter().map(|event| &event[..]))
            .unwrap();
        assert_eq!((stream.settled(), stream.missed()), (5, 2));
        let again = payload(4);
        assert!(stream.deliver_numbered([&again[..]].into_iter()).is_err());
        assert!(
            stream
                .deliver_numbered([&b"short"[..]].into_iter())
                .is_err()
        );
        assert_eq!(
            stream
                .thread
                .latencies
                .borrow()
                .distribution()
                .unwrap()
                .samples,
            3
        );
    }

    #[test]
    fn a_goal_is_reached_once() {
        let stream = stream(None);
        assert!(!stream.set_goal(stream.matching(&[1, 2])));
        stream.deliver(0, 2, std::iter::empty()).unwrap();
        assert_eq!(stream.thread.unsettled.get(), 1);
        stream.deliver(2, 2, std::iter::empty()).unwrap();
        stream.deliver(4, 2, std::iter::empty()).unwrap();
        assert_eq!((stream.thread.unsettled.get(), stream.settled()), (0, 6));
    }

    #[test]
    fn stream_reports_each_step_to_the_gate() {
        use futures_util::FutureExt as _;

        let stream = stream(Some(Gate::new(40, 1, 1)));
        stream.deliver(0, 25, std::iter::empty()).unwrap();
        let gate = stream.thread.shared.gate.as_ref().unwrap();
        assert_eq!(gate.allowance_from(0).now_or_never(), Some(60));
    }
}

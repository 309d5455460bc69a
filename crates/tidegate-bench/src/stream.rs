//! The accounts of one subscription, and of all subscriptions on one thread.
//!
//! # Accounting
//!
//! A stream is *settled* up to the number of events that were delivered to it or counted as missing. What
//! arrives must follow without a hole: [`Stream::deliver`] and [`Stream::miss`] compare the index that the
//! server names, [`Stream::deliver_numbered`] the numbers in the payloads. When the publishers have ended, a
//! stream must settle at exactly the number of events that match it, no less and no more.

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

/// Running counts of one thread, for others to look at.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Events delivered.
    pub(crate) delivered: AtomicU64,
    /// Events that were counted as missing.
    pub(crate) missed: AtomicU64,
}

/// How many of the events in a batch have their latency measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sampling {
    /// Every one.
    Each,
    /// The first of those that arrive together, which has waited longest.
    FirstOfBatch,
}

/// What all streams of all threads share.
#[derive(Debug)]
pub(crate) struct RunShared {
    /// The clock of the run.
    pub(crate) clock: Clock,
    /// What is measured.
    pub(crate) window: Window,
    /// What holds the publisher to the pace of the slowest, if anything does.
    pub(crate) gate: Option<Gate>,
    /// What is sampled.
    pub(crate) sampling: Sampling,
    /// How many topics there are.
    pub(crate) topics: usize,
}

/// What the streams of one thread share.
#[derive(Debug)]
pub(crate) struct ThreadShared {
    pub(crate) shared: Arc<RunShared>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) latencies: RefCell<Latencies>,
    /// Streams that have still something to settle, once the goal is known.
    pub(crate) unsettled: Cell<usize>,
    /// The first failure.
    failure: RefCell<Option<Error>>,
    /// Notified when nothing is unsettled any more, and on failure.
    pub(crate) changed: Notify,
}

/// The accounts of one subscription.
#[derive(Debug)]
pub struct Stream {
    thread: Rc<ThreadShared>,
    plan: StreamPlan,
    /// Whether it is to read nothing.
    stalled: bool,
    /// The index that the server calls the first, in the way of [`Stream::begin`].
    origin: Cell<u64>,
    /// Events delivered or counted as missing.
    settled: Cell<u64>,
    missed: Cell<u64>,
    /// Where it must settle, once that is known.
    goal: Cell<Option<u64>>,
    /// The step of the gate it is in, and where that ends.
    step: Cell<u64>,
    step_end: Cell<u64>,
    /// How much of a step matches.
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

    /// What went wrong first, if anything did since it was last asked.
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

    /// What it subscribes to.
    #[must_use]
    pub fn filters(&self) -> &[String] {
        &self.plan.filters
    }

    /// Its number among all streams.
    #[must_use]
    pub const fn number(&self) -> usize {
        self.plan.number
    }

    /// The server has confirmed the subscription, and calls the first index to come `origin`.
    pub fn begin(&self, origin: u64) {
        self.origin.set(origin);
    }

    /// A batch came, whose first event has this index.
    ///
    /// # Errors
    ///
    /// When that is not the next index.
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

    /// A gap came, whose first missing event has this index.
    ///
    /// # Errors
    ///
    /// When that is not the next index.
    pub fn miss(&self, first_index: u64, count: u64) -> Result<(), Error> {
        if count > 0 {
            self.expect(first_index)?;
            self.count_missed(count);
        }
        Ok(())
    }

    /// Payloads came from a server that has no index. The numbers within tell what is missing. They do only
    /// with one publisher and one topic.
    ///
    /// # Errors
    ///
    /// When an event is none of this benchmark, or came again.
    pub fn deliver_numbered<'a>(
        &self,
        payloads: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), Error> {
        let mut heads = Vec::new();
        let (mut next, mut missed) = (self.settled.get(), 0);
        let mut count = 0;
        for payload in payloads {
            let head = Head::of(payload)
                .ok_or_else(|| Error::Violation("an event of somebody else came".into()))?;
            missed += head.number.checked_sub(next).ok_or_else(|| {
                Error::Violation(format!(
                    "event {} came after {next} were settled",
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

    /// The subscription cannot go on. A stalled one that the server throws out is what was to be seen.
    pub fn fail(&self, error: Error) {
        if !self.stalled {
            self.thread.failure.borrow_mut().get_or_insert(error);
            self.thread.changed.notify_one();
        }
    }

    /// How many events are settled: delivered or counted as missing.
    pub(crate) fn settled(&self) -> u64 {
        self.settled.get()
    }

    pub(crate) fn missed(&self) -> u64 {
        self.missed.get()
    }

    /// How many of the events that the publishers have sent match, by publisher.
    pub(crate) fn matching(&self, published: &[u64]) -> u64 {
        let matching = |&published: &u64| self.plan.matching(published, self.thread.shared.topics);
        published.iter().map(matching).sum()
    }

    /// Says where it must settle. Returns whether it has.
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
            "stream {} was to go on at index {next}, and went on at {index}",
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
        if let Some(goal) = self.goal.get()
            && before < goal
            && settled >= goal
        {
            self.thread.unsettled.set(self.thread.unsettled.get() - 1);
            if self.thread.unsettled.get() == 0 {
                self.thread.changed.notify_one();
            }
        }
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

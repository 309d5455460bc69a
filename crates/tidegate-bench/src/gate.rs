//! Holds a publisher that is as fast as it can to the pace of the slowest subscriber.
//!
//! Without it, flat out, a publisher outruns the subscribers, most events are dropped, and the figure says
//! more about dropping than about delivering. With it the work is the same for every server: all events to
//! all subscribers.
//!
//! Events are grouped into steps. The publisher may begin a step when every subscriber has settled the one
//! [`STEPS_AHEAD`] before it. A subscriber says so once for each step, so nobody ever looks at all of them.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tokio::sync::Notify;

/// Steps that a publisher may have begun and not every subscriber settled.
pub(crate) const STEPS_AHEAD: u64 = 4;

/// A place for each step that can be in the works, and one for good measure.
const SLOTS: usize = STEPS_AHEAD as usize + 1;

/// The gate.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Events in a step.
    step: u64,
    /// How many subscribers there are.
    subscribers: u64,
    /// For each step in the works, how many have settled it.
    settled: [AtomicU64; SLOTS],
    /// How many steps everybody has settled.
    floor: AtomicU64,
    /// Notified when `floor` rises.
    risen: Notify,
}

impl Gate {
    /// For so many subscribers and at most about `ahead` events beyond the slowest. Steps are whole rounds
    /// over `topics` topics, so that everybody has some of each.
    #[must_use]
    pub(crate) fn new(ahead: u64, topics: usize, subscribers: usize) -> Self {
        let topics = topics as u64;
        let rounds = (ahead / STEPS_AHEAD / topics).max(1);
        Self {
            step: rounds * topics,
            subscribers: subscribers as u64,
            settled: Default::default(),
            floor: AtomicU64::new(0),
            risen: Notify::new(),
        }
    }

    /// Events in a step.
    #[must_use]
    pub(crate) const fn step(&self) -> u64 {
        self.step
    }

    /// One subscriber has settled the step with this number. Each says so for each step, in order.
    pub(crate) fn settled(&self, step: u64) {
        let slot = &self.settled[step as usize % SLOTS];
        if slot.fetch_add(1, SeqCst) + 1 == self.subscribers {
            // Nobody adds to this slot until the publisher has begun a step that needs the floor first.
            slot.store(0, SeqCst);
            self.floor.store(step + 1, SeqCst);
            self.risen.notify_one();
        }
    }

    /// How many events from the one with this number on may be published, once that is not none.
    pub(crate) async fn allowance_from(&self, number: u64) -> u64 {
        loop {
            let end = (self.floor.load(SeqCst) + STEPS_AHEAD) * self.step;
            if self.subscribers == 0 {
                return u64::MAX;
            }
            if number < end {
                return end - number;
            }
            self.risen.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_publisher_waits_for_the_slowest() {
        let gate = Gate::new(40, 1, 2);
        assert_eq!(gate.step(), 10);
        assert_eq!(gate.allowance_from(0).now_or_never(), Some(40));
        assert_eq!(gate.allowance_from(39).now_or_never(), Some(1));
        assert_eq!(gate.allowance_from(40).now_or_never(), None);
        for step in 0..4 {
            gate.settled(step);
        }
        assert_eq!(gate.allowance_from(40).now_or_never(), None);
        gate.settled(0);
        assert_eq!(gate.allowance_from(40).now_or_never(), Some(10));
        for step in 1..4 {
            gate.settled(step);
        }
        assert_eq!(gate.allowance_from(40).now_or_never(), Some(40));
    }

    #[test]
    fn steps_are_whole_rounds() {
        assert_eq!(Gate::new(512, 3, 1).step(), 126);
        assert_eq!(Gate::new(512, 1_000, 1).step(), 1_000);
    }

    #[test]
    fn without_subscribers_the_gate_is_open() {
        assert_eq!(
            Gate::new(8, 1, 0).allowance_from(1 << 40).now_or_never(),
            Some(u64::MAX)
        );
    }
}

//! Holds a publisher that runs flat out to the pace of the slowest subscriber.
//!
//! Without the gate, a publisher outruns the subscribers, most events are dropped, and the figures say more about
//! dropping than about delivering. With it the work is the same for every server: all events to all subscribers.
//!
//! Events are grouped into steps. The publisher may begin a step when every subscriber has settled the step
//! [`STEPS_AHEAD`] before it. Each subscriber reports each step once, so that no code has to scan all subscribers.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tokio::sync::Notify;

/// Steps that the publisher may have begun before every subscriber has settled them.
pub(crate) const STEPS_AHEAD: u64 = 4;

/// Slots for the counts of steps: one for each step in progress, and one to spare.
const SLOTS: usize = STEPS_AHEAD as usize + 1;

/// A gate between one publisher and its subscribers.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Events in a step.
    step: u64,
    /// Number of subscribers.
    subscribers: u64,
    /// For each step in progress, by its number modulo [`SLOTS`], how many subscribers have settled it.
    settled: [AtomicU64; SLOTS],
    /// Number of steps that every subscriber has settled.
    floor: AtomicU64,
    /// Notified when `floor` rises.
    risen: Notify,
}

impl Gate {
    /// Creates a gate that lets the publisher be about `ahead` events beyond the slowest of `subscribers`. A step is a
    /// whole number of rounds over `topics` topics, so that every subscriber has events in each step.
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

    /// Returns the number of events in a step.
    #[must_use]
    pub(crate) const fn step(&self) -> u64 {
        self.step
    }

    /// Records that one subscriber has settled a step. Each subscriber reports each step once, in order.
    pub(crate) fn settled(&self, step: u64) {
        let slot = &self.settled[step as usize % SLOTS];
        if slot.fetch_add(1, SeqCst) + 1 == self.subscribers {
            // The reset is before the floor: only after it has risen may the publisher begin a step that uses this slot
            // again, so no subscriber adds to the slot in between.
            slot.store(0, SeqCst);
            self.floor.store(step + 1, SeqCst);
            self.risen.notify_one();
        }
    }

    /// Waits until the event with this number may be published, and returns how many may be from there on.
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

//! The lags of subscriptions: the times that their backlogs take to be delivered, sampled about once a second.
//!
//! # Measurement
//! A subscription with a backlog gets a mark at its newest event. Once it has reached the mark, its lag is the time
//! that this took, and it gets another mark; until then its lag is at least the age of the mark. So no event is stamped
//! with a time, and the lag is as exact as the samples are frequent.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use prometheus_client::metrics::histogram::Histogram;
use tidegate::SubscriptionInfo;

/// The upper bounds of the backlog histogram, in events.
const BACKLOG_BOUNDS: [f64; 9] = [0.0, 1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 8_192.0, 65_536.0];

/// The upper bounds of the lag histogram, in seconds. Lags are sampled once a second, so nothing finer would be exact.
const LAG_BOUNDS: [f64; 8] = [0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// The lags of subscriptions with a backlog.
#[derive(Debug, Default)]
pub(crate) struct Lags {
    /// By the id of the subscription.
    marks: HashMap<u64, Mark>,
}

/// The newest event of a subscription at one moment.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// The time at which the mark was set.
    set: Instant,
    /// The index after the newest event at that time.
    index: u64,
    /// The time that the subscription took to reach its mark before this one. Zero for its first.
    took: Duration,
}

/// The distribution of backlogs and lags over all samples of all subscriptions.
#[derive(Debug)]
pub(crate) struct Histograms {
    pub(crate) backlog: Histogram,
    pub(crate) lag: Histogram,
}

// ===== impl Lags =====

impl Lags {
    /// Samples all subscriptions. Marks of subscriptions that have ended, or have no backlog, are forgotten.
    pub(crate) fn sample(&mut self, subscriptions: &[SubscriptionInfo], now: Instant) {
        let before = std::mem::take(&mut self.marks);
        let behind = subscriptions.iter().filter(|info| info.backlog > 0);
        self.marks = behind
            .map(|info| (info.id, Mark::next(before.get(&info.id), info, now)))
            .collect();
    }

    /// The lag of a subscription. Zero without a backlog.
    pub(crate) fn of(&self, id: u64, now: Instant) -> Duration {
        let mark = self.marks.get(&id);
        mark.map_or(Duration::ZERO, |mark| mark.age(now).max(mark.took))
    }
}

impl Mark {
    /// The mark of a subscription after a sample.
    fn next(before: Option<&Self>, info: &SubscriptionInfo, now: Instant) -> Self {
        let index = index(info);
        match before {
            // Still on its way to the mark. A new one here would hide how long it has been behind.
            Some(mark) if index < mark.index => *mark,
            mark => Self {
                set: now,
                index: index + info.backlog,
                took: mark.map_or(Duration::ZERO, |mark| mark.age(now)),
            },
        }
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.set)
    }
}

impl Default for Histograms {
    fn default() -> Self {
        Self {
            backlog: Histogram::new(BACKLOG_BOUNDS),
            lag: Histogram::new(LAG_BOUNDS),
        }
    }
}

impl Histograms {
    /// Adds a sample of one subscription.
    pub(crate) fn observe(&self, backlog: u64, lag: Duration) {
        self.backlog.observe(backlog as f64);
        self.lag.observe(lag.as_secs_f64());
    }
}

/// The index of the next event of a subscription.
pub(crate) const fn index(info: &SubscriptionInfo) -> u64 {
    info.handed_off + info.lost + info.conflated
}

#[cfg(test)]
mod tests {
    use tidegate::ClientId;

    use super::*;

    fn at(handed_off: u64, backlog: u64) -> [SubscriptionInfo; 1] {
        [SubscriptionInfo {
            id: 1,
            client_id: ClientId::new("c").unwrap(),
            principal: None,
            backlog,
            handed_off,
            lost: 0,
            conflated: 0,
            is_stalled: false,
            pending_loss: 0,
            pending_conflation: 0,
        }]
    }

    #[test]
    fn a_lag_is_the_time_that_a_backlog_takes_to_be_delivered() {
        let (mut lags, began) = (Lags::default(), Instant::now());
        let second = |n| began + Duration::from_secs(n);
        let seconds = Duration::from_secs;
        lags.sample(&at(0, 10), second(0));
        assert_eq!(lags.of(1, second(0)), seconds(0));
        // It goes on, and so do the events.
        lags.sample(&at(5, 20), second(1));
        lags.sample(&at(9, 30), second(2));
        assert_eq!(lags.of(1, second(2)), seconds(2));
        lags.sample(&at(10, 30), second(3));
        assert_eq!(lags.of(1, second(3)), seconds(3));
        lags.sample(&at(20, 20), second(4));
        assert_eq!(lags.of(1, second(4)), seconds(3), "what the last mark took");
        assert_eq!(lags.of(1, second(8)), seconds(5), "longer already");
        lags.sample(&at(40, 0), second(9));
        assert_eq!(lags.of(1, second(9)), seconds(0));
        assert!(lags.marks.is_empty());
    }
}

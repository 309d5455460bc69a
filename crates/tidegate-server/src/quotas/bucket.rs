//! The bucket of one rate, which may go into debt.

use std::time::{Duration, Instant};

/// The part of a rate that is left. It holds one second's allowance at most, and is full at first.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// The time of the last take, and the rest after it, which is negative for a debt. `None` for a full bucket.
    taken: Option<(Instant, f64)>,
}

impl Bucket {
    /// The rest of `rate` at `now`, which is negative for a debt.
    fn left(&self, rate: f64, now: Instant) -> f64 {
        self.taken.map_or(rate, |(at, left)| {
            let since = now.saturating_duration_since(at).as_secs_f64();
            (left + rate * since).min(rate)
        })
    }

    /// The wait until anything is left. `None` if something is, or there is no rate.
    pub(super) fn wait(&self, rate: Option<u64>, now: Instant) -> Option<Duration> {
        let rate = rate? as f64;
        let left = self.left(rate, now);
        (left <= 0.0).then(|| Duration::from_secs_f64(-left / rate))
    }

    /// Takes `amount`, which may be more than is left.
    pub(super) fn take(&mut self, amount: f64, rate: Option<u64>, now: Instant) {
        self.taken = rate.map(|rate| (now, self.left(rate as f64, now) - amount));
    }

    /// Whether the bucket holds all it can, so that it may be forgotten.
    pub(super) fn is_full(&self, rate: Option<u64>, now: Instant) -> bool {
        rate.is_none_or(|rate| self.left(rate as f64, now) >= rate as f64)
    }
}

//! The bucket of a rate.

use std::time::{Duration, Instant};

/// What is left of a rate.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// When something was taken last, and what was left then. Nothing was ever taken: full.
    taken: Option<(Instant, f64)>,
}

// ===== impl Bucket =====

impl Bucket {
    /// What is left of `rate` at `now`; below 0 is a debt.
    fn left(&self, rate: f64, now: Instant) -> f64 {
        self.taken.map_or(rate, |(at, left)| {
            let since = now.saturating_duration_since(at).as_secs_f64();
            (left + rate * since).min(rate)
        })
    }

    /// How long to wait until something is left; `None` if something is.
    pub(super) fn wait(&self, rate: Option<u64>, now: Instant) -> Option<Duration> {
        let rate = rate? as f64;
        let left = self.left(rate, now);
        (left <= 0.0).then(|| Duration::from_secs_f64(-left / rate))
    }

    pub(super) fn take(&mut self, amount: f64, rate: Option<u64>, now: Instant) {
        self.taken = rate.map(|rate| (now, self.left(rate as f64, now) - amount));
    }

    pub(super) fn is_full(&self, rate: Option<u64>, now: Instant) -> bool {
        rate.is_none_or(|rate| self.left(rate as f64, now) >= rate as f64)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_one_second_and_pays_its_debt_at_the_rate() {
        let (mut bucket, began) = (Bucket::default(), Instant::now());
        let rate = Some(10);
        assert!(bucket.is_full(rate, began));
        bucket.take(25.0, rate, began);
        assert_eq!(bucket.wait(rate, began), Some(Duration::from_millis(1_500)));
        let paid = began + Duration::from_millis(1_600);
        assert_eq!(bucket.wait(rate, paid), None);
        assert!(!bucket.is_full(rate, paid));
        // However long it rests, it holds no more than one second's allowance.
        let rested = began + Duration::from_secs(60);
        assert!(bucket.is_full(rate, rested));
        bucket.take(10.0, rate, rested);
        assert_eq!(bucket.wait(rate, rested), Some(Duration::ZERO));
    }

    #[test]
    fn a_bucket_without_a_rate_never_waits() {
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        bucket.take(1e9, None, now);
        assert_eq!(bucket.wait(None, now), None);
        assert!(bucket.is_full(None, now));
    }
}

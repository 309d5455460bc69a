//! The wait before the next attempt.

use std::time::Duration;

/// The longest delay that a server can ask for. A longer one counts as this, so that no server parks a client forever.
const MAX_HINT: Duration = Duration::from_secs(3600);

/// Exponential back-off with full jitter.
///
/// Before attempt *n* (from 0) the client waits for a random time between zero and `min(max, base * 2^n)`, so that
/// clients that lost their connections together do not come back together. A delay that the server asked for
/// (`RetryInfo`, or `GoingAway.reconnect_after`; at most an hour) comes first, and the random time on top of it.
///
/// *n* goes back to 0 once a stream has delivered an event, a gap or a heartbeat, not when it begins: against a server
/// that accepts subscriptions and then fails, the waits keep growing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first wait. Default: 100 ms.
    pub base: Duration,
    /// Upper bound of every wait. Default: 30 s.
    pub max: Duration,
}

/// The state of a [`Backoff`]: the failures so far.
#[derive(Debug)]
pub(crate) struct Attempts {
    /// The bounds of the waits.
    backoff: Backoff,
    /// Failures in a row, since a stream last delivered something.
    failures: u32,
    /// Source of the jitter. A field, so that tests can seed it.
    random: fastrand::Rng,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(100),
            max: Duration::from_secs(30),
        }
    }
}

impl Attempts {
    pub(crate) fn new(backoff: Backoff, random: fastrand::Rng) -> Self {
        Self {
            backoff,
            failures: 0,
            random,
        }
    }

    /// Returns the number of failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Starts again at no failure, when a stream has delivered something.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure and returns the wait that follows it. `hint` is the delay that the server asked for.
    pub(crate) fn record_failure(&mut self, hint: Option<Duration>) -> Duration {
        let Backoff { base, max } = self.backoff;
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let ceiling = base.saturating_mul(factor).min(max);
        self.failures = self.failures.saturating_add(1);
        hint.unwrap_or_default().min(MAX_HINT) + ceiling.mul_f64(self.random.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(base_ms: u64, max_ms: u64) -> Attempts {
        let backoff = Backoff {
            base: Duration::from_millis(base_ms),
            max: Duration::from_millis(max_ms),
        };
        Attempts::new(backoff, fastrand::Rng::with_seed(7))
    }

    #[test]
    fn waits_stay_below_a_ceiling_that_doubles() {
        let mut attempts = attempts(100, 1000);
        for ceiling in [100, 200, 400, 800, 1000, 1000] {
            assert!(attempts.record_failure(None) <= Duration::from_millis(ceiling));
        }
    }

    #[test]
    fn jitter_is_full() {
        let mut attempts = attempts(1000, 1000);
        let waits: Vec<_> = (0..1000)
            .map(|_| attempts.record_failure(None).as_millis())
            .collect();
        assert!(waits.iter().any(|wait| *wait < 100));
        assert!(waits.iter().any(|wait| *wait > 900));
    }

    #[test]
    fn success_starts_again() {
        let mut attempts = attempts(1, 100_000);
        for _ in 0..20 {
            attempts.record_failure(None);
        }
        attempts.reset();
        assert_eq!(attempts.failures(), 0);
        assert!(attempts.record_failure(None) <= Duration::from_millis(1));
    }

    #[test]
    fn the_servers_hint_is_a_floor_with_a_limit() {
        let mut attempts = attempts(10, 10);
        let hint = Duration::from_secs(2);
        let wait = attempts.record_failure(Some(hint));
        assert!(wait >= hint && wait <= hint + Duration::from_millis(10));
        assert!(
            attempts.record_failure(Some(Duration::MAX)) <= MAX_HINT + Duration::from_millis(10)
        );
    }

    #[test]
    fn many_failures_do_not_overflow() {
        let mut attempts = attempts(u64::MAX, u64::MAX);
        attempts.failures = u32::MAX;
        attempts.record_failure(None);
        assert_eq!(attempts.failures(), u32::MAX);
    }
}

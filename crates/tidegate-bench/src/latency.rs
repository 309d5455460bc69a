//! Latencies and their distribution.

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest latency that is recorded, in nanoseconds: a minute. A longer one counts as a minute.
const MAX_NANOS: u64 = 60_000_000_000;

/// Counts latencies, with three digits of precision.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

/// A distribution, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distribution {
    /// Number of latencies.
    pub samples: u64,
    /// The median.
    pub p50_us: f64,
    /// The 90th percentile.
    pub p90_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The 99.9th percentile.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

// ===== impl Latencies =====

impl Latencies {
    /// Returns an empty histogram, for 1 us to 1 minute.
    ///
    /// # Panics
    ///
    /// Never: the bounds are valid.
    #[must_use]
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1_000, MAX_NANOS, 3).expect("valid bounds"))
    }

    /// Records one latency, in nanoseconds.
    pub fn record(&mut self, nanos: u64) {
        self.0.saturating_record(nanos);
    }

    /// Adds the latencies of `other`.
    ///
    /// # Panics
    ///
    /// Never: all have the same bounds.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the same bounds");
    }

    /// Returns the distribution. `None` if no latency was recorded.
    #[must_use]
    pub fn distribution(&self) -> Option<Distribution> {
        let at = |quantile: f64| self.0.value_at_quantile(quantile).min(self.0.max()) as f64 / 1e3;
        (!self.0.is_empty()).then(|| Distribution {
            samples: self.0.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
        })
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_the_precision() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.distribution(), None);
        for micros in 1..=1_000 {
            latencies.record(micros * 1_000);
        }
        let mut twice = latencies.clone();
        twice.add(&latencies);
        let distribution = twice.distribution().unwrap();
        assert_eq!(distribution.samples, 2_000);
        for (got, want) in [
            (distribution.p50_us, 500.0),
            (distribution.p90_us, 900.0),
            (distribution.p99_us, 990.0),
            (distribution.p999_us, 999.0),
            (distribution.max_us, 1_000.0),
        ] {
            assert!((got - want).abs() / want < 0.002, "{got} {want}");
        }
    }

    #[test]
    fn absurd_latencies_count_as_the_longest() {
        let mut latencies = Latencies::new();
        latencies.record(u64::MAX);
        latencies.record(0);
        let distribution = latencies.distribution().unwrap();
        assert!(distribution.max_us >= 59e6, "{distribution:?}");
    }
}

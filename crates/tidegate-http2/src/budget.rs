//! Budgets in time.
//!
//! Work that costs the server more than its peer is counted, for [`PERIOD`], and a peer that goes beyond a budget ends its
//! connection. Nothing is counted for the life of a connection: one that a proxy shares among many users lives long, and now
//! and then each of them cancels a call.

use std::time::{Duration, Instant};

use crate::{config::Config, error::Error};

/// Time for which is counted before each budget is whole again.
const PERIOD: Duration = Duration::from_secs(10);

/// Counts since the period began.
#[derive(Debug)]
pub(crate) struct Budgets {
    began: Instant,
    /// Streams that we reset for faults of the peer (CVE-2025-8671).
    faults: u32,
    /// Calls without an answer that the peer reset, and those that were refused, malformed or too large (CVE-2023-44487).
    cancellations: u32,
    /// Frames that are about no call: SETTINGS, PING, PRIORITY and unknown ones (CVE-2019-9512, 9515), and HEADERS that nobody
    /// waits for.
    idle_frames: u32,
    /// DATA that neither brings nor ends anything (CVE-2019-9518).
    empty_frames: u32,
}

impl Budgets {
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            began: now,
            faults: 0,
            cancellations: 0,
            idle_frames: 0,
            empty_frames: 0,
        }
    }

    /// Begins a period if the last one is over.
    pub(crate) fn refill(&mut self, now: Instant) {
        if now.saturating_duration_since(self.began) >= PERIOD {
            *self = Self::new(now);
        }
    }

    pub(crate) const fn fault(&mut self, config: &Config) -> Result<(), Error> {
        self.faults += 1;
        check(
            self.faults,
            config.max_faults,
            "too many calls reset for faults of the peer",
        )
    }

    pub(crate) const fn cancellation(&mut self, config: &Config) -> Result<(), Error> {
        self.cancellations += 1;
        check(
            self.cancellations,
            config.max_cancellations,
            "too many calls cancelled before they were answered",
        )
    }

    pub(crate) const fn idle_frame(&mut self, config: &Config) -> Result<(), Error> {
        self.idle_frames(1, config)
    }

    /// Counts a frame that costs as much as `count` of them.
    pub(crate) const fn idle_frames(&mut self, count: u32, config: &Config) -> Result<(), Error> {
        self.idle_frames = self.idle_frames.saturating_add(count);
        check(
            self.idle_frames,
            config.max_idle_frames,
            "too many frames that are about no call",
        )
    }

    pub(crate) const fn empty_frame(&mut self, config: &Config) -> Result<(), Error> {
        self.empty_frames += 1;
        check(
            self.empty_frames,
            config.max_empty_frames,
            "too many DATA frames without content",
        )
    }
}

const fn check(count: u32, max: u32, flood: &'static str) -> Result<(), Error> {
    if count > max {
        return Err(Error::calm(flood));
    }
    Ok(())
}

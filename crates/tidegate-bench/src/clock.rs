//! One clock for publishers and subscribers, and a timer finer than a millisecond.
//!
//! Every latency is measured between two readings of one monotonic clock in one process, so there is
//! nothing to synchronize.

use std::{
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::Error;

/// A monotonic clock that counts nanoseconds from its creation.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

/// The measured span of time, on the [`Clock`] of the run. It contains no moment until it is opened.
#[derive(Debug)]
pub(crate) struct Window {
    /// The first nanosecond of the window.
    from: AtomicU64,
    /// The first nanosecond after the window.
    to: AtomicU64,
}

/// Waits for moments of a [`Clock`], with a timer of the kernel. Tokio's timers round up to a millisecond, which is
/// longer than the latencies to measure.
#[derive(Debug)]
pub(crate) struct Timer {
    clock: Clock,
    fd: AsyncFd<OwnedFd>,
}

// ===== impl Clock =====

impl Clock {
    /// Starts a clock at 0.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the nanoseconds since the start.
    #[must_use]
    pub fn now(self) -> u64 {
        nanos(self.0.elapsed())
    }
}

/// Converts a duration to nanoseconds. `u64` holds 584 years.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// ===== impl Window =====

impl Window {
    /// Returns a window that contains no moment.
    #[must_use]
    pub(crate) const fn closed() -> Self {
        Self {
            from: AtomicU64::new(u64::MAX),
            to: AtomicU64::new(u64::MAX),
        }
    }

    /// Opens the window from `from` until just before `to`.
    pub(crate) fn open(&self, from: u64, to: u64) {
        // The stores need no order. A thread that sees only one of them finds a window that contains no moment yet, or
        // one that has no end yet, and this far before the end both are right.
        self.to.store(to, Relaxed);
        self.from.store(from, Relaxed);
    }

    /// Whether the window contains `moment`.
    #[must_use]
    pub(crate) fn contains(&self, moment: u64) -> bool {
        moment >= self.from.load(Relaxed) && moment < self.to.load(Relaxed)
    }
}

// ===== impl Timer =====

impl Timer {
    /// Creates a timer. Call it within a Tokio runtime.
    pub(crate) fn new(clock: Clock) -> Result<Self, Error> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(io::Error::from);
        #[allow(
            deprecated,
            reason = "its replacement is unsafe, for types whose descriptor can change; this one's cannot"
        )]
        let fd = fd
            .and_then(AsyncFd::new)
            .map_err(Error::system("cannot create a timer"))?;
        Ok(Self { clock, fd })
    }

    /// Returns at `moment`, never before; at once if it has passed.
    pub(crate) async fn until(&mut self, moment: u64) -> Result<(), Error> {
        let left = moment.saturating_sub(self.clock.now());
        if left == 0 {
            return Ok(());
        }
        self.expire_in(left)
            .await
            .map_err(Error::system("cannot use a timer"))
    }

    async fn expire_in(&mut self, left: u64) -> io::Result<()> {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Timespec {
            tv_sec: (left / 1_000_000_000) as i64,
            tv_nsec: (left % 1_000_000_000) as i64,
        };
        let once = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            // Tokio may still take the descriptor for readable, after a wait that was dropped. Setting the timer has
            // reset its count, so the read would block; that clears the readiness, and the loop waits again.
            let mut ready = self.fd.readable().await?;
            let mut expirations = [0; 8];
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut expirations)?)) {
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_counts_its_begin_and_not_its_end() {
        let window = Window::closed();
        assert!(!window.contains(0));
        window.open(10, 20);
        assert_eq!(
            [9, 10, 19, 20].map(|at| window.contains(at)),
            [false, true, true, false]
        );
    }

    #[tokio::test]
    async fn a_timer_is_never_early() {
        let clock = Clock::start();
        let mut timer = Timer::new(clock).unwrap();
        for wait in [1, 50_000, 300_000] {
            let moment = clock.now() + wait;
            timer.until(moment).await.unwrap();
            assert!(clock.now() >= moment);
        }
        timer.until(0).await.unwrap();
    }
}

//! The threads that publish.
//!
//! # Pace
//!
//! At a rate, the due time of each event is fixed before the first is sent. A late publisher sends every due event at
//! once, and the events keep their due times: latency is measured from the moment an event should have been sent (no
//! coordinated omission). Flat out, an event is due when it is sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{mpsc, watch};

use crate::{
    Error,
    clock::{Timer, nanos},
    payload::Head,
    stream::RunShared,
    target::{Accepted, Outgoing, Publisher as _, Target},
    thread::{run_local, spawn},
};

/// How fast events are published.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Events per second, over all publishers.
    Rate(f64),
    /// As fast as the server and the gate allow.
    FlatOut,
}

/// The events to publish, and their pace.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) topics: Arc<[String]>,
    pub(crate) payload_bytes: usize,
    pub(crate) batch: usize,
    pub(crate) pace: Pace,
    /// Number of publishers that share the rate.
    pub(crate) publishers: usize,
}

/// The times at which publishing begins and ends, on the clock of the run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

/// A message from a publisher thread.
#[derive(Debug)]
pub(crate) enum Message {
    Connected,
    Ended(Result<Accepted, Error>),
}

/// The assignment of a thread with one publisher.
#[derive(Debug)]
pub(crate) struct Assignment<T> {
    pub(crate) target: T,
    pub(crate) work: Work,
    pub(crate) shared: Arc<RunShared>,
    /// Number of events that it has sent.
    pub(crate) published: Arc<AtomicU64>,
    /// Closed when the run has failed.
    pub(crate) schedule: watch::Receiver<Option<Schedule>>,
    pub(crate) messages: mpsc::Sender<Message>,
}

/// The due times of events.
#[derive(Debug)]
struct DueTimes {
    schedule: Schedule,
    /// Nanoseconds between two events. `None` flat out.
    interval: Option<f64>,
    /// Number of events in all. `None` flat out.
    total: Option<u64>,
    /// The time of the last call of [`ready`](Self::ready), which is the due time flat out.
    now: u64,
}

impl<T: Target> Assignment<T> {
    /// Starts the thread.
    pub(crate) fn start(self) -> Result<(), Error> {
        spawn("publisher", move || {
            let messages = self.messages.clone();
            let outcome = run_local(self.run());
            // When the run has failed already, nobody receives this.
            let _ = messages.blocking_send(Message::Ended(outcome));
        })
    }

    async fn run(mut self) -> Result<Accepted, Error> {
        let mut publisher = self.target.publisher().await?;
        let _ = self.messages.send(Message::Connected).await;
        let scheduled = self
            .schedule
            .wait_for(Option::is_some)
            .await
            .map(|schedule| *schedule);
        let Ok(Some(schedule)) = scheduled else {
            return Ok(Accepted::default());
        };
        let mut given_up = self.schedule.clone();
        tokio::select! {
            published = self.publish(&mut publisher, schedule) => published?,
            _ = given_up.wait_for(Option::is_none) => return Ok(Accepted::default()),
        }
        publisher.finish().await
    }

    async fn publish(&self, publisher: &mut T::Publisher, schedule: Schedule) -> Result<(), Error> {
        let mut timer = Timer::new(self.shared.clock)?;
        let mut batch = Vec::with_capacity(self.work.batch);
        let mut due = DueTimes::new(&self.work, schedule);
        let mut number = 0;
        loop {
            timer.until(due.of(number)).await?;
            let allowed = match &self.shared.gate {
                Some(gate) => tokio::select! {
                    allowed = gate.allowance_from(number) => allowed,
                    ended = timer.until(schedule.end) => return ended,
                },
                None => u64::MAX,
            };
            let now = self.shared.clock.now();
            let ready = due.ready(number, now).min(allowed);
            if ready == 0 {
                return Ok(());
            }
            batch.clear();
            for number in number..number + ready.min(self.work.batch as u64) {
                batch.push(self.event(number, due.of(number).min(now)));
            }
            publisher
                .publish(&batch, self.shared.window.contains(now))
                .await?;
            number += batch.len() as u64;
            self.published.store(number, Relaxed);
        }
    }

    fn event(&self, number: u64, due: u64) -> Outgoing<'_> {
        let topic = &self.work.topics[number as usize % self.work.topics.len()];
        Outgoing {
            topic,
            head: Head { due, number }.to_bytes(),
            size: self.work.payload_bytes,
        }
    }
}

impl DueTimes {
    fn new(work: &Work, schedule: Schedule) -> Self {
        let interval = match work.pace {
            Pace::Rate(rate) => Some(1e9 * work.publishers as f64 / rate),
            Pace::FlatOut => None,
        };
        let span = (schedule.end - schedule.begin) as f64;
        Self {
            schedule,
            interval,
            total: interval.map(|interval| (span / interval).round() as u64),
            now: schedule.begin,
        }
    }

    /// Returns the time at which the event with this number is due.
    fn of(&self, number: u64) -> u64 {
        match self.interval {
            Some(interval) => self.schedule.begin + (number as f64 * interval) as u64,
            None => self.now,
        }
    }

    /// Returns how many events, from number `next` on, are due at `now`: at least one, unless all have been sent. Call
    /// it once the event with number `next` is due.
    fn ready(&mut self, next: u64, now: u64) -> u64 {
        self.now = now;
        match (self.interval, self.total) {
            (Some(interval), Some(total)) => {
                let passed = now.saturating_sub(self.schedule.begin) as f64;
                let due = (passed / interval) as u64 + 1;
                due.max(next + 1).min(total).saturating_sub(next)
            }
            _ if now < self.schedule.end => u64::MAX,
            _ => 0,
        }
    }
}

/// Returns a schedule that begins at `now`.
pub(crate) fn schedule(now: u64, warm_up: Duration, duration: Duration) -> Schedule {
    Schedule {
        begin: now,
        end: now + nanos(warm_up) + nanos(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(pace: Pace) -> DueTimes {
        let work = Work {
            topics: Arc::new(["t".into()]),
            payload_bytes: 16,
            batch: 8,
            pace,
            publishers: 1,
        };
        DueTimes::new(
            &work,
            schedule(1_000, Duration::ZERO, Duration::from_secs(1)),
        )
    }

    #[test]
    fn paced_events_are_due_at_fixed_intervals() {
        let mut due = due(Pace::Rate(100.0));
        assert_eq!(
            [0, 1, 99].map(|n| due.of(n)),
            [1_000, 10_001_000, 990_001_000]
        );
        assert_eq!(due.ready(0, 1_000), 1);
        assert_eq!(due.ready(1, 10_001_000), 1);
        assert_eq!(due.ready(1, 55_000_000), 5);
        assert_eq!(due.ready(99, 5_000_000_000), 1);
        assert_eq!(due.ready(100, 5_000_000_000), 0);
    }

    #[test]
    fn unpaced_events_are_due_until_the_end() {
        let mut due = due(Pace::FlatOut);
        assert_eq!(due.ready(0, 5_000), u64::MAX);
        assert_eq!(due.of(7), 5_000);
        assert_eq!(due.ready(9, 1_000_001_000), 0);
    }
}

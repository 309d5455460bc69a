//! The threads of a run, and the counts that are read from them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::{
    Error, Server,
    clock::nanos,
    progress::Progress,
    publishing::{self, Schedule},
    stream::{Meter, RunShared},
    subscribing::{self, Outcome},
    target::Accepted,
    usage::CpuTime,
};

/// How long the server may take to answer the last requests, after the publishers' time is over.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The threads of a run.
pub(crate) struct Workers {
    pub(crate) shared: Arc<RunShared>,
    pub(crate) meters: Vec<Arc<Meter>>,
    pub(crate) goal: watch::Sender<subscribing::Goal>,
    pub(crate) subscribers: mpsc::Receiver<subscribing::Message>,
    pub(crate) published: Vec<Arc<AtomicU64>>,
    pub(crate) schedule: watch::Sender<Option<Schedule>>,
    pub(crate) publishers: mpsc::Receiver<publishing::Message>,
}

/// A reading of all counters, at the beginning or at the end of the window.
pub(crate) struct Snapshot {
    pub(crate) at: Instant,
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) missed: u64,
    pub(crate) server: Option<CpuTime>,
    pub(crate) client: CpuTime,
}

/// Counts of the whole run. Every stream that was not stalled has settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Events published.
    pub published: u64,
    /// Events that the server acknowledged, if its protocol has acknowledgments.
    pub accepted: Option<u64>,
    /// Events delivered.
    pub delivered: u64,
    /// Events that were counted as missing.
    pub missed: u64,
    /// Streams with at least one event missing.
    pub streams_with_gaps: usize,
    /// Events missing on the stream with the most.
    pub most_missed: u64,
}

// ===== impl Workers =====

impl Workers {
    /// Waits until every thread has opened its connections.
    pub(crate) async fn wait_until_connected(&mut self) -> Result<(), Error> {
        for _ in 0..self.meters.len() {
            match self.subscribers.recv().await {
                Some(subscribing::Message::Ready) => {}
                Some(subscribing::Message::Ended(Err(error))) => return Err(error),
                _ => return Err(thread_gone()),
            }
        }
        for _ in 0..self.published.len() {
            match self.publishers.recv().await {
                Some(publishing::Message::Connected) => {}
                Some(publishing::Message::Ended(Err(error))) => return Err(error),
                _ => return Err(thread_gone()),
            }
        }
        Ok(())
    }

    /// Starts the publishers, and opens the window after `warm_up`.
    pub(crate) fn start_publishing(&self, warm_up: Duration, duration: Duration) -> Schedule {
        let schedule = publishing::schedule(self.shared.clock.now(), warm_up, duration);
        self.shared
            .window
            .open(schedule.begin + nanos(warm_up), schedule.end);
        self.schedule.send_replace(Some(schedule));
        schedule
    }

    /// Waits until a moment, showing progress, but fails as soon as a thread fails.
    pub(crate) async fn watch_until(
        &mut self,
        until: Instant,
        progress: &Progress,
        since: Option<&Snapshot>,
    ) -> Result<(), Error> {
        let mut ticks = tokio::time::interval(Progress::INTERVAL);
        let end = sleep_until(until);
        tokio::pin!(end);
        loop {
            tokio::select! {
                biased;
                () = &mut end => return Ok(()),
                message = self.subscribers.recv() => match message {
                    Some(subscribing::Message::Ended(Err(error))) => return Err(error),
                    _ => return Err(thread_gone()),
                },
                _ = ticks.tick(), if progress.is_visible() => {
                    let delivered = self.delivered();
                    if let Some(since) = since {
                        progress.rate(delivered - since.delivered, since.at.elapsed(), self.missed());
                    }
                }
            }
        }
    }

    /// Waits until every publisher has ended.
    pub(crate) async fn wait_for_publishers(&mut self) -> Result<Vec<Accepted>, Error> {
        let mut all = Vec::new();
        while all.len() < self.published.len() {
            let message = tokio::select! {
                message = self.publishers.recv() => message,
                message = self.subscribers.recv() => match message {
                    Some(subscribing::Message::Ended(Err(error))) => return Err(error),
                    _ => return Err(thread_gone()),
                },
                () = tokio::time::sleep(ANSWER_TIMEOUT) => return Err(Error::Lost(format!(
                    "the server has not acknowledged events that were published {} s ago", ANSWER_TIMEOUT.as_secs()
                ))),
            };
            match message {
                Some(publishing::Message::Ended(ended)) => all.push(ended?),
                _ => return Err(thread_gone()),
            }
        }
        Ok(all)
    }

    /// Waits until every stream has settled. The threads decide when to give up.
    pub(crate) async fn wait_until_settled(&mut self) -> Result<Vec<Outcome>, Error> {
        let published = self
            .published
            .iter()
            .map(|published| published.load(Relaxed));
        self.goal.send_replace(Some(published.collect()));
        let mut all = Vec::new();
        while all.len() < self.meters.len() {
            match self.subscribers.recv().await {
                Some(subscribing::Message::Ended(outcome)) => all.push(outcome?),
                _ => return Err(thread_gone()),
            }
        }
        Ok(all)
    }

    pub(crate) fn totals(
        &self,
        accepted: &[Accepted],
        outcomes: &[Outcome],
    ) -> Result<Totals, Error> {
        let published = self.published();
        let accepted = accepted
            .iter()
            .map(|accepted| accepted.events)
            .sum::<Option<u64>>();
        if let Some(accepted) = accepted
            && accepted != published
        {
            return Err(Error::Lost(format!(
                "{published} events were published, and the server accepted {accepted}"
            )));
        }
        Ok(Totals {
            published,
            accepted,
            delivered: self.delivered(),
            missed: self.missed(),
            streams_with_gaps: outcomes
                .iter()
                .map(|outcome| outcome.streams_with_gaps)
                .sum(),
            most_missed: outcomes
                .iter()
                .map(|outcome| outcome.most_missed)
                .max()
                .unwrap_or(0),
        })
    }

    pub(crate) fn published(&self) -> u64 {
        self.published
            .iter()
            .map(|published| published.load(Relaxed))
            .sum()
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.meters
            .iter()
            .map(|meter| meter.delivered.load(Relaxed))
            .sum()
    }

    pub(crate) fn missed(&self) -> u64 {
        self.meters
            .iter()
            .map(|meter| meter.missed.load(Relaxed))
            .sum()
    }
}

// ===== impl Snapshot =====

impl Snapshot {
    pub(crate) fn take(server: &Server, workers: &Workers) -> Result<Self, Error> {
        Ok(Self {
            at: Instant::now(),
            published: workers.published(),
            delivered: workers.delivered(),
            missed: workers.missed(),
            server: server.cpu_time()?,
            client: CpuTime::of(std::process::id())?,
        })
    }
}

fn thread_gone() -> Error {
    Error::Invalid("a thread of the benchmark ended too early; its panic is above".into())
}

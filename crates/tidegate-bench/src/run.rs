//! One run: subscribe, publish, measure a window, settle every stream.
//!
//! # Phases
//!
//! 1. *Opening*: the subscriber threads open all connections and subscriptions.
//! 2. *Warm-up*: the publishers publish, and nothing is counted.
//! 3. *Window*: begins and ends with a reading of the counters, and of the processor time of both processes.
//! 4. *Settling*: the publishers have ended, and every stream must get every event that matches it, or a gap that
//!    counts it. If one does not, the run fails: its figures would be those of a server that loses events.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    Error, Latencies, Server,
    clock::{Clock, Window},
    gate::Gate,
    plan::Plan,
    progress::Progress,
    publishing::{self, Pace, Schedule, Work},
    stream::{Meter, RunShared, Sampling},
    subscribing::{self, ConnectionPlan},
    target::Target,
    usage::CpuSpent,
    workers::{Snapshot, Totals, Workers},
};

/// A load: subscribers and publishers for a server.
#[derive(Debug)]
pub struct Load {
    /// The topics, and the subscription of each stream.
    pub plan: Plan,
    /// Streams per connection; the last connection may have fewer.
    pub streams_per_connection: usize,
    /// Connections that subscribe and read nothing. They are the first ones.
    pub stalled_connections: usize,
    /// Connections that publish.
    pub publishers: usize,
    /// How fast events are published.
    pub pace: Pace,
    /// Flat out, how many events the publisher may be ahead of the slowest subscriber that is not stalled. `None`: no
    /// limit, and subscribers lose events that exceed their backlog.
    pub ahead: Option<u64>,
    /// The most events in one request.
    pub batch: usize,
    /// Size of each payload in bytes.
    pub payload_bytes: usize,
    /// How long to publish before the window.
    pub warm_up: Duration,
    /// Length of the window.
    pub duration: Duration,
    /// Threads that hold subscribers.
    pub threads: usize,
    /// Whether these threads never sleep. A server that sends to a thread that sleeps pays for waking it, which on a virtual
    /// machine costs more than the sending; and how often one sleeps depends on which of the two is a little faster.
    pub awake: bool,
}

/// The measurements of a run.
#[derive(Debug)]
pub struct Measured {
    /// Length of the window, in seconds.
    pub seconds: f64,
    /// Events published within the window.
    pub published: u64,
    /// Events delivered within the window.
    pub delivered: u64,
    /// Events counted as missing within the window.
    pub missed: u64,
    /// Processor time of the server in the window, if its process is known.
    pub server_cpu: Option<CpuSpent>,
    /// Processor time of the benchmark in the window.
    pub client_cpu: CpuSpent,
    /// Whether the threads that hold subscribers never slept, so that their processor time says nothing.
    pub awake: bool,
    /// Latencies of the events that were due within the window.
    pub latencies: Latencies,
    /// Resident memory of the server in bytes, if its process is known: before the first connection, with all
    /// subscribed, and at the end of the window.
    pub resident: Option<[u64; 3]>,
    /// Times from sending a request to its answer, of the requests sent within the window.
    pub answers: Latencies,
    /// Counts of the whole run, warm-up and settling included.
    pub totals: Totals,
}

// ===== impl Load =====

impl Load {
    /// Puts the load on `server`, and measures.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if events are lost, [`Error::Violation`] if the server breaks the protocol, and any other if a
    /// connection fails or a stream ends.
    pub async fn run<T: Target>(
        self,
        target: &T,
        server: &Server,
        progress: &Progress,
    ) -> Result<Measured, Error> {
        let before = server.resident_bytes()?;
        progress.phase("connecting");
        let streams = self.plan.streams().len();
        let mut workers = self.start_workers(target)?;
        workers.wait_until_connected().await?;
        let subscribed = server.resident_bytes()?;

        let schedule = workers.start_publishing(self.warm_up, self.duration);
        let began = Instant::now();
        progress.phase("warming up");
        workers
            .watch_until(began + self.warm_up, progress, None)
            .await?;
        let first = Snapshot::take(server, &workers)?;
        progress.phase("measuring");
        let end = began + Duration::from_nanos(schedule.end - schedule.begin);
        workers.watch_until(end, progress, Some(&first)).await?;
        let last = Snapshot::take(server, &workers)?;
        let resident = server.resident_bytes()?;

        progress.phase("settling");
        let accepted = workers.wait_for_publishers().await?;
        let outcomes = workers.wait_until_settled().await?;
        let totals = workers.totals(&accepted, &outcomes)?;
        progress.phase(&format!("{streams} streams settled"));
        let mut latencies = Latencies::new();
        outcomes
            .iter()
            .for_each(|outcome| latencies.add(&outcome.latencies));
        let mut answers = Latencies::new();
        accepted
            .iter()
            .for_each(|accepted| answers.add(&accepted.answers));
        Ok(Measured {
            seconds: (last.at - first.at).as_secs_f64(),
            published: last.published - first.published,
            delivered: last.delivered - first.delivered,
            missed: last.missed - first.missed,
            server_cpu: last
                .server
                .zip(first.server)
                .map(|(last, first)| last.since(&first)),
            client_cpu: last.client.since(&first.client),
            awake: self.awake,
            latencies,
            resident: before
                .zip(subscribed)
                .zip(resident)
                .map(|((a, b), c)| [a, b, c]),
            answers,
            totals,
        })
    }

    fn start_workers<T: Target>(&self, target: &T) -> Result<Workers, Error> {
        let connections = self.connections();
        let healthy = connections.iter().filter(|connection| !connection.stalled);
        let healthy = healthy.map(|connection| connection.streams.len()).sum();
        let topics = self.plan.topics().len();
        let gate = self.ahead.filter(|_| self.pace == Pace::FlatOut);
        let shared = Arc::new(RunShared {
            clock: Clock::start(),
            window: Window::closed(),
            gate: gate.map(|ahead| Gate::new(ahead, topics, healthy)),
            sampling: match self.pace {
                Pace::Rate(_) => Sampling::Each,
                Pace::FlatOut => Sampling::FirstOfBatch,
            },
            topics,
        });
        let goal = watch::Sender::new(None);
        let (subscriber_messages, subscribers) = mpsc::channel(2 * self.threads);
        let meters =
            self.start_subscribers(target, connections, &shared, &goal, &subscriber_messages)?;
        let schedule = watch::Sender::new(None);
        let (publisher_messages, publishers) = mpsc::channel(2 * self.publishers);
        let published = self.start_publishers(target, &shared, &schedule, &publisher_messages)?;
        Ok(Workers {
            shared,
            meters,
            goal,
            subscribers,
            published,
            schedule,
            publishers,
        })
    }

    fn connections(&self) -> Vec<ConnectionPlan> {
        let groups = self.plan.streams().chunks(self.streams_per_connection);
        let plan = |(number, streams): (usize, &[_])| ConnectionPlan {
            streams: streams.to_vec(),
            stalled: number < self.stalled_connections,
        };
        groups.enumerate().map(plan).collect()
    }

    /// Starts the subscriber threads. Connections go to the threads in turn, so that each thread has its share of the
    /// stalled ones.
    fn start_subscribers<T: Target>(
        &self,
        target: &T,
        connections: Vec<ConnectionPlan>,
        shared: &Arc<RunShared>,
        goal: &watch::Sender<subscribing::Goal>,
        messages: &mpsc::Sender<subscribing::Message>,
    ) -> Result<Vec<Arc<Meter>>, Error> {
        let mut shares = vec![Vec::new(); self.threads];
        for (number, connection) in connections.into_iter().enumerate() {
            shares[number % self.threads].push(connection);
        }
        let start = |connections| {
            let meter = Arc::new(Meter::default());
            let assignment = subscribing::Assignment {
                target: target.clone(),
                connections,
                shared: shared.clone(),
                meter: meter.clone(),
                goal: goal.subscribe(),
                messages: messages.clone(),
                awake: self.awake,
            };
            assignment.start().map(|()| meter)
        };
        shares.into_iter().map(start).collect()
    }

    fn start_publishers<T: Target>(
        &self,
        target: &T,
        shared: &Arc<RunShared>,
        schedule: &watch::Sender<Option<Schedule>>,
        messages: &mpsc::Sender<publishing::Message>,
    ) -> Result<Vec<Arc<AtomicU64>>, Error> {
        let work = Work {
            topics: self.plan.topics().into(),
            payload_bytes: self.payload_bytes,
            batch: self.batch,
            pace: self.pace,
            publishers: self.publishers,
        };
        let start = |_| {
            let published = Arc::new(AtomicU64::new(0));
            let assignment = publishing::Assignment {
                target: target.clone(),
                work: work.clone(),
                shared: shared.clone(),
                published: published.clone(),
                schedule: schedule.subscribe(),
                messages: messages.clone(),
            };
            assignment.start().map(|()| published)
        };
        (0..self.publishers).map(start).collect()
    }
}

//! `bench idle`: the memory and processor time of subscribers that have nothing to receive.

use std::{rc::Rc, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use crate::{
    Error, Server,
    clock::{Clock, Window},
    fanout::topic_prefix,
    figures::Cost,
    plan::{Plan, Shape},
    progress::Progress,
    session::{Environment, Session},
    stream::{RunShared, Sampling, Stream, ThreadShared},
    subscribing::OPENING,
    table::{Table, bytes},
    target::Target,
    thread::with_timeout,
    usage::CpuTime,
};

/// The benchmark `idle`.
#[derive(Debug, Clone)]
pub struct Idle {
    /// Number of connections; at least 1.
    pub connections: usize,
    /// Subscriptions per connection; at least 1.
    pub streams_per_connection: usize,
    /// The filters of the subscribers.
    pub shape: Shape,
    /// How long to measure the server's processor time while nothing happens.
    pub duration: Duration,
}

/// The result of an [`Idle`].
#[derive(Debug, Clone, Serialize)]
pub struct IdleReport {
    /// `idle`.
    pub benchmark: &'static str,
    /// The server, the machine and the cores.
    pub environment: Environment,
    /// Number of connections.
    pub connections: usize,
    /// Subscriptions per connection.
    pub streams_per_connection: usize,
    /// The filters of the subscribers.
    pub filter: Shape,
    /// The measurements.
    pub memory: IdleMemory,
}

/// Resident memory of the server, and its processor time.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct IdleMemory {
    /// Bytes before the first connection.
    pub before: u64,
    /// Bytes with all subscribed, read at the end of the idle time.
    pub subscribed: u64,
    /// Bytes per connection, its subscriptions included.
    pub per_connection: f64,
    /// Bytes per subscription, its share of the connection included.
    pub per_subscriber: f64,
    /// Seconds of idle time with all subscribed.
    pub seconds: f64,
    /// Processor time per subscription and second of idle time.
    pub cpu_per_subscriber_second: Option<Cost>,
}

// ===== impl Idle =====

impl Idle {
    /// Runs the benchmark against the server of `session`.
    ///
    /// # Errors
    ///
    /// As for [`measure`](Self::measure).
    pub async fn run(&self, session: &Session, progress: &Progress) -> Result<IdleReport, Error> {
        let target = crate::Grpc::new(&session.server);
        let memory = self.measure(target, &session.server, progress).await;
        progress.clear();
        Ok(IdleReport {
            benchmark: "idle",
            environment: session.environment.clone(),
            connections: self.connections,
            streams_per_connection: self.streams_per_connection,
            filter: self.shape,
            memory: memory?,
        })
    }

    /// Opens all connections on the calling thread, and measures the process of `server` before and after.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if a field is out of range or the process of the server is not known, and any other if a
    /// connection fails.
    pub async fn measure<T: Target>(
        &self,
        target: T,
        server: &Server,
        progress: &Progress,
    ) -> Result<IdleMemory, Error> {
        if self.connections == 0 || self.streams_per_connection == 0 {
            let reason = "--connections and --streams-per-connection must be at least 1";
            return Err(Error::Invalid(reason.into()));
        }
        let Some(before) = server.resident_bytes()? else {
            return Err(Error::Invalid(
                "the memory of a server is read from its process; give its id with --server-pid"
                    .into(),
            ));
        };
        let subscribers = self.connections * self.streams_per_connection;
        let plan = Plan::new(self.shape, subscribers, 1, &topic_prefix())?;
        progress.phase("connecting");
        let watched = tokio::task::LocalSet::new();
        let (connections, thread) = watched
            .run_until(self.open(&target, &plan, progress))
            .await?;
        progress.phase("idle");
        let cpu = server.cpu_time()?;
        let began = tokio::time::Instant::now();
        watched.run_until(tokio::time::sleep(self.duration)).await;
        let seconds = began.elapsed().as_secs_f64();
        let spent = cpu
            .zip(server.cpu_time()?)
            .map(|(before, after): (CpuTime, CpuTime)| after.since(&before));
        // Read after the idle time: by then the server has returned the memory that opening took.
        let subscribed = server.resident_bytes()?.unwrap_or(before);
        if let Some(error) = thread.take_failure() {
            return Err(error);
        }
        drop(connections);
        let grown = subscribed as f64 - before as f64;
        let subscriber_seconds = (subscribers as f64 * seconds) as u64;
        Ok(IdleMemory {
            before,
            subscribed,
            per_connection: grown / self.connections as f64,
            per_subscriber: grown / subscribers as f64,
            seconds,
            cpu_per_subscriber_second: spent
                .and_then(|spent| Cost::each(spent, subscriber_seconds)),
        })
    }

    async fn open<T: Target>(
        &self,
        target: &T,
        plan: &Plan,
        progress: &Progress,
    ) -> Result<(Vec<T::Connection>, Rc<ThreadShared>), Error> {
        let thread = Rc::new(ThreadShared::new(
            std::sync::Arc::new(RunShared {
                clock: Clock::start(),
                window: Window::closed(),
                gate: None,
                sampling: Sampling::Each,
                topics: plan.topics().len(),
            }),
            std::sync::Arc::default(),
        ));
        let groups = plan.streams().chunks(self.streams_per_connection);
        let opening = groups.map(|streams| {
            let new = |plan: &_| Rc::new(Stream::new(thread.clone(), Clone::clone(plan), false));
            let streams: Vec<_> = streams.iter().map(new).collect();
            with_timeout("subscribing", target.subscribe(streams, false))
        });
        let mut opened = 0;
        let connections = stream::iter(opening)
            .buffer_unordered(OPENING)
            .inspect_ok(|_| {
                opened += 1;
                progress.count(opened, "connections");
            })
            .try_collect()
            .await?;
        Ok((connections, thread))
    }
}

// ===== impl IdleReport =====

impl IdleReport {
    /// Returns the report as a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::default();
        let memory = &self.memory;
        table.section("idle subscribers");
        table.line("memory per subscriber", bytes(memory.per_subscriber));
        table.line("memory per connection", bytes(memory.per_connection));
        table.line(
            "memory",
            format_args!(
                "{} before, {} subscribed",
                bytes(memory.before as f64),
                bytes(memory.subscribed as f64)
            ),
        );
        if let Some(cost) = memory.cpu_per_subscriber_second {
            table.line(
                "processor per second",
                format_args!("{cost} per subscriber"),
            );
        }
        table.environment(&self.environment);
        table.line(
            "subscribers",
            format_args!(
                "{} connections with {} streams each",
                self.connections, self.streams_per_connection
            ),
        );
        table.line("filters", format!("{:?}", self.filter).to_lowercase());
        table.line("idle time", format_args!("{:.2} s", memory.seconds));
        table.finish()
    }
}

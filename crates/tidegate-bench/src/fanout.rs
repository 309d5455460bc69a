//! `bench fanout`: publishes to many subscribers.

use std::time::Duration;

use serde::Serialize;

use crate::{
    Error, Grpc,
    figures::Figures,
    payload::HEAD,
    plan::{Plan, Shape},
    progress::Progress,
    publishing::Pace,
    run::Load,
    session::{Environment, Session},
    table::{Table, bytes},
};

/// The benchmark `fanout`.
#[derive(Debug, Clone)]
pub struct Fanout {
    /// Number of subscriptions; at least 1.
    pub subscribers: usize,
    /// Subscriptions per connection; at least 1.
    pub streams_per_connection: usize,
    /// Number of topics, for [`Shape::Literal`] and [`Shape::Wildcard`].
    pub topics: usize,
    /// The filters of the subscribers.
    pub shape: Shape,
    /// Size of each payload in bytes; at least [`HEAD`].
    pub payload_bytes: usize,
    /// Events per second; `None`: flat out.
    pub rate: Option<f64>,
    /// Flat out, how many events the publisher may be ahead of the slowest subscriber; 0: no limit.
    pub ahead: u64,
    /// The most events in one publish request; at least 1.
    pub batch: usize,
    /// How long to publish before the window.
    pub warm_up: Duration,
    /// Length of the window, more than 0.
    pub duration: Duration,
    /// Connections that subscribe and read nothing; fewer than all.
    pub stalled: usize,
    /// HTTP/2 window of each stream in bytes: how much the server may send before the subscriber reads.
    pub window_bytes: u32,
    /// Whether the threads that hold subscribers never sleep, see [`Load::awake`].
    pub awake: bool,
}

/// The result of a [`Fanout`].
#[derive(Debug, Clone, Serialize)]
pub struct FanoutReport {
    /// `fanout`.
    pub benchmark: &'static str,
    /// The server, the machine and the cores.
    pub environment: Environment,
    /// The load.
    pub conditions: Conditions,
    /// The measurements.
    pub figures: Figures,
}

/// The load of a benchmark that publishes.
#[derive(Debug, Clone, Serialize)]
pub struct Conditions {
    /// Number of subscriptions.
    pub subscribers: usize,
    /// Connections of the subscribers.
    pub connections: usize,
    /// Subscriptions per connection.
    pub streams_per_connection: usize,
    /// Connections among them that read nothing.
    pub stalled_connections: usize,
    /// Number of topics.
    pub topics: usize,
    /// The filters of the subscribers.
    pub filter: Shape,
    /// Size of each payload in bytes.
    pub payload_bytes: usize,
    /// Events per second; `None`: flat out.
    pub rate: Option<f64>,
    /// Events that the publisher may be ahead of the slowest subscriber; `None`: no limit.
    pub ahead: Option<u64>,
    /// The most events in one publish request.
    pub batch: usize,
    /// Connections that publish.
    pub publishers: usize,
    /// Seconds of publishing before the window.
    pub warm_up_seconds: f64,
    /// Seconds of the window, as configured.
    pub duration_seconds: f64,
    /// Whether the threads that hold subscribers never sleep.
    pub awake: bool,
}

// ===== impl Fanout =====

impl Fanout {
    /// Runs the benchmark against the server of `session`, and verifies that every event was delivered or counted as
    /// missing.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if a field is out of range, [`Error::Lost`] if events are lost, and any other if a connection
    /// fails.
    pub async fn run(&self, session: &Session, progress: &Progress) -> Result<FanoutReport, Error> {
        let target = Grpc::new(&session.server).with_window(self.window_bytes);
        let load = self.load(session)?;
        let conditions = Conditions::of(&load, self.shape);
        let measured = load.run(&target, &session.server, progress).await;
        progress.clear();
        Ok(FanoutReport {
            benchmark: "fanout",
            environment: session.environment.clone(),
            figures: Figures::new(&measured?, &session.environment, self.subscribers),
            conditions,
        })
    }

    /// Returns the load of this benchmark.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if a field is out of range.
    pub fn load(&self, session: &Session) -> Result<Load, Error> {
        let invalid = |reason: &str| Err(Error::Invalid(reason.into()));
        if self.subscribers == 0 || self.streams_per_connection == 0 {
            return invalid("--subscribers and --streams-per-connection must be at least 1");
        }
        let connections = self.subscribers.div_ceil(self.streams_per_connection);
        if self.stalled >= connections {
            return invalid("--stalled must leave at least one connection that reads");
        }
        check_publishing(self.payload_bytes, self.batch, self.rate, self.duration)?;
        Ok(Load {
            plan: Plan::new(self.shape, self.subscribers, self.topics, &topic_prefix())?,
            streams_per_connection: self.streams_per_connection,
            stalled_connections: self.stalled,
            publishers: 1,
            pace: self.rate.map_or(Pace::FlatOut, Pace::Rate),
            ahead: (self.ahead > 0).then_some(self.ahead),
            batch: self.batch,
            payload_bytes: self.payload_bytes,
            warm_up: self.warm_up,
            duration: self.duration,
            threads: session.environment.client_threads,
            awake: self.awake,
        })
    }
}

/// The prefix of this process's topics, so that two benchmarks on one server do not meet.
pub(crate) fn topic_prefix() -> String {
    format!("bench.p{}", std::process::id())
}

/// Refuses options with which nothing could be published or measured.
pub(crate) fn check_publishing(
    payload_bytes: usize,
    batch: usize,
    rate: Option<f64>,
    duration: Duration,
) -> Result<(), Error> {
    let invalid = |reason: String| Err(Error::Invalid(reason));
    if payload_bytes < HEAD {
        return invalid(format!(
            "--payload must be at least {HEAD} bytes, to hold a time and a number"
        ));
    }
    if batch == 0 || duration.is_zero() {
        return invalid("--batch and --duration must not be 0".into());
    }
    if rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
        return invalid(
            "--rate must be more than 0; leave it out to publish as fast as possible".into(),
        );
    }
    Ok(())
}

// ===== impl Conditions =====

impl Conditions {
    pub(crate) fn of(load: &Load, shape: Shape) -> Self {
        let subscribers = load.plan.streams().len();
        Self {
            subscribers,
            connections: subscribers.div_ceil(load.streams_per_connection),
            streams_per_connection: load.streams_per_connection,
            stalled_connections: load.stalled_connections,
            topics: load.plan.topics().len(),
            filter: shape,
            payload_bytes: load.payload_bytes,
            rate: match load.pace {
                Pace::Rate(rate) => Some(rate),
                Pace::FlatOut => None,
            },
            ahead: load.ahead.filter(|_| load.pace == Pace::FlatOut),
            batch: load.batch,
            publishers: load.publishers,
            warm_up_seconds: load.warm_up.as_secs_f64(),
            duration_seconds: load.duration.as_secs_f64(),
            awake: load.awake,
        }
    }

    pub(crate) fn lines(&self, table: &mut Table) {
        table.line(
            "subscribers",
            format_args!("{} on {} connections", self.subscribers, self.connections),
        );
        if self.stalled_connections > 0 {
            table.line("stalled connections", self.stalled_connections);
        }
        table.line("topics", self.topics);
        table.line("filters", format!("{:?}", self.filter).to_lowercase());
        table.line("payload", bytes(self.payload_bytes as f64));
        let sampled = match self.rate {
            Some(_) => "at every delivery",
            None => "at the first event of each batch",
        };
        table.line("latency measured", sampled);
        match (self.rate, self.ahead) {
            (Some(rate), _) => table.line("pace", format_args!("{rate} events/s")),
            (None, Some(ahead)) => table.line(
                "pace",
                format_args!("flat out, at most {ahead} events ahead of the slowest subscriber"),
            ),
            (None, None) => table.line("pace", "flat out"),
        }
        table.line(
            "publishers",
            format_args!(
                "{}, up to {} events per request",
                self.publishers, self.batch
            ),
        );
        if self.awake {
            table.line("subscribers' threads", "never sleep");
        }
        table.line("warm-up", format_args!("{} s", self.warm_up_seconds));
    }
}

// ===== impl FanoutReport =====

impl FanoutReport {
    /// Returns the report as a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::default();
        table.section("fan-out");
        self.figures.rates(&mut table);
        table.latency("latency", self.figures.latency.as_ref());
        self.figures.server(&mut table);
        table.client(self.figures.client);
        self.figures.accounts(&mut table);
        table.environment(&self.environment);
        self.conditions.lines(&mut table);
        table.finish()
    }
}

//! `bench fanout`: events to many subscribers.

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

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Fanout {
    /// Subscriptions in all.
    pub subscribers: usize,
    /// Subscriptions on one connection.
    pub streams_per_connection: usize,
    /// Topics, for the shapes that leave that open.
    pub topics: usize,
    /// What the filters are.
    pub shape: Shape,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// Events a second; `None`: flat out.
    pub rate: Option<f64>,
    /// Flat out, how many events the publisher may be ahead of the slowest subscriber; 0: any number.
    pub ahead: u64,
    /// Events in one publish request, at most.
    pub batch: usize,
    /// How long to publish before the window.
    pub warm_up: Duration,
    /// How long the window is.
    pub duration: Duration,
    /// Connections that subscribe and read nothing.
    pub stalled: usize,
    /// Bytes that the server may send on a stream before they are read.
    pub window_bytes: u32,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct FanoutReport {
    /// `fanout`.
    pub benchmark: &'static str,
    /// Where and on what.
    pub environment: Environment,
    /// What was done.
    pub conditions: Conditions,
    /// What was measured.
    pub figures: Figures,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Conditions {
    /// Subscriptions in all.
    pub subscribers: usize,
    /// Connections that they are on.
    pub connections: usize,
    /// Subscriptions on one connection.
    pub streams_per_connection: usize,
    /// Connections among them that read nothing.
    pub stalled_connections: usize,
    /// Topics.
    pub topics: usize,
    /// What the filters are.
    pub filter: Shape,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// Events a second; `None`: flat out.
    pub rate: Option<f64>,
    /// Events the publisher may be ahead of the slowest subscriber; `None`: any number.
    pub ahead: Option<u64>,
    /// Events in one publish request, at most.
    pub batch: usize,
    /// Connections that publish.
    pub publishers: usize,
    /// Seconds of publishing before the window.
    pub warm_up_seconds: f64,
    /// Seconds of the window, as asked for.
    pub duration_seconds: f64,
}

// ===== impl Fanout =====

impl Fanout {
    /// Does it, and verifies that every event was delivered or counted as missing.
    ///
    /// # Errors
    ///
    /// When what is asked for is not possible, a connection fails, or events are lost.
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

    /// The load it is.
    ///
    /// # Errors
    ///
    /// When what is asked for is not possible.
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
        })
    }
}

/// Topics that nobody else uses on a server with other users.
pub(crate) fn topic_prefix() -> String {
    format!("bench.p{}", std::process::id())
}

/// Refuses what cannot be published.
pub(crate) fn check_publishing(
    payload_bytes: usize,
    batch: usize,
    rate: Option<f64>,
    duration: Duration,
) -> Result<(), Error> {
    let invalid = |reason: String| Err(Error::Invalid(reason));
    if payload_bytes < HEAD {
        return invalid(format!(
            "--payload must be at least {HEAD} bytes: a time and a number are in it"
        ));
    }
    if batch == 0 || duration.is_zero() {
        return invalid("--batch and --duration must not be 0".into());
    }
    if rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
        return invalid("--rate must be more than 0; leave it away to publish flat out".into());
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
            None => "at the first event of each batch that arrives",
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
                "{}, up to {} events in a request",
                self.publishers, self.batch
            ),
        );
        table.line("warm-up", format_args!("{} s", self.warm_up_seconds));
    }
}

// ===== impl FanoutReport =====

impl FanoutReport {
    /// The report for people.
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

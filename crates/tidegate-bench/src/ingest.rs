//! `bench publish`: how many events a server accepts.

use std::time::Duration;

use serde::Serialize;

use crate::{
    Error, Grpc,
    fanout::{Conditions, check_publishing, topic_prefix},
    figures::Figures,
    plan::{Plan, Shape},
    progress::Progress,
    publishing::Pace,
    run::Load,
    session::{Environment, Session},
    table::Table,
};

/// The benchmark `publish`.
#[derive(Debug, Clone)]
pub struct Ingest {
    /// Connections that publish, each with one stream of requests; at least 1.
    pub publishers: usize,
    /// The most unanswered requests of each publisher; at least 1.
    pub in_flight: usize,
    /// The most events per request; at least 1.
    pub batch: usize,
    /// Number of topics; at least 1.
    pub topics: usize,
    /// Size of each payload in bytes; at least [`HEAD`](crate::payload::HEAD).
    pub payload_bytes: usize,
    /// Events per second, over all publishers; `None`: flat out.
    pub rate: Option<f64>,
    /// Subscribers, each on its own connection; they get the topics in turn, and may miss events.
    pub subscribers: usize,
    /// How long to publish before the window.
    pub warm_up: Duration,
    /// Length of the window, more than 0.
    pub duration: Duration,
}

/// The result of an [`Ingest`].
#[derive(Debug, Clone, Serialize)]
pub struct IngestReport {
    /// `publish`.
    pub benchmark: &'static str,
    /// The server, the machine and the cores.
    pub environment: Environment,
    /// The load.
    pub conditions: Conditions,
    /// The most unanswered requests of each publisher.
    pub in_flight: usize,
    /// The measurements.
    pub figures: Figures,
}

// ===== impl Ingest =====

impl Ingest {
    /// Runs the benchmark against the server of `session`, and verifies that every event was delivered or counted as
    /// missing.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if a field is out of range, [`Error::Lost`] if events are lost, and any other if a connection
    /// fails.
    pub async fn run(&self, session: &Session, progress: &Progress) -> Result<IngestReport, Error> {
        if self.publishers == 0 || self.in_flight == 0 {
            let reason = "--publishers and --in-flight must be at least 1";
            return Err(Error::Invalid(reason.into()));
        }
        check_publishing(self.payload_bytes, self.batch, self.rate, self.duration)?;
        let load = Load {
            plan: Plan::new(
                Shape::Literal,
                self.subscribers,
                self.topics,
                &topic_prefix(),
            )?,
            streams_per_connection: 1,
            stalled_connections: 0,
            publishers: self.publishers,
            pace: self.rate.map_or(Pace::FlatOut, Pace::Rate),
            ahead: None,
            batch: self.batch,
            payload_bytes: self.payload_bytes,
            warm_up: self.warm_up,
            duration: self.duration,
            threads: session.environment.client_threads,
            awake: false,
        };
        let target = Grpc::new(&session.server).with_in_flight(self.in_flight);
        let conditions = Conditions::of(&load, Shape::Literal);
        let measured = load.run(&target, &session.server, progress).await;
        progress.clear();
        Ok(IngestReport {
            benchmark: "publish",
            environment: session.environment.clone(),
            conditions,
            in_flight: self.in_flight,
            figures: Figures::new(&measured?, &session.environment, self.subscribers),
        })
    }
}

// ===== impl IngestReport =====

impl IngestReport {
    /// Returns the report as a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::default();
        table.section("publishing");
        self.figures.rates(&mut table);
        table.latency("answer", self.figures.answer_latency.as_ref());
        if self.conditions.subscribers > 0 {
            table.latency("latency", self.figures.latency.as_ref());
        }
        self.figures.server(&mut table);
        table.client(self.figures.client);
        self.figures.accounts(&mut table);
        table.environment(&self.environment);
        self.conditions.lines(&mut table);
        table.line("requests in flight", self.in_flight);
        table.finish()
    }
}

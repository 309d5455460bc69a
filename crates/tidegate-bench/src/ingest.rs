//! `bench publish`: how many events a server takes in.

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

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Ingest {
    /// Connections that publish, each its own stream of requests.
    pub publishers: usize,
    /// Requests that each has unanswered at most.
    pub in_flight: usize,
    /// Events in one request.
    pub batch: usize,
    /// Topics.
    pub topics: usize,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// Events a second, of all publishers together; `None`: flat out.
    pub rate: Option<f64>,
    /// Subscribers, each on its own connection, in turn to the topics. They may miss events.
    pub subscribers: usize,
    /// How long to publish before the window.
    pub warm_up: Duration,
    /// How long the window is.
    pub duration: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct IngestReport {
    /// `publish`.
    pub benchmark: &'static str,
    /// Where and on what.
    pub environment: Environment,
    /// What was done.
    pub conditions: Conditions,
    /// Requests that each publisher had unanswered at most.
    pub in_flight: usize,
    /// What was measured.
    pub figures: Figures,
}

// ===== impl Ingest =====

impl Ingest {
    /// Does it.
    ///
    /// # Errors
    ///
    /// When what is asked for is not possible, a connection fails, or events are lost.
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
    /// The report for people.
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

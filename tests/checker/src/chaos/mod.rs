//! The chaos run: clients of every behavior, a proxy that breaks their connections, a server that restarts.
//!
//! A run is a sequence of rounds. Each round has a seed, which determines the settings of the server, the clients and
//! the faults; the timing depends on the machine. In the middle of a round the server drains and another takes its
//! place, in a new epoch. At the end of a round the faults stop, the clients that are left read to the end, and the
//! checker checks all records.

mod client;
mod plan;
mod publisher;
mod round;
mod typed;
mod world;

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{check::Tally, proxy::FaultCounts, violation::Violation};

/// The options of a run. It goes on until `duration`, `slots` and `rounds` are all reached.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The seed of the first round. Each further round has the next number.
    pub seed: u64,
    /// The least duration. A round that has begun is finished.
    pub duration: Duration,
    /// The least number of delivery slots to check.
    pub slots: u64,
    /// The least number of rounds.
    pub rounds: u64,
    /// How long a round publishes.
    pub round: Duration,
    /// Clients of a round, in multiples of [`Self::CLIENTS`].
    pub scale: usize,
    /// Events per batch of a publisher, on average.
    pub batch: usize,
}

/// Running counts, which another task may read.
#[derive(Debug, Default)]
pub struct Counts {
    /// Events published and acknowledged.
    pub published: AtomicU64,
    /// Events of batches without an answer: stored or not.
    pub unanswered: AtomicU64,
    /// Delivery slots: events delivered, and events counted as missing.
    pub slots: AtomicU64,
    /// Delivery slots among them of the typed hub.
    pub typed: AtomicU64,
    /// The longest latency of an event to a healthy client, in nanoseconds.
    pub latency: AtomicU64,
    /// The most bytes that events held in a server.
    pub held: AtomicU64,
    /// Servers drained while clients were connected.
    pub restarts: AtomicU64,
    /// Faults of the proxy.
    pub faults: Arc<FaultCounts>,
}

/// The report of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of rounds.
    pub rounds: u64,
    /// The counts of the checker.
    pub tally: Tally,
    /// The duration of the run.
    pub took: Duration,
    /// The counts of the run.
    pub counts: Arc<Counts>,
}

/// The reason why a run ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A guarantee was broken.
    #[error("{violation}\nin round {round}; repeat it with: {command}")]
    Violation {
        /// The violation.
        violation: Box<Violation>,
        /// The round, from 1.
        round: u64,
        /// The command that runs this round alone.
        command: String,
    },
    /// A server or proxy could not be started.
    #[error("cannot start a server or proxy on a port of 127.0.0.1")]
    Start(#[from] io::Error),
}

/// Runs rounds until the duration, the slots and the rounds of `options` are reached.
///
/// # Errors
/// The first violation.
pub async fn run(options: Options, counts: Arc<Counts>) -> Result<Report, Failure> {
    let began = Instant::now();
    let mut report = Report {
        counts: Arc::clone(&counts),
        ..Report::default()
    };
    while report.rounds < options.rounds
        || began.elapsed() < options.duration
        || report.tally.slots() < options.slots
    {
        let seed = options.seed.wrapping_add(report.rounds);
        report.rounds += 1;
        let tally = round::run(seed, options, &counts).await?;
        let violation = |violation| Failure::Violation {
            violation: Box::new(violation),
            round: report.rounds,
            command: options.command(seed),
        };
        report.tally.add(&tally.map_err(violation)?);
    }
    report.took = began.elapsed();
    Ok(report)
}

impl Options {
    /// Clients of a round at scale 1.
    pub const CLIENTS: usize = plan::CLIENTS;

    /// Returns the command that runs only the round with this seed.
    fn command(&self, seed: u64) -> String {
        let Self {
            round,
            scale,
            batch,
            ..
        } = self;
        let round = round.as_secs();
        format!(
            "scripts/chaos --seed {seed} --duration 0s --round {round}s --scale {scale} --batch {batch}"
        )
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            duration: Duration::from_secs(180),
            slots: 0,
            rounds: 1,
            round: Duration::from_secs(12),
            scale: 3,
            batch: 20,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rounds,
            tally,
            took,
            counts,
        } = self;
        let mut row = |name: &str, value: u64| writeln!(out, "{name:<36}{value:>14}");
        row("rounds", *rounds)?;
        row("seconds", took.as_secs())?;
        row("events published", counts.published.load(Relaxed))?;
        row(
            "events published, not acknowledged",
            counts.unanswered.load(Relaxed),
        )?;
        row("streams opened", tally.streams)?;
        row("streams resumed", tally.resumed)?;
        row("servers restarted", counts.restarts.load(Relaxed))?;
        row("faults: delayed", counts.faults.delays.load(Relaxed))?;
        row("faults: throttled", counts.faults.throttles.load(Relaxed))?;
        row("faults: cut", counts.faults.cuts.load(Relaxed))?;
        row("faults: half-open", counts.faults.half_opens.load(Relaxed))?;
        row("bytes over slow links", counts.faults.crawled.load(Relaxed))?;
        for (reason, gaps) in &tally.gaps {
            row(&format!("gaps: {reason}"), *gaps)?;
        }
        for (reason, missed) in &tally.missed {
            row(&format!("missed: {reason}"), *missed)?;
        }
        for (reason, endings) in &tally.endings {
            row(&format!("endings: {reason}"), *endings)?;
        }
        row(
            "healthy: longest latency, ms",
            counts.latency.load(Relaxed) / 1_000_000,
        )?;
        row("most bytes held", counts.held.load(Relaxed))?;
        row("delivered", tally.delivered)?;
        row("slots of the typed hub", counts.typed.load(Relaxed))?;
        row("slots checked", tally.slots())?;
        row(
            "slots a second",
            (tally.slots() as f64 / took.as_secs_f64()) as u64,
        )?;
        row("violations", 0)
    }
}

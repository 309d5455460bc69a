//! The chaos run: clients of all manners, a proxy that breaks their connections, a server that restarts.
//!
//! A run is a sequence of rounds. Each has a seed, from which the set-up of the server, the clients and the
//! faults are drawn; when things happen within a round is up to the machine. In the middle of a round the
//! server drains and another takes its place, in a new epoch. At its end everything heals, the clients that
//! are still there read until nothing is left, and all that was recorded is checked.

mod client;
mod plan;
mod publisher;
mod round;
mod world;

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{
    check::{Tally, Violation},
    proxy::FaultCounts,
};

/// What a run is to be like.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The seed of the first round; each next one has the next.
    pub seed: u64,
    /// How long to go on. A round that has begun is finished.
    pub duration: Duration,
    /// Go on until so many slots were checked, however long that takes.
    pub slots: u64,
    /// Go on for so many rounds, however long that takes.
    pub rounds: u64,
    /// How long things are published in a round.
    pub round: Duration,
    /// Times 28 clients.
    pub scale: usize,
    /// Events that each of the publishers sends at once, on average.
    pub batch: usize,
}

/// Running counts, for others to look at.
#[derive(Debug, Default)]
pub struct Counts {
    /// Events published and acknowledged.
    pub published: AtomicU64,
    /// Events of batches that were not acknowledged: stored or not.
    pub unanswered: AtomicU64,
    /// Delivery slots: events delivered, and events counted as missing.
    pub slots: AtomicU64,
    /// The longest that an event took to a healthy client, in nanoseconds.
    pub latency: AtomicU64,
    /// The most bytes that events held at a server.
    pub held: AtomicU64,
    /// Servers drained while clients were connected.
    pub restarts: AtomicU64,
    /// Faults of the proxy.
    pub faults: Arc<FaultCounts>,
}

/// What was done and checked.
#[derive(Debug, Default)]
pub struct Report {
    /// Rounds.
    pub rounds: u64,
    /// What the checker saw.
    pub tally: Tally,
    /// How long it took.
    pub took: Duration,
    /// What was counted.
    pub counts: Arc<Counts>,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A guarantee was not kept.
    #[error("{violation}\nin round {round}; repeat it with: {command}")]
    Violation {
        /// Which.
        violation: Box<Violation>,
        /// The round, from 1.
        round: u64,
        /// What runs that round alone.
        command: String,
    },
    /// A server or proxy could not be started.
    #[error("cannot start a server or proxy on a port of 127.0.0.1")]
    Start(#[from] io::Error),
}

/// Runs rounds until time and slots are enough.
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
    /// What runs the round with this seed alone.
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
        row("slots checked", tally.slots())?;
        row(
            "slots a second",
            (tally.slots() as f64 / took.as_secs_f64()) as u64,
        )?;
        row("violations", 0)
    }
}

//! The kinds of work, and what is looked at in each.

use std::time::Duration;

use clap::ValueEnum;
use tidegate_bench::{Error, Figures, Idle, Load, Pace, Plan, Session, Shape};

use crate::peer::Peer;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Flat out to many connections.
    Firehose,
    /// At a rate to many connections.
    Paced,
    /// Connections with nothing to receive.
    Idle,
    /// Some of the connections read nothing.
    Stalled,
}

/// How much of it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Amount {
    /// How long to measure in each round.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,

    /// How long to go on before measuring.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    warm_up: f64,

    /// Connections that are idle.
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    idle_connections: usize,
}

/// Something that is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Whether less is better and it says something about the server, so that a ratio makes sense.
    pub(crate) compared: bool,
}

/// One value for each metric of a work, in its order.
pub(crate) type Sample = Vec<f64>;

const fn compared(name: &'static str, unit: &'static str) -> Metric {
    Metric {
        name,
        unit,
        compared: true,
    }
}

const fn noted(name: &'static str, unit: &'static str) -> Metric {
    Metric {
        name,
        unit,
        compared: false,
    }
}

const FIREHOSE: &[Metric] = &[
    compared("server CPU per delivery", "us"),
    noted("of it user", "us"),
    noted("of it system", "us"),
    noted("deliveries", "million/s"),
    noted("server", "% of a core"),
    noted("benchmark", "% of its cores"),
];

const PACED: &[Metric] = &[
    compared("server CPU per delivery", "us"),
    compared("latency p50", "ms"),
    compared("latency p99", "ms"),
    noted("of the CPU user", "us"),
    noted("of the CPU system", "us"),
    noted("server", "% of a core"),
    noted("benchmark", "% of its cores"),
];

const IDLE: &[Metric] = &[compared("resident memory per subscriber", "KiB")];

const STALLED: &[Metric] = &[
    compared("p99 with stalled clients", "ms"),
    compared("p99 without", "ms"),
    noted("with / without", "x"),
    compared("server CPU per delivery with", "us"),
    noted("benchmark", "% of its cores"),
];

/// Connections in [`Work::Firehose`] and [`Work::Stalled`].
const CONNECTIONS: usize = 100;

/// Connections that read nothing in [`Work::Stalled`].
const STALLED_CONNECTIONS: usize = 20;

/// Connections in [`Work::Paced`].
const PACED_CONNECTIONS: usize = 200;

/// Events a second in [`Work::Paced`] and [`Work::Stalled`].
const RATE: f64 = 500.0;

/// Bytes of a payload in most works.
const PAYLOAD: usize = 256;

/// Bytes of a payload in [`Work::Stalled`]: enough that all that lies between a server and a client that
/// does not read is full before the window begins.
const STALLED_PAYLOAD: usize = 4_096;

/// Events that the publisher is ahead of the slowest subscriber at most, flat out. Half of what tidegate and
/// the baselines let a subscriber be behind, so that nobody has to drop.
const AHEAD: u64 = 512;

// ===== impl Work =====

impl Work {
    pub(crate) const ALL: [Self; 4] = [Self::Firehose, Self::Paced, Self::Idle, Self::Stalled];

    pub(crate) const fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Firehose => FIREHOSE,
            Self::Paced => PACED,
            Self::Idle => IDLE,
            Self::Stalled => STALLED,
        }
    }

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Firehose => "Firehose",
            Self::Paced => "At a rate",
            Self::Idle => "Idle subscribers",
            Self::Stalled => "Stalled clients",
        }
    }

    /// The name of its plot.
    pub(crate) const fn file(self) -> &'static str {
        match self {
            Self::Firehose => "firehose.svg",
            Self::Paced => "paced.svg",
            Self::Idle => "idle.svg",
            Self::Stalled => "stalled.svg",
        }
    }

    pub(crate) fn description(self, amount: &Amount) -> String {
        match self {
            Self::Firehose => format!(
                "{CONNECTIONS} subscribers, each on its own connection, get every event of {PAYLOAD} B. The \
                 publisher goes as fast as the slowest of them: it is at most {AHEAD} events ahead."
            ),
            Self::Paced => format!(
                "{RATE} events a second of {PAYLOAD} B go to {PACED_CONNECTIONS} subscribers, each on its own \
                 connection. Latency is from the moment an event was due to its arrival."
            ),
            Self::Idle => format!(
                "{} subscribers, each on its own connection, have nothing to receive. Resident memory of the \
                 server with them, less that before them, is divided by their number.",
                amount.idle_connections
            ),
            Self::Stalled => format!(
                "{RATE} events a second of {STALLED_PAYLOAD} B go to {CONNECTIONS} subscribers, each on its own \
                 connection. Once all of them read; once {STALLED_CONNECTIONS} of them read nothing. The latency \
                 is that of those who read."
            ),
        }
    }

    /// Does it once.
    pub(crate) async fn sample(
        self,
        peer: Peer,
        amount: &Amount,
        session: &Session,
    ) -> Result<Sample, Error> {
        match self {
            Self::Firehose => {
                let figures = amount.run(self, peer, session, 0).await?;
                firehose(&figures)
            }
            Self::Paced => {
                let figures = amount.run(self, peer, session, 0).await?;
                paced(&figures)
            }
            Self::Idle => {
                let idle = Idle {
                    connections: amount.idle_connections,
                    streams_per_connection: 1,
                    shape: Shape::Literal,
                    duration: Duration::from_secs_f64(amount.warm_up),
                };
                let memory = peer.idle(&idle, session).await?;
                Ok(vec![memory.per_subscriber / 1_024.0])
            }
            Self::Stalled => {
                let without = amount.run(self, peer, session, 0).await?;
                let with = amount.run(self, peer, session, STALLED_CONNECTIONS).await?;
                stalled(&without, &with)
            }
        }
    }
}

impl Amount {
    async fn run(
        &self,
        work: Work,
        peer: Peer,
        session: &Session,
        stalled_connections: usize,
    ) -> Result<Figures, Error> {
        let subscribers = match work {
            Work::Paced => PACED_CONNECTIONS,
            _ => CONNECTIONS,
        };
        let flat_out = work == Work::Firehose;
        let load = Load {
            plan: Plan::new(Shape::Literal, subscribers, 1, "bench")?,
            streams_per_connection: 1,
            stalled_connections,
            publishers: 1,
            pace: if flat_out {
                Pace::FlatOut
            } else {
                Pace::Rate(RATE)
            },
            ahead: Some(AHEAD),
            batch: 64,
            payload_bytes: if work == Work::Stalled {
                STALLED_PAYLOAD
            } else {
                PAYLOAD
            },
            warm_up: Duration::from_secs_f64(self.warm_up),
            duration: Duration::from_secs_f64(self.seconds),
            threads: session.environment().client_threads,
        };
        let measured = peer.run(load, session).await?;
        Ok(Figures::new(&measured, session.environment(), subscribers))
    }
}

fn firehose(figures: &Figures) -> Result<Sample, Error> {
    let server = figures.server.as_ref().ok_or_else(nothing)?;
    let cost = server.per_delivery.ok_or_else(nothing)?;
    Ok(vec![
        cost.total_us,
        cost.user_us,
        cost.system_us,
        figures.deliveries_per_second / 1e6,
        server.cores_busy * 100.0,
        figures.client.cpu_share * 100.0,
    ])
}

fn paced(figures: &Figures) -> Result<Sample, Error> {
    let server = figures.server.as_ref().ok_or_else(nothing)?;
    let cost = server.per_delivery.ok_or_else(nothing)?;
    let latency = figures.latency.ok_or_else(nothing)?;
    Ok(vec![
        cost.total_us,
        latency.p50_us / 1e3,
        latency.p99_us / 1e3,
        cost.user_us,
        cost.system_us,
        server.cores_busy * 100.0,
        figures.client.cpu_share * 100.0,
    ])
}

fn stalled(without: &Figures, with: &Figures) -> Result<Sample, Error> {
    let p99 = |figures: &Figures| figures.latency.map(|latency| latency.p99_us / 1e3);
    let (without_ms, with_ms) = p99(without).zip(p99(with)).ok_or_else(nothing)?;
    let cost = with
        .server
        .as_ref()
        .and_then(|server| server.per_delivery)
        .ok_or_else(nothing)?;
    Ok(vec![
        with_ms,
        without_ms,
        with_ms / without_ms,
        cost.total_us,
        with.client.cpu_share * 100.0,
    ])
}

fn nothing() -> Error {
    Error::Lost("nothing was delivered in the measured window".into())
}

//! The workloads, and the metrics of each.

use clap::ValueEnum;
use tidegate_bench::{Cost, Error, Figures, Pace, Wave};

use crate::{
    amount::Amount,
    peer::{Peer, Serving},
    trial::{AHEAD, Run, Trial},
};

/// A workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Flat out to many connections, no faster than the slowest of them.
    Firehose,
    /// Flat out to many connections, whether they keep up or not.
    FlatOut,
    /// At a rate to many connections.
    Paced,
    /// One event at a time to very many connections.
    Burst,
    /// Connections with nothing to receive.
    Idle,
    /// Some of the connections read nothing.
    Stalled,
    /// Flat out, from a server that may use all cores.
    Cores,
    /// Flat out, once by TLS and once without.
    Tls,
    /// Clients that all come at once, are cut, and all come back.
    Storm,
}

/// A metric of a workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Whether the table has its ratio to tidegate's: less is better, and it describes the server.
    pub(crate) compared: bool,
    /// Whether the table has the lowest and the highest round.
    pub(crate) ranged: bool,
}

/// One value for each metric of a workload, in its order.
pub(crate) type Sample = Vec<f64>;

const fn compared(name: &'static str, unit: &'static str) -> Metric {
    Metric {
        name,
        unit,
        compared: true,
        ranged: false,
    }
}

const fn noted(name: &'static str, unit: &'static str) -> Metric {
    Metric {
        name,
        unit,
        compared: false,
        ranged: false,
    }
}

const fn ranged(metric: Metric) -> Metric {
    Metric {
        ranged: true,
        ..metric
    }
}

const FIREHOSE: &[Metric] = &[
    ranged(compared("server CPU per delivery", "us")),
    noted("of it user", "us"),
    noted("of it system", "us"),
    noted("deliveries", "million/s"),
    noted("server", "% of a core"),
    noted("benchmark", "% of its cores"),
];

const FLAT_OUT_METRICS: &[Metric] = &[
    ranged(compared("server CPU per delivery", "us")),
    noted("of it user", "us"),
    noted("of it system", "us"),
    noted("deliveries", "million/s"),
    noted("missed, counted by gaps", "% of all"),
    noted("server", "% of a core"),
    noted("benchmark", "% of its cores"),
];

const PACED: &[Metric] = &[
    ranged(compared("server CPU per delivery", "us")),
    ranged(compared("latency p50", "ms")),
    ranged(compared("latency p99", "ms")),
    noted("of the CPU user", "us"),
    noted("of the CPU system", "us"),
    noted("server", "% of a core"),
];

const IDLE: &[Metric] = &[ranged(compared("resident memory per subscriber", "KiB"))];

const STALLED: &[Metric] = &[
    ranged(compared("p99 with stalled clients", "ms")),
    ranged(compared("p99 without", "ms")),
    ranged(noted("with / without", "x")),
    compared("server CPU per delivery with", "us"),
    noted("benchmark", "% of its cores"),
];

const TLS: &[Metric] = &[
    ranged(compared("server CPU per delivery with TLS", "us")),
    noted("of it user", "us"),
    noted("of it system", "us"),
    compared("without TLS", "us"),
    ranged(noted("with / without", "x")),
    noted("deliveries with TLS", "million/s"),
    noted("benchmark, with TLS", "% of its cores"),
];

const STORM: &[Metric] = &[
    ranged(compared("all connected after", "ms")),
    ranged(compared("all subscribed after", "ms")),
    ranged(compared("all back and caught up after", "ms")),
    noted("of them p50", "ms"),
    compared("server CPU per client that comes back", "us"),
    noted("retries", ""),
    noted("benchmark, as they come back", "% of its cores"),
];

/// Connections in most workloads.
const CONNECTIONS: usize = 100;

/// Connections that read nothing in [`Workload::Stalled`].
const STALLED_CONNECTIONS: usize = 20;

/// Connections in [`Workload::Paced`].
const PACED_CONNECTIONS: usize = 200;

/// Events a second in [`Workload::Paced`] and [`Workload::Stalled`].
const RATE: f64 = 500.0;

/// Events a second in [`Workload::Burst`]: one has arrived everywhere before the next.
const BURST_RATE: f64 = 1.0;

/// Bytes of a payload in most works.
const PAYLOAD: usize = 256;

/// Bytes of a payload in [`Workload::Stalled`]: large enough to fill every buffer between the server and a client that
/// does not read before the window begins.
const STALLED_PAYLOAD: usize = 4_096;

const FLAT_OUT: Run = Run {
    connections: CONNECTIONS,
    stalled_connections: 0,
    payload_bytes: PAYLOAD,
    pace: Pace::FlatOut,
    ahead: Some(AHEAD),
    awake: false,
    serving: Serving::PLAIN,
};

const UNBOUNDED: Run = Run {
    ahead: None,
    ..FLAT_OUT
};

const AT_A_RATE: Run = Run {
    connections: PACED_CONNECTIONS,
    pace: Pace::Rate(RATE),
    awake: true,
    ..FLAT_OUT
};

const NONE_STALLED: Run = Run {
    payload_bytes: STALLED_PAYLOAD,
    pace: Pace::Rate(RATE),
    ..FLAT_OUT
};

// ===== impl Workload =====

impl Workload {
    pub(crate) const ALL: [Self; 9] = [
        Self::Firehose,
        Self::FlatOut,
        Self::Paced,
        Self::Burst,
        Self::Idle,
        Self::Stalled,
        Self::Cores,
        Self::Tls,
        Self::Storm,
    ];

    pub(crate) const fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Firehose | Self::Cores => FIREHOSE,
            Self::FlatOut => FLAT_OUT_METRICS,
            Self::Paced | Self::Burst => PACED,
            Self::Idle => IDLE,
            Self::Stalled => STALLED,
            Self::Tls => TLS,
            Self::Storm => STORM,
        }
    }

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Firehose => "Firehose",
            Self::FlatOut => "Flat out",
            Self::Paced => "At a rate",
            Self::Burst => "One event to many",
            Self::Idle => "Idle subscribers",
            Self::Stalled => "Stalled clients",
            Self::Cores => "All cores",
            Self::Tls => "TLS",
            Self::Storm => "A storm of clients",
        }
    }

    /// Returns the file name of its plot.
    pub(crate) const fn file(self) -> &'static str {
        match self {
            Self::Firehose => "firehose.svg",
            Self::FlatOut => "flat-out.svg",
            Self::Paced => "paced.svg",
            Self::Burst => "burst.svg",
            Self::Idle => "idle.svg",
            Self::Stalled => "stalled.svg",
            Self::Cores => "cores.svg",
            Self::Tls => "tls.svg",
            Self::Storm => "storm.svg",
        }
    }

    pub(crate) fn description(self, amount: &Amount) -> String {
        match self {
            Self::Firehose => format!(
                "{CONNECTIONS} subscribers, each on its own connection, get every event of {PAYLOAD} B. The \
                 publisher keeps to the pace of the slowest: it is at most {AHEAD} events ahead."
            ),
            Self::FlatOut => "As above, but the publisher waits for no subscriber: only for the server, where that answers or stops \
                 reading. A subscriber that does not keep up misses events of tidegate and of the typed hub, which gaps \
                 count; the other servers have rules of their own, and a round in which one of their streams lost an event \
                 has no numbers."
                .into(),
            Self::Paced => format!(
                "{RATE} events a second of {PAYLOAD} B go to {PACED_CONNECTIONS} subscribers, each on its own \
                 connection. Latency is the time from the moment an event was due to its arrival. The threads that hold \
                 the subscribers never sleep: a server that sends to one that sleeps pays for waking it, and whether it \
                 sleeps is chance."
            ),
            Self::Burst => format!(
                "{BURST_RATE} event a second of {PAYLOAD} B goes to {} subscribers, each on its own connection; all else \
                 is as above.",
                amount.burst_connections
            ),
            Self::Idle => format!(
                "{} subscribers, each on its own connection, have nothing to receive. The number is the growth of \
                 the server's resident memory by them, divided by their number.",
                amount.idle_connections
            ),
            Self::Stalled => format!(
                "{RATE} events a second of {STALLED_PAYLOAD} B go to {CONNECTIONS} subscribers, each on its own \
                 connection. Each round has two runs: in one all of them read, in the other {STALLED_CONNECTIONS} \
                 read nothing. The latency is that of the subscribers that read."
            ),
            Self::Cores => format!(
                "As above, flat out to {CONNECTIONS} connections with {PAYLOAD} B, from servers that may use the cores of \
                 the benchmark too. The benchmark stays on its own cores, so the servers get the time that it leaves."
            ),
            Self::Tls => format!(
                "Flat out to {CONNECTIONS} connections with {PAYLOAD} B. Each round has two runs, one with TLS and one \
                 without. No session is resumed. Only servers of HTTP/2 take part: the benchmark has no TLS for the \
                 protocols of the others."
            ),
            Self::Storm => format!(
                "{clients} clients, each with a connection of its own, open their connections at once, then connect and \
                 subscribe at once; all connections are cut; all clients come back at once. The times are those of the \
                 last. A client of tidegate that comes back has to get the 10 events of 256 B that were published \
                 while it was away. The others keep nothing for it, so theirs has to be confirmed only.",
                clients = amount.storm_clients
            ),
        }
    }

    /// Whether a peer can take part.
    pub(crate) const fn suits(self, peer: Peer) -> bool {
        match self {
            Self::Stalled => peer.survives_stalling(),
            Self::Tls => peer.speaks_tls(),
            Self::Storm => peer.takes_storms(),
            Self::Firehose
            | Self::FlatOut
            | Self::Paced
            | Self::Burst
            | Self::Idle
            | Self::Cores => true,
        }
    }

    /// Measures the workload once.
    pub(crate) async fn sample(self, trial: &mut Trial<'_>) -> Result<Sample, Error> {
        match self {
            Self::Firehose => firehose(&trial.run(FLAT_OUT).await?),
            Self::FlatOut => unbounded(&trial.run(UNBOUNDED).await?),
            Self::Paced => paced(&trial.run(AT_A_RATE).await?),
            Self::Burst => {
                let run = Run {
                    connections: trial.amount.burst_connections,
                    pace: Pace::Rate(BURST_RATE),
                    ..AT_A_RATE
                };
                paced(&trial.run(run).await?)
            }
            Self::Idle => {
                let memory = trial.idle().await?;
                Ok(vec![memory.per_subscriber / 1_024.0])
            }
            Self::Stalled => {
                let some_stalled = Run {
                    stalled_connections: STALLED_CONNECTIONS,
                    ..NONE_STALLED
                };
                let [without, with] = trial.pair(NONE_STALLED, some_stalled).await?;
                stalled(&without, &with)
            }
            Self::Cores => firehose(&trial.run(FLAT_OUT.on(Serving::ON_ALL_CORES)).await?),
            Self::Storm => storm(&trial.storm().await?),
            Self::Tls => {
                let encrypted = FLAT_OUT.on(Serving::BY_TLS);
                let [without, with] = trial.pair(FLAT_OUT, encrypted).await?;
                tls(&without, &with)
            }
        }
    }
}

impl Run {
    const fn on(mut self, serving: Serving) -> Self {
        self.serving = serving;
        self
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

fn unbounded(figures: &Figures) -> Result<Sample, Error> {
    let mut sample = firehose(figures)?;
    let all = figures.deliveries + figures.missed;
    sample.insert(4, figures.missed as f64 / all as f64 * 100.0);
    Ok(sample)
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

fn tls(without: &Figures, with: &Figures) -> Result<Sample, Error> {
    let cost = |figures: &Figures| -> Option<Cost> { figures.server.as_ref()?.per_delivery };
    let (plain, encrypted) = cost(without).zip(cost(with)).ok_or_else(nothing)?;
    Ok(vec![
        encrypted.total_us,
        encrypted.user_us,
        encrypted.system_us,
        plain.total_us,
        encrypted.total_us / plain.total_us,
        with.deliveries_per_second / 1e6,
        with.client.cpu_share * 100.0,
    ])
}

fn storm([opened, first, back]: &[Wave; 3]) -> Result<Sample, Error> {
    let p50 = back.caught_up.ok_or_else(nothing)?.p50_us / 1e3;
    let cost = back.server_per_client.ok_or_else(nothing)?;
    Ok(vec![
        opened.seconds * 1e3,
        first.seconds * 1e3,
        back.seconds * 1e3,
        p50,
        cost.total_us,
        (opened.retries + first.retries + back.retries) as f64,
        back.client.cpu_share * 100.0,
    ])
}

fn nothing() -> Error {
    Error::Lost("nothing was delivered in the measured window".into())
}

//! `bench connect`: clients that subscribe and leave, over and over.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde::Serialize;
use tokio::{sync::mpsc, time::sleep};

use crate::{
    Error, Grpc, Latencies,
    clock::nanos,
    fanout::topic_prefix,
    figures::Cost,
    grpc::Driver,
    latency::Distribution,
    progress::Progress,
    session::{ClientShare, Environment, Session},
    table::{Table, bytes, count, percent},
    thread::{run_local, spawn, with_timeout},
    usage::{CpuSpent, CpuTime},
};

/// The benchmark `connect`.
#[derive(Debug, Clone)]
pub struct Churn {
    /// Clients that subscribe and leave concurrently; at least 1.
    pub clients: usize,
    /// Whether each client opens a new connection for each subscription.
    pub reconnect: bool,
    /// How long to run before the window.
    pub warm_up: Duration,
    /// Length of the window, more than 0.
    pub duration: Duration,
}

/// The result of a [`Churn`].
#[derive(Debug, Clone, Serialize)]
pub struct ChurnReport {
    /// `connect`.
    pub benchmark: &'static str,
    /// The server, the machine and the cores.
    pub environment: Environment,
    /// Clients that subscribed and left concurrently.
    pub clients: usize,
    /// Whether each subscription was on a new connection.
    pub reconnect: bool,
    /// Length of the window, in seconds.
    pub seconds: f64,
    /// Subscriptions that the server confirmed in the window.
    pub subscriptions: u64,
    /// Confirmed subscriptions per second.
    pub subscriptions_per_second: f64,
    /// Time from the request, or from opening the connection, to the first response.
    pub latency: Option<Distribution>,
    /// Processor time of the server per subscription, its end included.
    pub server_per_subscription: Option<Cost>,
    /// Processor time of the server per second of the window: 1 is one core.
    pub server_cores_busy: Option<f64>,
    /// Resident memory of the server before the first client and after the last, in bytes.
    pub server_resident: Option<[u64; 2]>,
    /// The processor time of the benchmark itself.
    pub client: ClientShare,
}

/// State shared by all clients.
#[derive(Debug, Default)]
struct Counts {
    subscriptions: AtomicU64,
    measuring: AtomicBool,
    ending: AtomicBool,
}

/// A reading of the counters, at the beginning and at the end of the window.
struct Snapshot {
    at: Instant,
    subscriptions: u64,
    server: Option<CpuTime>,
    client: CpuTime,
}

// ===== impl Churn =====

impl Churn {
    /// Runs the benchmark against the server of `session`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if a field is out of range, and any other if a connection or a subscription fails.
    pub async fn run(&self, session: &Session, progress: &Progress) -> Result<ChurnReport, Error> {
        if self.clients == 0 || self.duration.is_zero() {
            return Err(Error::Invalid(
                "--clients and --duration must not be 0".into(),
            ));
        }
        let server = &session.server;
        let before = server.resident_bytes()?;
        let counts = Arc::new(Counts::default());
        let mut outcomes = self.start(&Grpc::new(server), session, &counts)?;
        let take = || Snapshot::take(session, &counts);
        progress.phase("warming up");
        during(sleep(self.warm_up), &mut outcomes).await?;
        let first = take()?;
        counts.measuring.store(true, Relaxed);
        progress.phase("measuring");
        let shown = show(progress, &counts, self.duration);
        during(shown, &mut outcomes).await?;
        counts.measuring.store(false, Relaxed);
        let last = take()?;
        counts.ending.store(true, Relaxed);
        let mut latencies = Latencies::new();
        while let Some(outcome) = outcomes.recv().await {
            latencies.add(&outcome?);
        }
        progress.clear();
        let resident = before.zip(server.resident_bytes()?).map(|(a, b)| [a, b]);
        Ok(self.report(session, &first, &last, &latencies, resident))
    }

    fn start(
        &self,
        grpc: &Grpc,
        session: &Session,
        counts: &Arc<Counts>,
    ) -> Result<mpsc::Receiver<Result<Latencies, Error>>, Error> {
        let threads = session.environment.client_threads.min(self.clients);
        let (sender, outcomes) = mpsc::channel(threads);
        for thread in 0..threads {
            let clients = (thread..self.clients).step_by(threads).len();
            let (grpc, counts, sender) = (grpc.clone(), counts.clone(), sender.clone());
            let reconnect = self.reconnect;
            spawn("clients", move || {
                let outcome = run_local(run_clients(&grpc, &counts, clients, reconnect));
                // When the run has failed already, nobody receives this.
                let _ = sender.blocking_send(outcome);
            })?;
        }
        Ok(outcomes)
    }

    fn report(
        &self,
        session: &Session,
        first: &Snapshot,
        last: &Snapshot,
        latencies: &Latencies,
        resident: Option<[u64; 2]>,
    ) -> ChurnReport {
        let seconds = (last.at - first.at).as_secs_f64();
        let subscriptions = last.subscriptions - first.subscriptions;
        let spent = last.server.as_ref().zip(first.server.as_ref());
        let spent: Option<CpuSpent> = spent.map(|(last, first)| last.since(first));
        let client = last.client.since(&first.client);
        ChurnReport {
            benchmark: "connect",
            environment: session.environment.clone(),
            clients: self.clients,
            reconnect: self.reconnect,
            seconds,
            subscriptions,
            subscriptions_per_second: subscriptions as f64 / seconds,
            latency: latencies.distribution(),
            server_per_subscription: spent.and_then(|spent| Cost::each(spent, subscriptions)),
            server_cores_busy: spent.map(|spent| spent.seconds() / seconds),
            server_resident: resident,
            client: session.environment.client_share(client, seconds),
        }
    }
}

/// Waits for `something`, but fails as soon as a thread fails.
async fn during(
    something: impl Future<Output = ()>,
    outcomes: &mut mpsc::Receiver<Result<Latencies, Error>>,
) -> Result<(), Error> {
    tokio::select! {
        () = something => Ok(()),
        ended = outcomes.recv() => match ended {
            Some(Err(error)) => Err(error),
            _ => Err(Error::Invalid("a thread of the benchmark ended too early".into())),
        },
    }
}

async fn show(progress: &Progress, counts: &Counts, duration: Duration) {
    let began = Instant::now();
    while let Some(left) = duration.checked_sub(began.elapsed()) {
        sleep(left.min(Progress::INTERVAL)).await;
        progress.count(counts.subscriptions.load(Relaxed), "subscriptions");
    }
}

async fn run_clients(
    grpc: &Grpc,
    counts: &Counts,
    clients: usize,
    reconnect: bool,
) -> Result<Latencies, Error> {
    let mut running: FuturesUnordered<_> = (0..clients)
        .map(|number| run_client(grpc, counts, number, reconnect))
        .collect();
    let mut all = Latencies::new();
    while let Some(latencies) = running.next().await {
        all.add(&latencies?);
    }
    Ok(all)
}

async fn run_client(
    grpc: &Grpc,
    counts: &Counts,
    number: usize,
    reconnect: bool,
) -> Result<Latencies, Error> {
    let mut latencies = Latencies::new();
    let filters = [format!("{}.c{number}", topic_prefix())];
    let mut kept = None;
    while !counts.ending.load(Relaxed) {
        let began = Instant::now();
        let (mut client, driver) = match kept.take() {
            Some(kept) => kept,
            None => with_timeout("connecting", Driver::open(grpc, 1)).await?,
        };
        with_timeout("subscribing", async {
            client.subscribe(&filters).await?.first().await
        })
        .await?;
        // The reader is gone here, which resets the stream.
        counts.subscriptions.fetch_add(1, Relaxed);
        if counts.measuring.load(Relaxed) {
            latencies.record(nanos(began.elapsed()));
        }
        if !reconnect {
            kept = Some((client, driver));
        }
    }
    Ok(latencies)
}

// ===== impl Snapshot =====

impl Snapshot {
    fn take(session: &Session, counts: &Counts) -> Result<Self, Error> {
        Ok(Self {
            at: Instant::now(),
            subscriptions: counts.subscriptions.load(Relaxed),
            server: session.server.cpu_time()?,
            client: CpuTime::of(std::process::id())?,
        })
    }
}

// ===== impl ChurnReport =====

impl ChurnReport {
    /// Returns the report as a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::default();
        table.section("subscribing and leaving");
        table.line(
            "rate",
            format_args!("{} subscriptions/s", count(self.subscriptions_per_second)),
        );
        table.line("window", format_args!("{:.2} s", self.seconds));
        table.latency("confirmed after", self.latency.as_ref());
        table.section("server");
        match (self.server_per_subscription, self.server_cores_busy) {
            (Some(cost), Some(busy)) => {
                table.line("processor, each", cost);
                table.line("processor", format_args!("{} of one core", percent(busy)));
            }
            _ => table.line(
                "processor, memory",
                "unknown; give the server's process id with --server-pid",
            ),
        }
        if let Some([before, after]) = self.server_resident {
            table.line(
                "memory",
                format_args!(
                    "{} before, {} after",
                    bytes(before as f64),
                    bytes(after as f64)
                ),
            );
        }
        table.client(self.client);
        table.environment(&self.environment);
        table.line("clients", self.clients);
        let kind = if self.reconnect {
            "a new one each time"
        } else {
            "one for each client"
        };
        table.line("connections", kind);
        table.finish()
    }
}

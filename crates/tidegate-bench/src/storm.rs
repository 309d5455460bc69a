//! `bench storm`: clients that all come at once, are cut, and all come back.

use std::{ops::Range, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    task::LocalSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    Error, Grpc, Latencies, Server,
    clock::nanos,
    fanout::topic_prefix,
    figures::Cost,
    latency::Distribution,
    payload::HEAD,
    progress::Progress,
    server::check_open_files,
    session::{ClientShare, Environment, Session},
    table::{Table, count, micros, percent},
    target::{Outgoing, Position, Publisher as _, Returning},
    thread::{run_local, spawn, with_timeout},
    usage::{CpuSpent, CpuTime},
};

/// The time that a storm may take. After it the clients that are not back are counted as lost.
const PATIENCE: Duration = Duration::from_secs(120);

/// The pauses before a client tries again whose connection failed, in milliseconds. Each client has one of its own.
const PAUSES: Range<u64> = 50..150;

/// The most events in one request of the publisher.
const BATCH: usize = 64;

/// Size of each payload in bytes.
const PAYLOAD: usize = 256;

/// The benchmark `storm`.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// Number of clients, each with a connection of its own; at least 1.
    pub clients: usize,
    /// Events that are published while all are away, for each to catch up on.
    pub missed: usize,
    /// How the connections end before the clients come back.
    pub cut: Cut,
}

/// The end of all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// The connections are reset, and the server goes on.
    Connections,
    /// The server is killed and started again, and has a new sequence space.
    Server,
}

/// The result of a [`Storm`].
#[derive(Debug, Clone, Serialize)]
pub struct StormReport {
    /// `storm`.
    pub benchmark: &'static str,
    /// The server, the machine and the cores.
    pub environment: Environment,
    /// Number of clients.
    pub clients: usize,
    /// Events that each client caught up on.
    pub missed: usize,
    /// How the connections ended.
    pub cut: Cut,
    /// Connections are opened, all at once, and the server accepts them.
    pub opened: Wave,
    /// The clients come for the first time, all at once.
    pub first: Wave,
    /// The clients come back, all at once.
    pub back: Wave,
}

/// Clients that come at once.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Wave {
    /// Seconds until the last one was there and had what it missed.
    pub seconds: f64,
    /// Clients divided by these seconds.
    pub clients_per_second: f64,
    /// Time until a client's connection was open.
    pub connected: Option<Distribution>,
    /// Time until a client was confirmed and had what it missed.
    pub caught_up: Option<Distribution>,
    /// Attempts beyond the first of each client.
    pub retries: u64,
    /// Processor time of the server for each client.
    pub server_per_client: Option<Cost>,
    /// Processor time of the server per second: 1 is one core.
    pub server_cores_busy: Option<f64>,
    /// The processor time of the benchmark itself.
    pub client: ClientShare,
}

/// The next thing for a thread to do.
#[derive(Debug)]
enum Step<T> {
    /// All its clients open connections and do nothing with them.
    Open {
        target: T,
        /// The moment from which the clients' times count.
        began: Instant,
    },
    /// All its clients come.
    Come {
        target: T,
        topic: String,
        /// The moment from which the clients' times count.
        began: Instant,
        /// Events that each has to catch up on, if it came before.
        missed: u64,
    },
    /// All its connections are cut.
    Cut,
}

/// The result of a step.
#[derive(Debug, Default)]
struct Done {
    connected: Latencies,
    caught_up: Latencies,
    /// The time until the last client was there.
    last: Duration,
    retries: u64,
}

/// The threads that hold the clients. They end when this is dropped.
struct Crew<T> {
    steps: Vec<mpsc::Sender<Step<T>>>,
    done: mpsc::Receiver<Result<Done, Error>>,
}

// ===== impl Storm =====

impl Storm {
    /// Runs the benchmark against the server of `session`.
    ///
    /// # Errors
    ///
    /// As for [`measure`](Self::measure).
    pub async fn run(&self, session: &Session, progress: &Progress) -> Result<StormReport, Error> {
        let (server, environment) = (&session.server, &session.environment);
        let waves = self.measure(Grpc::new, server, environment, progress).await;
        progress.clear();
        let [opened, first, back] = waves?;
        Ok(StormReport {
            benchmark: "storm",
            environment: environment.clone(),
            clients: self.clients,
            missed: self.missed,
            cut: self.cut,
            opened,
            first,
            back,
        })
    }

    /// Opens a connection for each client, and closes them; lets all clients come to `server`, cuts them, and lets them
    /// come back. The three waves are measured.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if a field is out of range or the process may open too few files, [`Error::Lost`] if a client
    /// does not get what it missed, and any other if a client is refused or the server cannot be restarted.
    pub async fn measure<T: Returning>(
        &self,
        target: impl Fn(&Server) -> T,
        server: &Server,
        environment: &Environment,
        progress: &Progress,
    ) -> Result<[Wave; 3], Error> {
        if self.clients == 0 {
            return Err(Error::Invalid("--clients must be at least 1".into()));
        }
        check_open_files(self.clients)?;
        let topic = format!("{}.storm", topic_prefix());
        let mut crew = Crew::start(self.clients, environment.client_threads.min(self.clients))?;
        progress.phase("opening");
        let opened = Readings::take(server)?;
        crew.order(|| Step::Open {
            target: target(server),
            began: opened.at,
        });
        let opened = self.wave(&opened, server, environment, &crew.all_done().await?)?;
        crew.order(|| Step::Cut);
        crew.all_done().await?;

        progress.phase("coming");
        let come = |target, missed, began| Step::Come {
            target,
            topic: topic.clone(),
            began,
            missed,
        };
        let first = Readings::take(server)?;
        crew.order(|| come(target(server), 0, first.at));
        let first = self.wave(&first, server, environment, &crew.all_done().await?)?;

        progress.phase("cutting");
        let restarted;
        let server = match self.cut {
            Cut::Connections => {
                crew.order(|| Step::Cut);
                crew.all_done().await?;
                server
            }
            Cut::Server => {
                restarted = server.restart().await?;
                crew.order(|| Step::Cut);
                crew.all_done().await?;
                &restarted
            }
        };
        let mut missed = 0;
        if T::RESUMES && self.missed > 0 {
            LocalSet::new()
                .run_until(self.publish(&target(server), &topic))
                .await?;
            missed = self.missed as u64;
        }

        progress.phase("coming back");
        let back = Readings::take(server)?;
        crew.order(|| come(target(server), missed, back.at));
        let back = self.wave(&back, server, environment, &crew.all_done().await?)?;
        Ok([opened, first, back])
    }

    /// Publishes what the clients miss.
    async fn publish(&self, target: &impl Returning, topic: &str) -> Result<(), Error> {
        let event = Outgoing {
            topic,
            head: [0; HEAD],
            size: PAYLOAD,
        };
        let mut publisher = with_timeout("connecting", target.publisher()).await?;
        let mut left = self.missed;
        while left > 0 {
            let batch = left.min(BATCH);
            with_timeout("publishing", publisher.publish(&vec![event; batch], false)).await?;
            left -= batch;
        }
        with_timeout("publishing", publisher.finish()).await?;
        Ok(())
    }

    fn wave(
        &self,
        before: &Readings,
        server: &Server,
        environment: &Environment,
        done: &Done,
    ) -> Result<Wave, Error> {
        let after = Readings::take(server)?;
        let elapsed = (after.at - before.at).as_secs_f64();
        let seconds = done.last.as_secs_f64();
        let spent = after.server.as_ref().zip(before.server.as_ref());
        let spent: Option<CpuSpent> = spent.map(|(after, before)| after.since(before));
        Ok(Wave {
            seconds,
            clients_per_second: self.clients as f64 / seconds,
            connected: done.connected.distribution(),
            caught_up: done.caught_up.distribution(),
            retries: done.retries,
            server_per_client: spent.and_then(|spent| Cost::each(spent, self.clients as u64)),
            server_cores_busy: spent.map(|spent| spent.seconds() / elapsed),
            client: environment.client_share(after.client.since(&before.client), elapsed),
        })
    }
}

/// The processor time of both processes at one moment.
struct Readings {
    at: Instant,
    server: Option<CpuTime>,
    client: CpuTime,
}

impl Readings {
    fn take(server: &Server) -> Result<Self, Error> {
        Ok(Self {
            server: server.cpu_time()?,
            client: CpuTime::of(std::process::id())?,
            at: Instant::now(),
        })
    }
}

// ===== impl Crew =====

impl<T: Returning> Crew<T> {
    /// Starts `threads` threads that share the clients.
    fn start(clients: usize, threads: usize) -> Result<Self, Error> {
        let (report, done) = mpsc::channel(threads);
        let mut steps = Vec::new();
        for thread in 0..threads {
            let own = (thread..clients).step_by(threads).len();
            let (sender, receiver) = mpsc::channel(1);
            let report = report.clone();
            steps.push(sender);
            spawn("clients", move || {
                let outcome = run_local(work(own, receiver, report.clone()));
                if let Err(error) = outcome {
                    // When the run has failed already, nobody receives this.
                    let _ = report.blocking_send(Err(error));
                }
            })?;
        }
        Ok(Self { steps, done })
    }

    /// Lets every thread take a step.
    fn order(&self, step: impl Fn() -> Step<T>) {
        for thread in &self.steps {
            // There is room: every thread was done with its step before. One that has ended has reported why.
            let _ = thread.try_send(step());
        }
    }

    /// Waits until every thread is done with its step.
    async fn all_done(&mut self) -> Result<Done, Error> {
        let mut all = Done::default();
        for _ in 0..self.steps.len() {
            let done = self.done.recv().await;
            let done = done.unwrap_or_else(|| {
                Err(Error::Invalid(
                    "a thread of the benchmark ended too early".into(),
                ))
            })?;
            all.add(&done);
        }
        Ok(all)
    }
}

impl Done {
    /// Records a client that is there.
    fn record(&mut self, connected: Duration, caught_up: Duration, retries: u64) {
        self.connected.record(nanos(connected));
        self.caught_up.record(nanos(caught_up));
        self.last = self.last.max(caught_up);
        self.retries += retries;
    }

    fn add(&mut self, other: &Self) {
        self.connected.add(&other.connected);
        self.caught_up.add(&other.caught_up);
        self.last = self.last.max(other.last);
        self.retries += other.retries;
    }
}

/// Takes the steps of one thread with its clients, until no more come.
async fn work<T: Returning>(
    clients: usize,
    mut steps: mpsc::Receiver<Step<T>>,
    report: mpsc::Sender<Result<Done, Error>>,
) -> Result<(), Error> {
    let (mut opened, mut connections) = (Vec::new(), Vec::new());
    let mut positions: Vec<Option<Position>> = vec![None; clients];
    let mut came = Vec::new();
    while let Some(step) = steps.recv().await {
        let mut done = Done::default();
        match step {
            Step::Cut => {
                opened.clear();
                connections.clear();
            }
            Step::Open { target, began } => {
                let mut opening: FuturesUnordered<_> = (0..clients)
                    .map(|_| persist(began, || target.open()))
                    .collect();
                while let Some(open) = opening.next().await {
                    let ((connection, at), retries) = open?;
                    done.record(at - began, at - began, retries);
                    opened.push(connection);
                }
            }
            Step::Come {
                target,
                topic,
                began,
                missed,
            } => {
                let mut coming: FuturesUnordered<_> = (0..clients)
                    .map(|number| {
                        let after = positions[number];
                        let (target, topic) = (&target, &topic);
                        async move {
                            let come = persist(began, || target.come(topic, after)).await;
                            come.map(|((arrival, _), retries)| (number, arrival, retries))
                        }
                    })
                    .collect();
                while let Some(arrival) = coming.next().await {
                    let (number, arrival, retries) = arrival?;
                    if arrival.events != missed {
                        return Err(Error::Lost(format!(
                            "a client that came back got {} of the {missed} events that it had missed",
                            arrival.events
                        )));
                    }
                    let (connected, caught_up) =
                        (arrival.connected - began, arrival.caught_up - began);
                    done.record(connected, caught_up, retries);
                    came.push((number, arrival.position));
                    connections.push(arrival.connection);
                }
                drop(coming);
                for (number, position) in came.drain(..) {
                    positions[number] = position;
                }
            }
        }
        let _ = report.send(Ok(done)).await;
    }
    Ok(())
}

/// Does what `attempt` does, and again if a connection fails. Returns the moment at which it was done, and how often it
/// was tried again.
async fn persist<O, F: Future<Output = Result<O, Error>>>(
    began: Instant,
    attempt: impl Fn() -> F,
) -> Result<((O, Instant), u64), Error> {
    let mut retries = 0;
    loop {
        let left = PATIENCE.saturating_sub(began.elapsed());
        match timeout(left, attempt()).await {
            Ok(Ok(done)) => return Ok(((done, Instant::now()), retries)),
            Ok(Err(Error::Connect { .. } | Error::Broken { .. })) if !left.is_zero() => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                return Err(Error::Lost(format!(
                    "a client was not back after {} s",
                    PATIENCE.as_secs()
                )));
            }
        }
        retries += 1;
        // Spread by the time at which each failed, so that they do not all come at once again.
        let spread = u64::from(began.elapsed().subsec_nanos()) % (PAUSES.end - PAUSES.start);
        sleep(Duration::from_millis(PAUSES.start + spread)).await;
    }
}

// ===== impl StormReport =====

impl StormReport {
    /// Returns the report as a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::default();
        self.opened
            .lines("all connections are opened at once", &mut table);
        self.first.lines("all clients come at once", &mut table);
        let cut = match self.cut {
            Cut::Connections => "all connections were cut, and all clients come back",
            Cut::Server => "the server was killed and started again, and all clients come back",
        };
        self.back.lines(cut, &mut table);
        table.line("caught up on", format_args!("{} events each", self.missed));
        table.client(self.back.client);
        table.environment(&self.environment);
        table.line("clients", count(self.clients as f64));
        table.finish()
    }
}

impl Wave {
    fn lines(&self, title: &str, table: &mut Table) {
        table.section(title);
        table.line(
            "rate",
            format_args!("{} clients/s", count(self.clients_per_second)),
        );
        for (label, all) in [
            ("connected after", self.connected),
            ("caught up after", self.caught_up),
        ] {
            let Some(all) = all else { continue };
            table.line(
                label,
                format_args!(
                    "p50 {}, p99 {}, last {}",
                    micros(all.p50_us),
                    micros(all.p99_us),
                    micros(all.max_us)
                ),
            );
        }
        if self.retries > 0 {
            table.line("further attempts", count(self.retries as f64));
        }
        match (self.server_per_client, self.server_cores_busy) {
            (Some(cost), Some(busy)) => {
                table.line("server, each", cost);
                table.line("server", format_args!("{} of one core", percent(busy)));
            }
            _ => table.line(
                "server",
                "unknown; give the server's process id with --server-pid",
            ),
        }
    }
}

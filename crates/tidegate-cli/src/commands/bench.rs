//! `tidegate bench`: measures a server.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use tidegate_bench::{
    Churn, Cores, Cut, Error, Fanout, Grpc, Idle, Ingest, Launch, Progress, ServerChoice, Session,
    Setup, Shape, Storm,
};
use tidegate_server::settings::duration;

use crate::{
    exit::{Exit, Failure},
    security::CredentialArgs,
    stdio,
};

/// Measure a server: deliveries, processor time, latency, memory
///
/// Without --server it starts a server from this same program, and ends it afterward. The
/// figures mean most when server and benchmark have cores of their own:
///
///   tidegate bench fanout --server-cores 0 --client-cores 1
///   tidegate bench fanout --server-cores 0 --client-cores 1 --subscribers 200 --rate 500
///
/// Every stream's accounts are verified: a run in which an event is neither delivered
/// nor counted by a gap fails and reports no figures.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    benchmark: Benchmark,

    /// Output format.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "table")]
    output: Output,

    #[command(flatten)]
    setup: SetupArgs,

    // The last flattened part: its heading applies to every flag after it.
    #[command(flatten)]
    credentials: CredentialArgs,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    Fanout(FanoutArgs),
    Publish(PublishArgs),
    Connect(ConnectArgs),
    Storm(StormArgs),
    Idle(IdleArgs),
}

/// The server, and the cores of server and benchmark.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server and cores")]
struct SetupArgs {
    /// URL of a running server. Without it, the benchmark starts one and ends it afterward.
    #[arg(long, global = true, value_name = "URL")]
    server: Option<String>,

    /// Process id of that server, on this machine, for its processor time and memory.
    #[arg(long, global = true, value_name = "PID", requires = "server")]
    server_pid: Option<u32>,

    /// Cores that the started server is held to, such as 0 or 0,2-3.
    #[arg(long, global = true, value_name = "CORES", conflicts_with = "server")]
    server_cores: Option<Cores>,

    /// Use TLS with the started server, with a certificate made for it. With --server, give a URL https://HOST:PORT
    /// instead.
    #[arg(long, global = true, conflicts_with = "server")]
    tls: bool,

    /// Cores that the benchmark is held to, such as 0 or 0,2-3.
    #[arg(long, global = true, value_name = "CORES")]
    client_cores: Option<Cores>,

    /// Threads that hold connections [default: one for each core of the benchmark]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
}

/// The times of every benchmark that measures a window.
#[derive(Debug, Args)]
struct TimeArgs {
    /// How long to measure.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    duration: Duration,

    /// How long to run before measuring.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    warm_up: Duration,
}

/// Publish to many subscribers
///
/// Without --rate, the publisher keeps to the pace of the slowest subscriber, unless
/// --ahead is 0. With --rate, latency is measured from the moment an event was due,
/// even if the publisher was late.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct FanoutArgs {
    /// Number of subscriptions.
    #[arg(long, value_name = "N", default_value_t = 100)]
    subscribers: usize,

    /// Connections to spread them over [default: by --streams-per-connection]
    #[arg(long, value_name = "N", conflicts_with = "streams_per_connection")]
    connections: Option<usize>,

    /// Subscriptions per connection.
    #[arg(long, value_name = "N", default_value_t = 1)]
    streams_per_connection: usize,

    /// Topics to publish to in turn, with --filter literal or wildcard.
    #[arg(long, value_name = "N", default_value_t = 1)]
    topics: usize,

    /// Filters of each subscriber.
    #[arg(long, value_name = "SHAPE", default_value = "literal")]
    filter: FilterArg,

    /// Size of each payload in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    payload: usize,

    /// Events per second. Without it, as fast as possible.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,

    /// Without --rate: how many events the publisher may be ahead of the slowest subscriber. 0 is no limit:
    /// subscribers then lose events that exceed their backlog.
    #[arg(long, value_name = "N", default_value_t = 512)]
    ahead: u64,

    /// The most events in one publish request.
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: usize,

    /// Connections that subscribe and then read nothing.
    #[arg(long, value_name = "N", default_value_t = 0)]
    stalled: usize,

    /// Keep the threads that hold subscribers from sleeping
    ///
    /// A server that sends to a thread that sleeps pays for waking it. With --rate, how often
    /// that happens can depend on chance, and so can the processor time of each delivery.
    #[arg(long)]
    awake: bool,

    /// HTTP/2 window of each stream in bytes: how much the server may send before the subscriber reads.
    #[arg(long, value_name = "BYTES", default_value_t = Grpc::WINDOW)]
    window: u32,

    #[command(flatten)]
    time: TimeArgs,
}

/// Publish as fast as the server accepts
#[derive(Debug, Args)]
struct PublishArgs {
    /// Connections that publish.
    #[arg(long, value_name = "N", default_value_t = 1)]
    publishers: usize,

    /// The most unanswered requests of each publisher.
    #[arg(long, value_name = "N", default_value_t = 8)]
    in_flight: usize,

    /// Events per request.
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: usize,

    /// Topics to publish to in turn.
    #[arg(long, value_name = "N", default_value_t = 1)]
    topics: usize,

    /// Size of each payload in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    payload: usize,

    /// Events per second, over all publishers. Without it, as fast as possible.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,

    /// Subscribers, each on its own connection; they get the topics in turn.
    #[arg(long, value_name = "N", default_value_t = 0)]
    subscribers: usize,

    #[command(flatten)]
    time: TimeArgs,
}

/// Subscribe and leave, over and over
#[derive(Debug, Args)]
struct ConnectArgs {
    /// Clients that do so concurrently.
    #[arg(long, value_name = "N", default_value_t = 16)]
    clients: usize,

    /// Open a new connection each time.
    #[arg(long)]
    reconnect: bool,

    #[command(flatten)]
    time: TimeArgs,
}

/// Let all clients come at once, cut them, and let them come back
///
/// Each client has a connection of its own. While all are away, events are published, and
/// each client that comes back has to get all that it missed.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct StormArgs {
    /// Number of clients.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    clients: usize,

    /// Events to catch up on.
    #[arg(long, value_name = "N", default_value_t = 10)]
    missed: usize,

    /// Kill the server and start it again, instead of cutting the connections.
    #[arg(long, conflicts_with = "server")]
    restart: bool,
}

/// Hold idle subscribers, and measure the server's memory
#[derive(Debug, Args)]
struct IdleArgs {
    /// Number of connections.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    connections: usize,

    /// Subscriptions per connection.
    #[arg(long, value_name = "N", default_value_t = 1)]
    streams_per_connection: usize,

    /// Filters of each subscriber.
    #[arg(long, value_name = "SHAPE", default_value = "literal")]
    filter: FilterArg,

    /// How long to measure the server's processor time while nothing happens.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    duration: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FilterArg {
    /// One of the topics, in turn.
    Literal,
    /// A wildcard that matches all topics.
    Wildcard,
    /// A topic of its own.
    Own,
    /// A topic of its own, and one that all share.
    OwnAndShared,
    /// A filter that no other subscriber has; all match the one topic.
    Distinct,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs: one JSON object.
    Json,
}

pub(crate) async fn run(args: BenchArgs) -> Result<(), Failure> {
    let session = args.setup.setup(&args.credentials)?.begin().await?;
    let progress = Progress::on_terminal();
    let outcome = args.benchmark.run(&session, &progress, args.output).await;
    progress.clear();
    session.end().await;
    let mut text = outcome?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    stdio::print(text)?;
    Ok(())
}

// ===== impl Benchmark =====

impl Benchmark {
    async fn run(
        self,
        session: &Session,
        progress: &Progress,
        output: Output,
    ) -> Result<String, Failure> {
        match self {
            Self::Fanout(args) => {
                let report = args.fanout()?.run(session, progress).await?;
                output.write(&report, || report.table())
            }
            Self::Publish(args) => {
                let report = args.ingest().run(session, progress).await?;
                output.write(&report, || report.table())
            }
            Self::Connect(args) => {
                let report = args.churn().run(session, progress).await?;
                output.write(&report, || report.table())
            }
            Self::Storm(args) => {
                let report = args.storm().run(session, progress).await?;
                output.write(&report, || report.table())
            }
            Self::Idle(args) => {
                let report = args.idle().run(session, progress).await?;
                output.write(&report, || report.table())
            }
        }
    }
}

impl Output {
    fn write(
        self,
        report: &impl Serialize,
        table: impl FnOnce() -> String,
    ) -> Result<String, Failure> {
        match self {
            Self::Table => Ok(table()),
            Self::Json => serde_json::to_string_pretty(report)
                .map_err(|error| Failure::new(Exit::Other, error)),
        }
    }
}

// ===== From arguments to benchmarks =====

impl SetupArgs {
    fn setup(&self, credentials: &CredentialArgs) -> Result<Setup, Failure> {
        let server = match &self.server {
            Some(url) => ServerChoice::Running {
                url: url.clone(),
                pid: self.server_pid,
                credentials: credentials.for_benchmark(self.server.as_deref())?,
            },
            None => ServerChoice::Child(self.launch()?),
        };
        Ok(Setup {
            server,
            client_cores: self.client_cores.clone(),
            threads: self.threads,
        })
    }

    fn launch(&self) -> Result<Launch, Failure> {
        let mut launch = Launch::tidegate(current_program()?);
        launch.cores.clone_from(&self.server_cores);
        Ok(match self.tls {
            true => launch.with_tls("--tls-certificate", "--tls-key")?,
            false => launch,
        })
    }
}

fn current_program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| {
        let message =
            format!("cannot find this program to start a server: {error}; name one with --server");
        Failure::new(Exit::Other, message)
    })
}

impl FanoutArgs {
    fn fanout(&self) -> Result<Fanout, Failure> {
        let streams_per_connection = match self.connections {
            Some(0) => {
                return Err(Failure::new(
                    Exit::Usage,
                    "--connections must be at least 1",
                ));
            }
            Some(connections) => self.subscribers.div_ceil(connections),
            None => self.streams_per_connection,
        };
        Ok(Fanout {
            subscribers: self.subscribers,
            streams_per_connection,
            topics: self.topics,
            shape: self.filter.into(),
            payload_bytes: self.payload,
            rate: self.rate,
            ahead: self.ahead,
            batch: self.batch,
            warm_up: self.time.warm_up,
            duration: self.time.duration,
            stalled: self.stalled,
            awake: self.awake,
            window_bytes: self.window,
        })
    }
}

impl PublishArgs {
    const fn ingest(&self) -> Ingest {
        Ingest {
            publishers: self.publishers,
            in_flight: self.in_flight,
            batch: self.batch,
            topics: self.topics,
            payload_bytes: self.payload,
            rate: self.rate,
            subscribers: self.subscribers,
            warm_up: self.time.warm_up,
            duration: self.time.duration,
        }
    }
}

impl ConnectArgs {
    const fn churn(&self) -> Churn {
        Churn {
            clients: self.clients,
            reconnect: self.reconnect,
            warm_up: self.time.warm_up,
            duration: self.time.duration,
        }
    }
}

impl StormArgs {
    const fn storm(&self) -> Storm {
        Storm {
            clients: self.clients,
            missed: self.missed,
            cut: match self.restart {
                true => Cut::Server,
                false => Cut::Connections,
            },
        }
    }
}

impl IdleArgs {
    fn idle(&self) -> Idle {
        Idle {
            connections: self.connections,
            streams_per_connection: self.streams_per_connection,
            shape: self.filter.into(),
            duration: self.duration,
        }
    }
}

impl From<FilterArg> for Shape {
    fn from(arg: FilterArg) -> Self {
        match arg {
            FilterArg::Literal => Self::Literal,
            FilterArg::Wildcard => Self::Wildcard,
            FilterArg::Own => Self::Own,
            FilterArg::OwnAndShared => Self::OwnAndShared,
            FilterArg::Distinct => Self::Distinct,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Invalid(_) => Exit::Usage,
            Error::Connect { .. } | Error::Broken { .. } | Error::Tls(_) => Exit::Unavailable,
            Error::Credentials(_) => Exit::Credentials,
            // Unauthenticated, and permission denied.
            Error::Status { code, .. } if matches!(code.as_str(), "16" | "7") => Exit::Credentials,
            Error::Status { .. } => Exit::Refused,
            Error::Violation(_) | Error::Lost(_) => Exit::Violation,
            _ => Exit::Other,
        };
        Self::new(exit, error)
    }
}

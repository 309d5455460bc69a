//! `tidegate serve`: the server.

use std::{
    error::Error as _,
    io::{self, Write as _},
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    pin::pin,
    time::Duration,
};

use clap::{Args, ValueEnum};
use tidegate_server::{BindError, Server, ServerConfig};
use tokio::sync::oneshot;

use crate::{
    args::{bytes, duration},
    exit::{Exit, Failure},
    memory,
    security::SecurityArgs,
    signals::Signals,
};

/// Run the server
///
/// Prints the address it listens on as its first line. On SIGINT or SIGTERM it tells every client where
/// to resume and ends when all have gone, or after --drain-timeout; a second signal ends it at once.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct ServeArgs {
    /// The address to listen on. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    listen: SocketAddr,

    /// How long connections have to end in good order.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    drain_timeout: Duration,

    /// What happens when a client id that is in use subscribes again.
    #[arg(long, value_name = "POLICY", default_value = "takeover")]
    client_ids: ClientIdsArg,

    /// Silence after which a stream gets a heartbeat, where the client does not say.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = heartbeat)]
    heartbeat: Duration,

    /// The most memory that events may hold, in history and for clients that are behind. Beyond, the oldest
    /// go, and whoever had still to see one is told [default: a quarter of the machine's memory, or of the
    /// control group's limit if that is less].
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    memory_budget: Option<u64>,

    /// How long a client may leave events unread, taking none, until it is stalled. 0 is for ever.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    stall_timeout: Duration,

    /// What happens to a stalled client. One that asked for --overflow disconnect is always closed.
    #[arg(long, value_name = "POLICY", default_value = "park")]
    on_stall: OnStallArg,

    #[command(flatten)]
    connections: ConnectionArgs,

    #[command(flatten)]
    security: SecurityArgs,

    #[command(flatten)]
    history: HistoryArgs,

    #[command(flatten)]
    limits: LimitArgs,
}

/// What connections are let in, and for how long.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connections")]
struct ConnectionArgs {
    /// The most connections at once; beyond, they are closed as they come. The server refuses to start if
    /// it may not open as many files [default: as many as it may open].
    #[arg(long, value_name = "N")]
    max_connections: Option<NonZeroUsize>,

    /// The most connections at once from one address: IPv4, or the first 64 bits of IPv6. Leave it out
    /// behind a proxy [default: no cap].
    #[arg(long, value_name = "N")]
    max_connections_per_address: Option<NonZeroUsize>,

    /// How old a connection may become, give or take a tenth. Then its streams are told where to resume and
    /// it ends, so that clients behind a load balancer find servers that were added. 0 is for ever.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    max_connection_age: Duration,

    /// How long a connection has to end when it has reached its age.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    max_connection_age_grace: Duration,

    /// The most calls open at once on one connection.
    #[arg(long, value_name = "N", default_value = "256")]
    max_streams: NonZeroU32,

    /// How long a new connection may take until it speaks HTTP/2.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = deadline)]
    preface_timeout: Duration,

    /// Silence after which a peer is asked for a sign of life.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = deadline)]
    keep_alive_interval: Duration,

    /// How long it has to answer.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = deadline)]
    keep_alive_timeout: Duration,

    /// How long a peer may take nothing of what it is sent before its connection is cut.
    #[arg(long, value_name = "DURATION", default_value = "40s", value_parser = deadline)]
    write_timeout: Duration,
}

/// How much is kept for replay.
#[derive(Debug, Args)]
#[command(next_help_heading = "History")]
struct HistoryArgs {
    /// The most events in history. An event goes when any one limit is reached; 0 turns history off.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    history_events: usize,

    /// The most bytes in history.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = bytes)]
    history_bytes: u64,

    /// The greatest age of an event in history.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    history_age: Duration,
}

/// What requests are accepted.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits on requests")]
struct LimitArgs {
    /// How long a call may take to send its request.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = deadline)]
    request_timeout: Duration,

    /// The most filters in one subscription.
    #[arg(long, value_name = "N", default_value_t = 1_024)]
    max_filters: usize,

    /// The most events in one publish.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    max_publish_events: usize,

    /// The most bytes in one publish: encoded events.
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = bytes)]
    max_publish_bytes: u64,

    /// The most bytes in one event: encoded, with topic, key and attributes.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = bytes)]
    max_event_bytes: u64,
}

const AFTER_HELP: &str = "\
Try it, from two other terminals:
  tidegate sub 'orders.>'
  tidegate pub orders.eu.created 'order 17'

`tidegate --help` lists the exit codes.";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ClientIdsArg {
    /// The newest stream takes over; the old one ends.
    Takeover,
    /// The newest stream is refused.
    Reject,
    /// A client may hold several streams.
    Several,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnStallArg {
    /// It stays, at the cost of its place and of what its limits admit.
    Park,
    /// Its stream ends.
    Close,
}

pub(crate) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let server = Server::bind(args.config()).await?;
    // Before anyone knows the address, so that no signal is missed.
    let mut signals = Signals::listen()?;
    announce(server.local_addr())?;
    tokio::spawn(memory::give_back(server.hub().clone()));
    let (stop, stopped) = oneshot::channel::<()>();
    let mut serving = pin!(server.serve(async { _ = stopped.await }));
    let report = tokio::select! {
        report = &mut serving => report,
        () = signals.next() => {
            drop(stop);
            tokio::select! {
                report = &mut serving => report,
                () = signals.next() => {
                    return Err(Failure::new(Exit::Interrupted, "ended at once by a second signal"));
                }
            }
        }
    };
    tracing::info!(
        connections_drained = report.connections_drained,
        connections_cut = report.connections_cut,
        streams_drained = report.streams_drained,
        streams_cut = report.streams_cut,
        "ended"
    );
    Ok(())
}

/// Programs that start a server read its address here, so it goes out at once.
fn announce(address: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()
}

/// A heartbeat as clients may ask for it too.
fn heartbeat(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(3_600);
    allowed
        .contains(&interval)
        .then_some(interval)
        .ok_or_else(|| "must be from 1s to 1h".into())
}

/// A time that cannot be none.
fn deadline(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    (!time.is_zero())
        .then_some(time)
        .ok_or_else(|| "must be more than 0".into())
}

impl ServeArgs {
    fn config(&self) -> ServerConfig {
        let mut config = ServerConfig {
            listen: self.listen,
            drain_timeout: self.drain_timeout,
            client_ids: self.client_ids.into(),
            memory_budget: self.memory_budget,
            max_connections: self.connections.max_connections.map(NonZeroUsize::get),
            max_connections_per_address: self
                .connections
                .max_connections_per_address
                .map(NonZeroUsize::get),
            ..ServerConfig::default()
        };
        config.tls = self.security.tls();
        config.auth = self.security.auth();
        let age = self.connections.max_connection_age;
        config.max_connection_age = (!age.is_zero()).then_some(age);
        config.max_connection_age_grace = self.connections.max_connection_age_grace;
        config.http2.max_concurrent_streams = self.connections.max_streams.get();
        config.http2.preface_timeout = self.connections.preface_timeout;
        config.http2.keep_alive_interval = self.connections.keep_alive_interval;
        config.http2.keep_alive_timeout = self.connections.keep_alive_timeout;
        config.http2.write_timeout = self.connections.write_timeout;
        config.http2.tcp_user_timeout = self.connections.write_timeout;
        config.sweep.stall_timeout = (!self.stall_timeout.is_zero()).then_some(self.stall_timeout);
        config.sweep.close_stalled = self.on_stall == OnStallArg::Close;
        config.history.max_events = self.history.history_events;
        config.history.max_bytes = self.history.history_bytes;
        config.history.max_age = self.history.history_age;
        config.service.heartbeat_interval = self.heartbeat;
        config.service.request_timeout = self.limits.request_timeout;
        config.service.max_filters = self.limits.max_filters;
        config.service.publish.max_events = self.limits.max_publish_events;
        config.service.publish.max_batch_bytes =
            usize::try_from(self.limits.max_publish_bytes).unwrap_or(usize::MAX);
        config.service.publish.max_event_bytes =
            usize::try_from(self.limits.max_event_bytes).unwrap_or(usize::MAX);
        config
    }
}

impl From<ClientIdsArg> for tidegate_server::ClientIdPolicy {
    fn from(arg: ClientIdsArg) -> Self {
        match arg {
            ClientIdsArg::Takeover => Self::Takeover,
            ClientIdsArg::Reject => Self::Reject,
            ClientIdsArg::Several => Self::Several,
        }
    }
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        let cause = error
            .source()
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        Self::new(Exit::Other, format!("{error}{cause}"))
    }
}

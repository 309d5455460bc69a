//! `tidegate clients`, `publishers`, `kick` and `stats`: inspect a running server, and disconnect its clients.

use std::{cmp::Reverse, io, time::Duration};

use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tidegate_client::{
    GetServerResponse, ListOptions, Overflow, Position, PublishStreamState, Statistics,
    SubscriptionOrder, SubscriptionState,
};

use crate::{
    exit::{Exit, Failure},
    server_args::ServerArgs,
    stdio,
};

/// List subscriptions, the worst first
///
/// Shows each stream with its client, address and principal, its backlog and lag, and its losses: those that it was told
/// of, and those that are certain and that its next gap will tell of. The server must offer
/// the admin service: it does on a loopback address, where callers must authenticate, or with --admin. Where callers
/// must authenticate, your principal needs a rule with `admin = true`.
#[derive(Debug, Args)]
pub(crate) struct ClientsArgs {
    /// Order of the list.
    #[arg(long, value_name = "ORDER", default_value = "backlog")]
    sort: Sort,

    /// Show at most N streams; 0 shows all.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,

    /// Show only the streams of this client.
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    server: ServerArgs,
}

/// List open publish streams, those that do not read first
///
/// Shows each call of PublishStream with its address and principal, the requests and events that it has published, the
/// bytes of answers that its client has not taken, and the time for which it has taken none of them: after the server's
/// stall_timeout such a stream is reset. `tidegate pub` with lines on standard input, and the publishers of the client
/// libraries, are such streams; a single Publish is not. The server must offer the admin service: it does on a loopback
/// address, where callers must authenticate, or with --admin. Where callers must authenticate, your principal needs a rule
/// with `admin = true`.
#[derive(Debug, Args)]
pub(crate) struct PublishersArgs {
    /// Order of the list.
    #[arg(long, value_name = "ORDER", default_value = "unread")]
    sort: PublisherSort,

    /// Show at most N streams; 0 shows all.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    server: ServerArgs,
}

/// Disconnect a client
///
/// Ends its streams with a status that tells it not to reconnect by itself. Exits with 1 if the client has no stream.
#[derive(Debug, Args)]
pub(crate) struct KickArgs {
    /// Id of the client.
    client_id: String,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    server: ServerArgs,
}

/// Show a server's version, state and counters
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
struct OutputArgs {
    /// Output format.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs: one JSON object per line.
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sort {
    /// The oldest first.
    Since,
    /// The most events behind first.
    Backlog,
    /// Behind for the longest time first.
    Lag,
    /// The most events lost first.
    Losses,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PublisherSort {
    /// The oldest first.
    Since,
    /// The one that has taken no answer for the longest time first.
    Unread,
}

pub(crate) async fn clients(args: ClientsArgs) -> Result<(), Failure> {
    let mut admin = args.server.client()?.admin();
    let options = ListOptions {
        order: args.sort.into(),
        client_id: args.client_id,
        max_results: (args.limit > 0).then_some(args.limit),
    };
    let subscriptions = admin.subscriptions(&options).await?;
    let rows: Vec<_> = subscriptions.iter().map(Row::of).collect();
    match args.output.output {
        Output::Json => print_json_lines(&rows),
        Output::Table => print_table(&COLUMNS, rows.iter().map(Row::cells)),
    }
}

pub(crate) async fn publishers(args: PublishersArgs) -> Result<(), Failure> {
    let mut admin = args.server.client()?.admin();
    let streams = admin.publish_streams().await?;
    let mut rows: Vec<_> = streams.iter().map(PublisherRow::of).collect();
    // The server lists the oldest first, and the sort keeps that order among equals.
    if matches!(args.sort, PublisherSort::Unread) {
        rows.sort_by_key(|row| Reverse(row.unread_for));
    }
    if args.limit > 0 {
        rows.truncate(args.limit);
    }
    match args.output.output {
        Output::Json => print_json_lines(&rows),
        Output::Table => print_table(&PUBLISHER_COLUMNS, rows.iter().map(PublisherRow::cells)),
    }
}

pub(crate) async fn kick(args: KickArgs) -> Result<(), Failure> {
    let mut admin = args.server.client()?.admin();
    let disconnected = admin.disconnect(&*args.client_id).await?;
    match args.output.output {
        Output::Json => print_json(&Kicked { disconnected })?,
        Output::Table if disconnected == 1 => stdio::print("1 stream ended\n")?,
        Output::Table => stdio::print(format!("{disconnected} streams ended\n"))?,
    }
    match disconnected {
        0 => Err(Failure::new(
            Exit::Other,
            format!(
                "client {} has no stream on this server; `tidegate clients` lists the clients that have",
                args.client_id
            ),
        )),
        _ => Ok(()),
    }
}

pub(crate) async fn stats(args: StatsArgs) -> Result<(), Failure> {
    let mut admin = args.server.client()?.admin();
    let response = admin.server().await?;
    let stats = Stats::of(&response);
    match args.output.output {
        Output::Json => print_json(&stats),
        Output::Table => print_table(&["NUMBER", "VALUE"], stats.cells()?),
    }
}

impl From<Sort> for SubscriptionOrder {
    fn from(sort: Sort) -> Self {
        match sort {
            Sort::Since => Self::Since,
            Sort::Backlog => Self::Backlog,
            Sort::Lag => Self::Lag,
            Sort::Losses => Self::Losses,
        }
    }
}

// ===== JSON: part of the interface; names may be added, but never change =====

/// A subscription, as `clients` prints it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    client_id: &'a str,
    subscription_id: &'a str,
    principal: &'a str,
    address: &'a str,
    filters: &'a [String],
    overflow: &'static str,
    max_events: u32,
    max_bytes: u64,
    since: Option<String>,
    next_index: u64,
    backlog: u64,
    lag_seconds: f64,
    delivered_events: u64,
    lost_events: u64,
    conflated_events: u64,
    pending_lost_events: u64,
    pending_conflated_events: u64,
    stalled: bool,
}

/// A publish stream, as `publishers` prints it.
#[derive(Debug, Serialize)]
struct PublisherRow<'a> {
    publish_stream_id: &'a str,
    principal: &'a str,
    address: &'a str,
    since: Option<String>,
    requests: u64,
    events: u64,
    unread_bytes: u64,
    unread_seconds: Option<f64>,
    #[serde(skip)]
    unread_for: Option<Duration>,
}

#[derive(Debug, Serialize)]
struct Kicked {
    disconnected: u32,
}

#[derive(Debug, Serialize)]
struct Stats {
    version: String,
    ready: bool,
    started: Option<String>,
    position: Option<String>,
    #[serde(flatten)]
    numbers: Numbers,
}

/// Makes a struct of every number in [`Statistics`]: a new one does not compile until it is listed here.
macro_rules! numbers {
    ($($name:ident),+) => {
        #[derive(Debug, Serialize)]
        struct Numbers { $($name: u64),+ }

        impl From<Statistics> for Numbers {
            fn from(Statistics { $($name),+ }: Statistics) -> Self {
                Self { $($name),+ }
            }
        }
    };
}

numbers!(
    published_events,
    matched_deliveries,
    replayed_events,
    delivered_events,
    lost_overflow,
    lost_conflated,
    lost_evicted,
    abandoned_events,
    subscriptions,
    stalled_subscriptions,
    clients,
    feeds,
    history_events,
    history_bytes,
    retained_bytes,
    memory_budget_bytes,
    connections,
    refused_connections,
    quota_refusals,
    quota_observed,
    pending_lost_events
);

impl<'a> Row<'a> {
    fn of(state: &'a SubscriptionState) -> Self {
        let limits = state.limits.unwrap_or_default();
        Self {
            client_id: &state.client_id,
            subscription_id: &state.subscription_id,
            principal: &state.principal,
            address: &state.address,
            filters: &state.filters,
            overflow: overflow(limits.overflow()),
            max_events: limits.max_events,
            max_bytes: limits.max_bytes,
            since: time(state.since),
            next_index: state.next_index,
            backlog: state.backlog,
            lag_seconds: state.lag.map_or(Duration::ZERO, duration).as_secs_f64(),
            delivered_events: state.delivered_events,
            lost_events: state.lost_events,
            conflated_events: state.conflated_events,
            pending_lost_events: state.pending_lost_events,
            pending_conflated_events: state.pending_conflated_events,
            stalled: state.stalled,
        }
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.client_id.into(),
            self.address.into(),
            self.principal.into(),
            self.backlog.to_string(),
            seconds(Duration::from_secs_f64(self.lag_seconds)),
            self.lost_events.to_string(),
            self.pending_lost_events.to_string(),
            self.conflated_events.to_string(),
            self.next_index.to_string(),
            self.overflow.into(),
            if self.stalled { "stalled" } else { "" }.into(),
            self.since.clone().unwrap_or_default(),
            self.filters.join(" "),
        ]
    }
}

const COLUMNS: [&str; 13] = [
    "CLIENT",
    "ADDRESS",
    "PRINCIPAL",
    "BACKLOG",
    "LAG",
    "LOST",
    "PENDING LOSS",
    "CONFLATED",
    "INDEX",
    "OVERFLOW",
    "STATE",
    "SINCE",
    "FILTERS",
];

impl<'a> PublisherRow<'a> {
    fn of(state: &'a PublishStreamState) -> Self {
        let unread_for = state.unread_for.map(duration);
        Self {
            publish_stream_id: &state.publish_stream_id,
            principal: &state.principal,
            address: &state.address,
            since: time(state.since),
            requests: state.requests,
            events: state.events,
            unread_bytes: state.unread_bytes,
            unread_seconds: unread_for.map(|time| time.as_secs_f64()),
            unread_for,
        }
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.publish_stream_id.into(),
            self.address.into(),
            self.principal.into(),
            self.requests.to_string(),
            self.events.to_string(),
            self.unread_bytes.to_string(),
            self.unread_for.map(seconds).unwrap_or_default(),
            self.since.clone().unwrap_or_default(),
        ]
    }
}

const PUBLISHER_COLUMNS: [&str; 8] = [
    "STREAM",
    "ADDRESS",
    "PRINCIPAL",
    "REQUESTS",
    "EVENTS",
    "UNREAD",
    "UNREAD FOR",
    "SINCE",
];

impl Stats {
    fn of(response: &GetServerResponse) -> Self {
        let position = response.position;
        Self {
            version: response.version.clone(),
            ready: response.ready,
            started: time(response.started),
            position: position.map(|position| Position::from(position).to_string()),
            numbers: response.statistics.unwrap_or_default().into(),
        }
    }

    /// Rows of the table: each member of the JSON form, by its name.
    fn cells(&self) -> Result<impl Iterator<Item = Vec<String>>, Failure> {
        let object = serde_json::to_value(self).map_err(io::Error::from)?;
        let members = object.as_object().cloned().unwrap_or_default();
        Ok(members.into_iter().map(|(name, value)| {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), ToOwned::to_owned);
            vec![name, text]
        }))
    }
}

const fn overflow(overflow: Overflow) -> &'static str {
    match overflow {
        Overflow::Unspecified | Overflow::DropOldest => "drop-oldest",
        Overflow::Conflate => "conflate",
        Overflow::Disconnect => "disconnect",
    }
}

fn time(time: Option<prost_types::Timestamp>) -> Option<String> {
    let time = time?;
    let time = Timestamp::new(time.seconds, time.nanos).ok()?;
    Some(format!("{time:.0}"))
}

fn duration(duration: prost_types::Duration) -> Duration {
    duration.try_into().unwrap_or_default()
}

/// A time in whole seconds, as in `1m5s`.
fn seconds(time: Duration) -> String {
    let time = SignedDuration::from_secs(time.as_secs().try_into().unwrap_or(i64::MAX));
    format!("{time:#}").replace(' ', "")
}

// ===== printing =====

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print_json_lines(&[value])
}

fn print_json_lines(values: &[impl Serialize]) -> Result<(), Failure> {
    let mut lines = String::new();
    for value in values {
        lines.push_str(&serde_json::to_string(value).map_err(io::Error::from)?);
        lines.push('\n');
    }
    Ok(stdio::print(lines)?)
}

/// Prints columns as wide as their widest cell, without control characters: a client chooses its own id and filters, and
/// must not be able to write to an operator's terminal.
fn print_table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Result<(), Failure> {
    let head = head.iter().map(ToString::to_string).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head)
        .chain(rows.map(without_controls))
        .collect();
    let widths = widths(&rows);
    let lines = rows.iter().map(|row| padded_line(row, &widths) + "\n");
    Ok(stdio::print(lines.collect::<String>())?)
}

fn without_controls(row: Vec<String>) -> Vec<String> {
    let clean = |cell: String| cell.replace(char::is_control, "\u{fffd}");
    row.into_iter().map(clean).collect()
}

fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = 0..rows[0].len();
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    columns.map(|column| widest(column).unwrap_or(0)).collect()
}

fn padded_line(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths);
    let padded: Vec<_> = cells
        .map(|(cell, width)| format!("{cell:width$}"))
        .collect();
    padded.join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "LONG"], ["abc", "x"]].map(|row| row.map(ToOwned::to_owned).to_vec());
        let widths = widths(&rows);
        let lines: Vec<_> = rows.iter().map(|row| padded_line(row, &widths)).collect();
        assert_eq!(lines, ["A    LONG", "abc  x"]);
    }

    #[test]
    fn a_client_cannot_write_to_the_terminal() {
        assert_eq!(
            without_controls(vec!["a\u{1b}[2J".into()]),
            ["a\u{fffd}[2J"]
        );
    }
}

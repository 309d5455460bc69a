//! `tidegate sub`: prints the updates of a subscription.

use std::{io, mem, time::Duration};

use clap::{Args, ValueEnum};
use futures_util::FutureExt as _;
use tidegate_client::{Error, Overflow, Position, SubscribeOptions, Subscription, Update};
use tidegate_server::settings::{bytes, duration};

use crate::{
    exit::Failure,
    output::{Format, Renderer, Target},
    server_args::ServerArgs,
    signals, stdio,
};

/// Bytes of output that are written at once; fewer when nothing more is ready.
const BUFFER: usize = 64 * 1024;

/// Print events as they arrive
///
/// Shows the events of all topics that match one of the filters, from now on or,
/// with --replay or --resume, from history first. Reconnects when the connection
/// breaks, and resumes where it stopped. Events that this subscriber will never
/// get are shown as a gap, with their count and the reason.
///
/// Ends on Ctrl-C, after --count events, when it writes to a closed output, or
/// when the server answers with an error that a retry would not change.
///
/// Examples:
///
///   Everything, from now on:
///     tidegate sub '>'
///   The last 10 orders and the new ones of every region:
///     tidegate sub 'orders.*.created' --replay 10
///   The newest price of each item, at most twice a second:
///     tidegate sub 'prices.>' --overflow conflate --min-interval 500ms
///   One payload, for a script:
///     tidegate sub jobs.17.done --count 1 --output raw
///   From one server to another:
///     tidegate sub 'logs.>' --output raw | tidegate pub logs.copy --server b:50051
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = AFTER_HELP)]
pub(crate) struct SubArgs {
    /// Topics, or patterns: `*` is one token, `>` at the end one or more.
    #[arg(required = true, value_name = "FILTER")]
    filters: Vec<String>,

    /// Client id. A second subscriber with the same id takes over from the first. Without it the server assigns one.
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,

    /// Start with the newest N matching events in history.
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    replay: Option<u32>,

    /// Start after this position: the epoch as 16 lower-case hexadecimal digits, a colon, the sequence.
    #[arg(long, value_name = "EPOCH:SEQUENCE")]
    resume: Option<Position>,

    /// How many events this subscriber may be behind before --overflow applies. The server may allow fewer.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..))]
    max_events: u32,

    /// How many bytes this subscriber may be behind before --overflow applies. The server may allow fewer.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = max_bytes)]
    max_bytes: u64,

    /// Policy for when this subscriber is too far behind.
    #[arg(long, value_name = "POLICY", default_value = "drop-oldest")]
    overflow: OverflowArg,

    /// How long the server may be silent before it sends a heartbeat, from 1s to 1h. After three times as long
    /// without a response the connection counts as broken.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = heartbeat)]
    heartbeat: Duration,

    /// Receive events at most once per interval, up to 1h [default: as they are published].
    #[arg(long, value_name = "DURATION", value_parser = min_interval)]
    min_interval: Option<Duration>,

    /// End when the connection breaks, instead of reconnecting.
    #[arg(long)]
    no_reconnect: bool,

    /// End after N events.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Output format.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,

    // Last: the heading of its part on credentials applies to every flag after it.
    #[command(flatten)]
    server: ServerArgs,
}

const AFTER_HELP: &str = "\
Text output:
  One line per event: time, topic, [key] and {attributes} if it has any, payload.
  Control characters are escaped, and so is everything that is not ASCII in a
  payload that is not UTF-8. Lines that begin with `#` report on the connection; a
  line that begins with `!` is a gap. Heartbeats are not shown, and while the server
  cannot be reached the reason is shown when it changes. Colors are for terminals
  only, and not if NO_COLOR is set.

Raw output:
  The bytes of each payload as they are, and a newline, which tells payloads apart
  only if they have none in them. Gaps and changes of the connection go to standard
  error.

JSON output:
  One object per line, with a `type`:
    subscribed    client_id, subscription_id, position, next_index,
                  limits {max_events, max_bytes, overflow}
    event         sequence, topic, payload (or payload_base64 if it is not
                  UTF-8), key and attributes if there are any, time
    gap           first_sequence, last_sequence, count, reason;
                  a count of 0 is an unknown number
    heartbeat     position
    caught_up     position: the replay has ended
    going_away    resume_after, reconnect_after, reason
    reconnecting  code, message, retry_in, attempt; reason if the server gave one
    ended         code, message; reason if the server gave one: an error follows
  A position is EPOCH:SEQUENCE, as --resume takes it. To resume after an event,
  take the epoch of the last `subscribed` and the event's sequence. Durations are
  seconds with an `s`, such as 0.25s.

`tidegate --help` lists the exit codes.";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OverflowArg {
    /// Drop the oldest events; a gap says how many.
    DropOldest,
    /// Keep the newest event of each topic and key; a gap counts the others.
    Conflate,
    /// End the stream.
    Disconnect,
}

/// Writes updates to standard output.
struct Printer {
    renderer: Renderer,
    /// Rendered bytes that are not written yet.
    ready: Vec<u8>,
    /// Events until the end; `None` without --count.
    events_left: Option<u64>,
}

pub(crate) async fn run(args: SubArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let subscription = client.subscribe(args.options());
    let printer = Printer {
        renderer: Renderer::for_stdout(args.output),
        ready: Vec::new(),
        events_left: args.count,
    };
    tokio::select! {
        biased;
        interrupted = signals::interrupted() => Ok(interrupted?),
        outcome = printer.run(subscription) => outcome,
    }
}

/// The longest interval of any kind.
const MAX_INTERVAL: Duration = Duration::from_secs(3600);

/// Parses an interval of heartbeats.
fn heartbeat(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        interval if (Duration::from_secs(1)..=MAX_INTERVAL).contains(&interval) => Ok(interval),
        _ => Err("must be from 1s to 1h".into()),
    }
}

/// Parses an interval between releases. 0 is none.
fn min_interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        interval if interval <= MAX_INTERVAL => Ok(interval),
        _ => Err("must be at most 1h".into()),
    }
}

/// Parses a size that is not 0, which on the wire means the server's default.
fn max_bytes(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("must be at least 1".into()),
        bytes => Ok(bytes),
    }
}

impl SubArgs {
    fn options(&self) -> SubscribeOptions {
        let mut options = SubscribeOptions::new(&self.filters)
            .client_id(self.client_id.as_deref().unwrap_or_default())
            .max_events(self.max_events)
            .max_bytes(self.max_bytes)
            .overflow(self.overflow.into())
            .heartbeat_interval(self.heartbeat);
        if let Some(count) = self.replay {
            options = options.replay_last(count);
        }
        if let Some(position) = self.resume {
            options = options.resume_after(position);
        }
        if let Some(interval) = self.min_interval {
            options = options.min_interval(interval);
        }
        if self.no_reconnect {
            options = options.no_reconnect();
        }
        options
    }
}

impl From<OverflowArg> for Overflow {
    fn from(arg: OverflowArg) -> Self {
        match arg {
            OverflowArg::DropOldest => Self::DropOldest,
            OverflowArg::Conflate => Self::Conflate,
            OverflowArg::Disconnect => Self::Disconnect,
        }
    }
}

impl Printer {
    /// Prints until the subscription ends, or after the last event that was asked for.
    async fn run(mut self, mut subscription: Subscription) -> Result<(), Failure> {
        while self.events_left != Some(0) {
            let Some(update) = self.next(&mut subscription).await? else {
                break;
            };
            match update {
                Ok(update) => self.print(&update).await?,
                Err(error) => {
                    self.renderer.render_end(&mut self.ready, &error)?;
                    self.flush().await?;
                    return Err(error.into());
                }
            }
        }
        Ok(self.flush().await?)
    }

    /// Returns the next update. Flushes before it waits, so that no line is held back.
    async fn next(
        &mut self,
        subscription: &mut Subscription,
    ) -> io::Result<Option<Result<Update, Error>>> {
        if let Some(update) = subscription.next().now_or_never() {
            return Ok(update);
        }
        self.flush().await?;
        Ok(subscription.next().await)
    }

    async fn print(&mut self, update: &Update) -> io::Result<()> {
        let before = self.ready.len();
        if self.renderer.render(&mut self.ready, update)? == Target::Report {
            let line = self.ready.split_off(before);
            let line = String::from_utf8_lossy(&line);
            stdio::report_aside(line.trim_end().to_owned()).await;
        }
        if let (Update::Event(_), Some(left)) = (update, &mut self.events_left) {
            *left -= 1;
        }
        if self.ready.len() >= BUFFER {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.ready.is_empty() {
            return Ok(());
        }
        let (ready, written) = stdio::print_aside(mem::take(&mut self.ready)).await;
        self.ready = ready;
        self.ready.clear();
        written
    }
}

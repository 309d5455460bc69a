//! `tidegate pub`: publishes one event, or one for each line of standard input.

use std::{
    collections::VecDeque,
    fmt, fs,
    io::{self, IsTerminal as _, Read as _},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};
use tidegate_client::{
    Backoff, Client, Error, NewEvent, Progress, PublishFailure, Publisher, PublisherOptions,
    PublisherState,
};
use tokio::time::{sleep, timeout};

use crate::{
    exit::{Exit, Failure},
    lines::{Line, Lines},
    server_args::ServerArgs,
    signals::Signals,
    stdio::{self, Stdin},
};

/// The largest event, in bytes: 64 times what a server accepts by default (1 MiB).
const MAX_EVENT: usize = 64 * 1024 * 1024;

/// Time for the server to answer what is in flight, after a signal.
const INTERRUPT_GRACE: Duration = Duration::from_secs(5);

/// Lines that were left out and are reported one by one. Those after them are only counted.
const MAX_REPORTS: u64 = 100;

/// Publish one event, or one for each line of standard input
///
/// With PAYLOAD or --file, publishes one event. Without, publishes each line of
/// standard input as an event, as soon as it arrives. A line may hold any bytes; an
/// empty line is an event with an empty payload; the line ending (LF or CR LF) is
/// not part of the payload.
///
/// Lines are taken only while the server accepts them. When the connection breaks,
/// the command reconnects and goes on. If it broke while lines were sent and not
/// answered, they may or may not have been published, and the command ends with 3,
/// unless --resend says to publish them again. Lines go out in batches, each accepted
/// as a whole or not at all.
///
/// At its end, whatever ended it, the command says how many events the server
/// accepted, and on standard error how many may have been published, were left out, or
/// were read and not published. None is read and not counted.
///
/// Examples:
///
///   tidegate pub orders.eu.created '{"order": 17}' --key 17
///   tidegate pub pictures.cat --file cat.jpeg
///   tidegate pub reports.daily - < report.txt
///   tail -F /var/log/syslog | tidegate pub logs.myhost --attribute source=syslog
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "`tidegate --help` lists the exit codes."
)]
pub(crate) struct PubArgs {
    /// Topic: dot-separated tokens, without wildcards. `$client.ID` reaches only the client ID.
    topic: String,

    /// Payload of the event; `-` stands for all of standard input. Without it, each line of standard input is an event.
    /// Put `--` before a payload that begins with a hyphen; a number needs none.
    #[arg(allow_negative_numbers = true)]
    payload: Option<String>,

    /// File whose bytes, as they are, are the payload of the event; `-` stands for standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "payload")]
    file: Option<PathBuf>,

    /// Key of the event: conflating subscribers keep the newest event of each topic and key.
    #[arg(long, default_value = "", hide_default_value = true)]
    key: String,

    /// Attribute of the event. Can be given several times.
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = attribute)]
    attributes: Vec<(String, String)>,

    /// Leave out lines that the server refuses as invalid, such as those that are too large, and go on. Their numbers go
    /// to standard error. Without it the first such line ends the command, and those before it are published.
    #[arg(long, conflicts_with_all = ["payload", "file"])]
    skip_invalid: bool,

    /// Publish lines again that were sent and not answered when the connection broke. Subscribers may see them twice.
    #[arg(long, conflicts_with_all = ["payload", "file", "no_reconnect"])]
    resend: bool,

    /// End with 3 when the connection breaks or there is none, instead of reconnecting. One event is never waited for.
    #[arg(long, conflicts_with_all = ["payload", "file"])]
    no_reconnect: bool,

    #[command(flatten)]
    server: ServerArgs,
}

/// Parses an attribute, `NAME=VALUE`. The value may be empty and may contain `=`.
fn attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write it as NAME=VALUE".into()),
    }
}

pub(crate) async fn run(args: PubArgs) -> Result<(), Failure> {
    let source = args.source()?;
    let client = args.server.client()?;
    let options = args.publisher_options();
    let template = NewEvent {
        topic: args.topic,
        key: args.key,
        attributes: args.attributes.into_iter().collect(),
        ..Default::default()
    };
    publish(&client, options, source, template).await
}

impl PubArgs {
    /// Returns where the payloads come from. A file is read before anything is sent.
    fn source(&self) -> Result<Source, Failure> {
        match (&self.payload, &self.file) {
            (Some(payload), _) if payload == "-" => Ok(Source::Whole),
            (_, Some(file)) if file == Path::new("-") => Ok(Source::Whole),
            (Some(payload), _) => Ok(Source::Payload(payload.clone().into())),
            (None, Some(file)) => Ok(Source::Payload(read_file(file)?)),
            (None, None) => Ok(Source::Lines(Lines::new(MAX_EVENT))),
        }
    }

    fn publisher_options(&self) -> PublisherOptions {
        let is_stream = self.payload.is_none() && self.file.is_none();
        let reconnects = is_stream && !self.no_reconnect;
        PublisherOptions {
            reconnect: reconnects.then(Backoff::default),
            resend: self.resend,
            skip_refused: self.skip_invalid,
            ..Default::default()
        }
    }
}

fn read_file(path: &Path) -> Result<Bytes, Failure> {
    let failed = |problem: &dyn fmt::Display| {
        let message = format!("cannot publish {}: {problem}", path.display());
        Failure::new(Exit::Usage, message)
    };
    let file = fs::File::open(path).map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    let limit = MAX_EVENT as u64 + 1;
    let read = file.take(limit).read_to_end(&mut bytes);
    read.map_err(|error| failed(&error))?;
    match bytes.len() > MAX_EVENT {
        true => Err(failed(&too_large())),
        false => Ok(bytes.into()),
    }
}

fn too_large() -> String {
    format!("it is larger than {} MiB", MAX_EVENT >> 20)
}

/// Where the payloads come from.
enum Source {
    Payload(Bytes),
    /// All of standard input is one.
    Whole,
    /// Each line of standard input is one.
    Lines(Lines),
}

/// The reason why no more is published.
enum End {
    /// Everything was sent.
    Sent,
    /// The publisher has failed, and will say why.
    Failed,
    Interrupted,
    /// The input cannot be read, or an event cannot be sent.
    Invalid(Failure),
}

/// Sends the payloads of a source, and knows what became of each.
struct Sender<'a> {
    /// Copied for each event.
    template: NewEvent,
    publisher: Publisher,
    progress: Progress,
    signals: &'a mut Signals,
    skips_invalid: bool,
    /// Whether events are lines of the input, which have numbers.
    has_lines: bool,
    left_out: LeftOut,
}

/// Lines that were left out.
#[derive(Default)]
struct LeftOut {
    /// Events that had been sent when a line was left out unsent, for each such line: by these an event has the number
    /// of its line.
    unsent: Vec<u64>,
    /// Events that the server has refused and that were added.
    collected: u64,
    /// Lines that were added.
    added: u64,
    /// Messages about them that are still to be written.
    unreported: VecDeque<String>,
    /// Words for a refusal that every other line would get, too.
    refused_all: Option<String>,
}

/// The account of all that was read.
struct Account {
    read: u64,
    accepted: u64,
    left_out: u64,
    unknown: u64,
    is_line: bool,
}

async fn publish(
    client: &Client,
    options: PublisherOptions,
    source: Source,
    template: NewEvent,
) -> Result<(), Failure> {
    // Before the connection: a signal must not end the program without a word.
    let mut signals = Signals::listen_with_hangup()?;
    let publisher = client.publisher(options);
    let progress = publisher.progress();
    let sender = Sender {
        template,
        progress: progress.clone(),
        publisher,
        signals: &mut signals,
        skips_invalid: options.skip_refused,
        has_lines: matches!(source, Source::Lines(_)),
        left_out: LeftOut::default(),
    };
    let bar = ProgressLine::new();
    let (outcome, account) = tokio::select! {
        ended = sender.run(source) => ended,
        () = report_state(progress.clone()) => unreachable!("it follows forever"),
        () = bar.follow(&progress) => unreachable!("it follows forever"),
    };
    bar.clear();
    conclude(outcome, &account, &mut signals).await
}

/// Says on standard error when the publisher loses its connection and why, each time the reason changes.
async fn report_state(mut progress: Progress) {
    let mut reason = None;
    loop {
        match progress.changed().await {
            Some(PublisherState::Reconnecting {
                status, retry_in, ..
            }) if reason.as_deref() != Some(status.message()) => {
                let message = status.message();
                stdio::report_aside(format!(
                    "{message}; trying again in {retry_in:.1?}, and nothing is read until then"
                ))
                .await;
                reason = Some(message.to_owned());
            }
            Some(PublisherState::Open) if reason.take().is_some() => {
                stdio::report_aside("connected again".into()).await;
            }
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// Says how many events were accepted, and fails with the account of the others if there are any.
async fn conclude(
    outcome: Result<(), Failure>,
    account: &Account,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let line = format!("{}\n", accepted(account.accepted));
    // Once it was interrupted, nobody may send a second signal.
    let is_interrupted = outcome
        .as_ref()
        .is_err_and(|failure| failure.exit() == Some(Exit::Interrupted));
    let printed = tokio::select! {
        biased;
        (_, printed) = stdio::print_aside(line.into_bytes()) => printed,
        () = signals.next() => return Err(unread(outcome, account)),
        () = sleep(INTERRUPT_GRACE), if is_interrupted => return Err(unread(outcome, account)),
    };
    if outcome.is_ok() && account.left_out > 0 {
        stdio::report_aside(account.to_string()).await;
    }
    match (outcome, printed) {
        (Ok(()), Ok(())) => Ok(()),
        (Err(failure), _) => Err(failure.with(account)),
        (Ok(()), Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            stdio::report_aside(accepted(account.accepted)).await;
            Ok(())
        }
        (Ok(()), Err(error)) => Err(Failure::from(error).with(account)),
    }
}

/// The failure when a signal has come, and nobody reads standard output.
fn unread(outcome: Result<(), Failure>, account: &Account) -> Failure {
    let nobody_reads = || {
        Failure::new(
            Exit::Interrupted,
            "interrupted while nobody read standard output",
        )
    };
    outcome.err().unwrap_or_else(nobody_reads).with(account)
}

impl Sender<'_> {
    /// Publishes everything, and returns why that ended and the account.
    async fn run(mut self, source: Source) -> (Result<(), Failure>, Account) {
        let progress = self.progress.clone();
        let is_line = self.has_lines;
        let (end, read) = match source {
            Source::Payload(payload) => (self.send_one(payload).await, 1),
            Source::Whole => self.send_whole().await,
            Source::Lines(lines) => self.send_lines(lines).await,
        };
        let (outcome, left_out, unknown) = self.finish(end).await;
        // The publisher is gone, so the counts are final.
        let account = Account {
            read,
            accepted: progress.acknowledged(),
            left_out,
            unknown,
            is_line,
        };
        (outcome, account)
    }

    async fn send_one(&mut self, payload: Bytes) -> End {
        match self.send(payload).await {
            Ok(()) => End::Sent,
            Err(end) => end,
        }
    }

    /// Sends one event, unless the publisher fails or a signal comes first: then it was not taken.
    async fn send(&mut self, payload: Bytes) -> Result<(), End> {
        let event = NewEvent {
            payload,
            ..self.template.clone()
        };
        tokio::select! {
            biased;
            () = self.signals.next() => Err(End::Interrupted),
            sent = self.publisher.send(event) => sent.map_err(|_| End::Failed),
        }
    }

    /// Sends all of standard input as one event. Returns the number of events that were read, too.
    async fn send_whole(&mut self) -> (End, u64) {
        let mut stdin = match Stdin::open() {
            Ok(stdin) => stdin,
            Err(error) => return (End::Invalid(error.into()), 0),
        };
        let mut payload = Vec::new();
        loop {
            let read = tokio::select! {
                biased;
                () = self.signals.next() => return (End::Interrupted, u64::from(!payload.is_empty())),
                () = self.publisher.closed() => return (End::Failed, u64::from(!payload.is_empty())),
                read = stdin.read() => read,
            };
            match read {
                Ok(chunk) if chunk.is_empty() => break,
                Ok(chunk) => payload.extend_from_slice(&chunk),
                Err(error) => return (End::Invalid(unreadable(&error)), 1),
            }
            if payload.len() > MAX_EVENT {
                let message = format!("cannot publish standard input: {}", too_large());
                return (End::Invalid(Failure::new(Exit::Refused, message)), 1);
            }
        }
        (self.send_one(payload.into()).await, 1)
    }

    /// Sends lines of standard input until one of them cannot be sent. Returns the number of lines that were read, too.
    async fn send_lines(&mut self, mut lines: Lines) -> (End, u64) {
        let mut stdin = match Stdin::open() {
            Ok(stdin) => stdin,
            Err(error) => return (End::Invalid(error.into()), 0),
        };
        let end = loop {
            if let Err(end) = self.send_ready(&mut lines).await {
                break end;
            }
            if let Err(failure) = self.left_out.check() {
                break End::Invalid(failure);
            }
            if lines.is_done() {
                break End::Sent;
            }
            let read = async {
                // Nothing is taken while nobody accepts it.
                self.progress.opened().await;
                stdin.read().await
            };
            tokio::select! {
                biased;
                () = self.signals.next() => break End::Interrupted,
                () = self.publisher.closed() => break End::Failed,
                read = read => match read {
                    Ok(chunk) => lines.push(&chunk),
                    Err(error) => break End::Invalid(unreadable(&error)),
                },
                () = self.left_out.follow(&self.progress) => {}
            }
        };
        let rest = stdin.stop().await;
        if !rest.is_empty() {
            lines.push(&rest);
        }
        (end, lines.begun())
    }

    async fn send_ready(&mut self, lines: &mut Lines) -> Result<(), End> {
        while let Some(line) = lines.next() {
            match line {
                Line::Whole(payload) => {
                    self.send(payload).await?;
                    self.left_out.collect(&self.progress);
                    self.left_out.check().map_err(End::Invalid)?;
                }
                Line::TooLong => {
                    let problem = format!("line {}: {}", lines.number(), too_large());
                    if !self.skips_invalid {
                        return Err(End::Invalid(Failure::new(Exit::Refused, problem)));
                    }
                    self.left_out.unsent.push(self.progress.sent());
                    self.left_out.add(&problem);
                    self.left_out.report().await;
                }
            }
        }
        Ok(())
    }

    /// Waits for the answers to what was sent: until a signal as long as it takes, and for [`INTERRUPT_GRACE`] from then
    /// on. Returns the outcome, the number of events that were left out, and of those that are perhaps published.
    async fn finish(self, end: End) -> (Result<(), Failure>, u64, u64) {
        let Self {
            publisher,
            progress,
            signals,
            has_lines,
            mut left_out,
            ..
        } = self;
        // Without a stream nothing can be answered, and what was sent on none is not waited for.
        let is_lost =
            || !matches!(progress.state(), PublisherState::Open) && progress.in_flight() == 0;
        let mut is_interrupted = matches!(end, End::Interrupted);
        let finished = {
            let mut finish = pin!(publisher.finish());
            let mut finished = None;
            if !is_interrupted {
                tokio::select! {
                    biased;
                    () = signals.next() => is_interrupted = true,
                    outcome = &mut finish => finished = Some(outcome),
                }
            }
            if finished.is_none() && !is_lost() {
                tokio::select! {
                    biased;
                    () = signals.next() => {}
                    outcome = timeout(INTERRUPT_GRACE, &mut finish) => finished = outcome.ok(),
                }
            }
            finished
        };
        // A publisher that has failed gives the events back, and one that was dropped leaves the count of them.
        let unknown = match &finished {
            Some(Err(failure)) => failure.unknown.len() as u64,
            Some(Ok(_)) | None => progress.in_flight(),
        };
        left_out.collect(&progress);
        left_out.report().await;
        let count = progress.refused() + left_out.unsent.len() as u64;
        let refused_all = left_out.check();
        let explain = |failure: &PublishFailure| match has_lines {
            true => left_out.explain(failure, &progress),
            false => failure.error.to_string(),
        };
        let failure = finished
            .as_ref()
            .and_then(|finished| finished.as_ref().err())
            .map(explain);
        let interrupted = || match &failure {
            Some(failure) => Failure::new(Exit::Interrupted, format!("interrupted; {failure}")),
            None => Failure::new(Exit::Interrupted, "interrupted"),
        };
        let outcome = match end {
            End::Invalid(invalid) => Err(match &failure {
                Some(failure) => invalid.with(failure),
                None => invalid,
            }),
            End::Interrupted => Err(interrupted()),
            End::Sent | End::Failed => match (&finished, refused_all) {
                (_, Err(failure)) => Err(failure),
                (Some(Ok(_)), _) => Ok(()),
                _ if is_interrupted => Err(interrupted()),
                (Some(Err(failure)), _) => {
                    let exit = Exit::from(&failure.error);
                    Err(Failure::new(exit, explain(failure)))
                }
                (None, _) => Err(interrupted()),
            },
        };
        (outcome, count, unknown)
    }
}

impl LeftOut {
    /// Returns the number of the line of an event.
    fn line(&self, index: u64) -> u64 {
        let before = self.unsent.partition_point(|sent| *sent <= index);
        index + before as u64 + 1
    }

    /// Adds the lines that the server has refused since the last call.
    fn collect(&mut self, progress: &Progress) {
        if progress.refused() == self.collected {
            return;
        }
        self.collected = progress.refused();
        for refusal in progress.take_refusals() {
            let line = self.line(refusal.index);
            self.add(&format!("line {line}: {}", refusal.error));
            // The topic is the same for every line, so none would be accepted.
            if refusal.error.reason().as_deref() == Some("INVALID_TOPIC") {
                let words = || format!("no line can be published: {}", refusal.error);
                self.refused_all.get_or_insert_with(words);
            }
        }
    }

    /// Fails once a refusal is known that every line would get.
    fn check(&self) -> Result<(), Failure> {
        match &self.refused_all {
            Some(words) => Err(Failure::new(Exit::Refused, words)),
            None => Ok(()),
        }
    }

    fn add(&mut self, problem: &str) {
        self.added += 1;
        if self.added <= MAX_REPORTS {
            self.unreported.push_back(format!("left out {problem}"));
        } else if self.added == MAX_REPORTS + 1 {
            let rest = "more lines are left out; they are counted at the end";
            self.unreported.push_back(rest.into());
        }
    }

    /// Reports what was added. Cancel-safe: what was not reported stays.
    async fn report(&mut self) {
        while let Some(message) = self.unreported.pop_front() {
            stdio::report_aside(message).await;
        }
    }

    /// Returns the words for a failure, with the number of the line that was refused.
    fn explain(&self, failure: &PublishFailure, progress: &Progress) -> String {
        let is_refused = matches!(failure.error, Error::InvalidArgument(_));
        if is_refused && failure.unacknowledged > 0 {
            let line = self.line(progress.acknowledged() + progress.refused());
            return format!("line {line}: {}", failure.error);
        }
        failure.error.to_string()
    }

    /// Reports the lines that the server refuses, until no other line would be accepted.
    async fn follow(&mut self, progress: &Progress) {
        loop {
            self.collect(progress);
            self.report().await;
            if self.refused_all.is_some() {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::new(Exit::Other, format!("cannot read standard input: {error}"))
}

fn accepted(count: u64) -> String {
    match count {
        1 => "1 event accepted".into(),
        count => format!("{count} events accepted"),
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.accepted + self.left_out + self.unknown;
        let unpublished = self.read.saturating_sub(known);
        if !self.is_line {
            return f.write_str(match (self.accepted, self.unknown) {
                (0, 0) => "the event was not published",
                (0, _) => "the event was sent and not answered, so it is perhaps published",
                _ => "the event was published",
            });
        }
        match self.read {
            1 => f.write_str("1 line was read")?,
            count => write!(f, "{count} lines were read")?,
        }
        for (count, what) in [
            (self.accepted, "accepted"),
            (self.left_out, "left out as invalid"),
            (self.unknown, "sent and not answered, so perhaps published"),
            (unpublished, "not published"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// A progress line for a file that is published on a terminal.
struct ProgressLine {
    /// Hidden where standard error is no terminal, or where lines are typed.
    bar: ProgressBar,
}

impl ProgressLine {
    fn new() -> Self {
        // Drawing would overwrite lines that are typed on the same terminal.
        if io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Self {
                bar: ProgressBar::hidden(),
            };
        }
        let style = ProgressStyle::with_template(
            "{spinner} {human_pos} events accepted, {rate}/s, {elapsed}",
        )
        .expect("a valid template")
        .with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
            // Writing to a string does not fail, and the bar could not report an error.
            let _ = write!(out, "{}", HumanCount(state.per_sec() as u64));
        });
        Self {
            bar: ProgressBar::new_spinner().with_style(style),
        }
    }

    /// Shows `progress` until the future is dropped.
    async fn follow(&self, progress: &Progress) {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            self.bar.set_position(progress.acknowledged());
            self.bar.tick();
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_have_names() {
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(attribute("a=b"), pair("a", "b"));
        assert_eq!(attribute("a="), pair("a", ""));
        assert_eq!(attribute("a=b=c"), pair("a", "b=c"));
        assert!(attribute("a").is_err());
        assert!(attribute("=b").is_err());
    }

    #[test]
    fn account_is_of_everything_that_was_read() {
        let account = Account {
            read: 10,
            accepted: 3,
            left_out: 1,
            unknown: 2,
            is_line: true,
        };
        assert_eq!(
            account.to_string(),
            "10 lines were read, 3 accepted, 1 left out as invalid, 2 sent and not answered, so perhaps published, \
             4 not published"
        );
    }

    #[test]
    fn event_has_the_number_of_its_line() {
        let left_out = LeftOut {
            unsent: vec![0, 2, 2],
            ..LeftOut::default()
        };
        // Lines 1, 4 and 5 were not sent.
        let lines = [0, 1, 2, 3].map(|index| left_out.line(index));
        assert_eq!(lines, [2, 3, 6, 7]);
    }

    #[test]
    fn final_line_has_its_plural() {
        assert_eq!(accepted(0), "0 events accepted");
        assert_eq!(accepted(1), "1 event accepted");
        assert_eq!(accepted(2), "2 events accepted");
    }
}

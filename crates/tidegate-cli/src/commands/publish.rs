//! `tidegate pub`: publishes one event, or one for each line of standard input.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};
use tidegate_client::{
    Client, Closed, NewEvent, Progress, PublishFailure, Publisher, PublisherOptions,
};
use tokio::io::{AsyncBufRead, BufReader};

use crate::{
    exit::{Exit, Failure},
    lines::Lines,
    server_args::ServerArgs,
    signals,
};

/// The longest line, in bytes: 64 times what a server accepts for an event by default (1 MiB).
const MAX_LINE: u64 = 64 * 1024 * 1024;

/// Publish one event, or one for each line of standard input
///
/// With PAYLOAD, publishes one event. Without it, publishes each line of standard
/// input as an event, as soon as it arrives. A line may hold any bytes; an empty
/// line is an event with an empty payload; the line ending (LF or CR LF) is not
/// part of the payload.
///
/// The output says how many events the server accepted, even if publishing failed
/// in the middle: those are the first N lines. Nothing is sent twice: events that the
/// server had not answered when the connection broke may or may not have been
/// published. Lines go out in batches, each accepted as a whole or not at all.
///
/// Examples:
///
///   tidegate pub orders.eu.created '{"order": 17}' --key 17
///   tail -F /var/log/syslog | tidegate pub logs.myhost --attribute source=syslog
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "`tidegate --help` lists the exit codes."
)]
pub(crate) struct PubArgs {
    /// Topic: dot-separated tokens, without wildcards. `$client.ID` reaches only the client ID.
    topic: String,

    /// Payload of the event. Without it, each line of standard input is an event.
    payload: Option<String>,

    /// Key of the event: conflating subscribers keep the newest event of each topic and key.
    #[arg(long, default_value = "", hide_default_value = true)]
    key: String,

    /// Attribute of the event. Can be given several times.
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = attribute)]
    attributes: Vec<(String, String)>,

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
    let client = args.server.client()?;
    let mut event = NewEvent {
        topic: args.topic,
        key: args.key,
        attributes: args.attributes.into_iter().collect(),
        ..Default::default()
    };
    match args.payload {
        Some(payload) => {
            event.payload = payload.into();
            let response = client.publish(vec![event]).await?;
            print_accepted(u64::from(response.count))
        }
        None => publish_lines(&client, &event).await,
    }
}

async fn publish_lines(client: &Client, template: &NewEvent) -> Result<(), Failure> {
    let publisher = client.publisher(PublisherOptions::default());
    let progress = publisher.progress();
    let bar = ProgressLine::new();
    let outcome = tokio::select! {
        biased;
        interrupted = signals::interrupted() => Err(match interrupted {
            Ok(()) => Failure::new(Exit::Interrupted, interruption(&progress)),
            Err(error) => error.into(),
        }),
        outcome = send_lines(publisher, stdin(), template) => outcome,
        () = bar.follow(&progress) => unreachable!("it follows forever"),
    };
    bar.clear();
    print_accepted(progress.acknowledged())?;
    outcome
}

fn stdin() -> impl AsyncBufRead + Unpin {
    BufReader::with_capacity(64 * 1024, tokio::io::stdin())
}

/// Publishes all lines of `input`. After a failure to read, still publishes the lines before it.
async fn send_lines(
    mut publisher: Publisher,
    input: impl AsyncBufRead + Unpin,
    template: &NewEvent,
) -> Result<(), Failure> {
    let mut lines = Lines::new(input, MAX_LINE);
    let read = loop {
        let line = match lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let event = NewEvent {
            payload: line.into(),
            ..template.clone()
        };
        if let Err(Closed(_)) = publisher.send(event).await {
            break Ok(());
        }
    };
    match publisher.finish().await {
        Ok(_) => Ok(read?),
        Err(failure) => Err(explain(&failure)),
    }
}

fn explain(failure: &PublishFailure) -> Failure {
    let exit = Exit::from(&failure.error);
    Failure::new(exit, format!("{failure}: {}", failure.error))
}

fn interruption(progress: &Progress) -> String {
    match progress.sent().saturating_sub(progress.acknowledged()) {
        0 => "interrupted".into(),
        unknown => {
            format!("interrupted; {unknown} more were sent and may or may not have been accepted")
        }
    }
}

fn print_accepted(count: u64) -> Result<(), Failure> {
    writeln!(io::stdout(), "{}", accepted(count))?;
    Ok(())
}

fn accepted(count: u64) -> String {
    match count {
        1 => "1 event accepted".into(),
        count => format!("{count} events accepted"),
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
    fn final_line_has_its_plural() {
        assert_eq!(accepted(0), "0 events accepted");
        assert_eq!(accepted(1), "1 event accepted");
        assert_eq!(accepted(2), "2 events accepted");
    }
}

//! `tidegate conformance`: walks a client through the protocol, and says which rule it broke.

use std::{io, net::SocketAddr, path::PathBuf, sync::mpsc};

use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use serde::Serialize;
use tidegate_conformance::{
    Ability, Driver, Player, Scenario, Suite, Verdict, read_folder, scenarios,
};

use tokio::task::{JoinHandle, spawn_blocking};

use crate::{
    exit::{Exit, Failure},
    signals, stdio,
};

/// Similarity of a name to the one that was meant.
const SIMILAR: f64 = 0.7;

/// Prove that a client follows the protocol
///
/// Runs a client once for each scenario, against a server that plays a script:
/// streams that end with every status, gaps, silence, resets, broken connections,
/// pages of proxies. Judges the client by its requests and by the lines that it
/// prints, and says which rule of docs/protocol.md it broke.
///
/// The client gets arguments like those of `tidegate sub`, and prints lines like
/// those of `tidegate sub --output json`; docs/conformance.md has the details.
///
/// Examples:
///
///   The client that comes with Tidegate:
///     tidegate conformance -- tidegate sub
///   Another one, judged by its requests alone:
///     tidegate conformance --requests-only -- ./my-client
///   One scenario, for a client that is started by hand:
///     tidegate conformance --only position-batch --listen 127.0.0.1:50051
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = AFTER_HELP)]
pub(crate) struct ConformanceArgs {
    /// Program of the client, and its arguments. In them {server} stands for the URL of the scripted server,
    /// {address} for its host and port, and the word {arguments} for the other arguments, which otherwise come last.
    #[arg(
        last = true,
        value_name = "COMMAND",
        required_unless_present_any = ["list", "listen"],
        conflicts_with_all = ["list", "listen"]
    )]
    command: Vec<String>,

    /// Run this scenario alone, or all whose names begin with NAME and a slash. May be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Leave out the scenarios that need an ability which the client does not have. May be repeated.
    #[arg(long, value_name = "ABILITY", value_parser = abilities())]
    without: Vec<String>,

    /// Play the scenarios of this folder instead of those that come with the program.
    #[arg(long, value_name = "DIR")]
    scenarios: Option<PathBuf>,

    /// List the scenarios and their rules, and end.
    #[arg(long, conflicts_with = "listen")]
    list: bool,

    /// Judge the client by its requests alone: it prints nothing that could be read.
    #[arg(long)]
    requests_only: bool,

    /// Play the one scenario of --only at this address, to a client that is started by hand.
    #[arg(long, value_name = "ADDRESS", requires = "only")]
    listen: Option<SocketAddr>,

    /// Number of scenarios that run at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,

    /// Output format.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

const AFTER_HELP: &str = "\
Abilities of a client, for --without:
  client-id   it takes --client-id
  resume      it takes --resume
  replay      it takes --replay
  heartbeat   it takes --heartbeat, and notices silence
  token       it takes --token-file, and reads the file again
  details     it reads grpc-status-details-bin; the trailers have the same

Exit codes:
  0  the client passed every scenario that was run
  1  it failed in one or more, or the program of the client cannot be started
  2  the command line or a scenario is wrong";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people: a line for each scenario, and everything that happened in those that failed.
    Text,
    /// For programs: one JSON object per line, for each scenario and at last for the sum.
    Json,
}

/// A line of the output for programs.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Scenario {
        passed: bool,
        #[serde(flatten)]
        verdict: &'a Verdict,
    },
    Listed {
        name: &'a str,
        title: &'a str,
        rows: Vec<String>,
        needs: Vec<&'static str>,
    },
    Summary {
        passed: usize,
        failed: usize,
        left_out: usize,
    },
}

fn abilities() -> PossibleValuesParser {
    PossibleValuesParser::new(Ability::ALL.map(Ability::name))
}

pub(crate) async fn run(args: ConformanceArgs) -> Result<(), Failure> {
    tokio::select! {
        biased;
        interrupted = signals::interrupted() => {
            interrupted?;
            Err(Failure::new(Exit::Interrupted, "interrupted before every scenario was played"))
        }
        outcome = run_uninterrupted(args) => outcome,
    }
}

async fn run_uninterrupted(args: ConformanceArgs) -> Result<(), Failure> {
    let all = match &args.scenarios {
        Some(folder) => read_folder(folder).map_err(|error| Failure::new(Exit::Usage, error))?,
        None => scenarios(),
    };
    let selected = select(all, &args.only)?;
    let (selected, left_out): (Vec<_>, Vec<_>) = selected
        .into_iter()
        .partition(|scenario| args.has_what(scenario));
    if args.list {
        return list(&selected, args.output).await;
    }
    let verdicts = match args.listen {
        Some(address) => vec![listen(&selected, address, args.output).await?],
        None => drive(&args, selected).await?,
    };
    conclude(&args, &verdicts, &left_out).await
}

impl ConformanceArgs {
    /// Whether the client has every ability that a scenario needs.
    fn has_what(&self, scenario: &Scenario) -> bool {
        let mut needs = scenario.needs().into_iter();
        !needs.any(|need| self.without.iter().any(|name| name == need.name()))
    }
}

/// Returns the scenarios that are named, or all if none is.
fn select(all: Vec<Scenario>, only: &[String]) -> Result<Vec<Scenario>, Failure> {
    for name in only {
        if !all.iter().any(|scenario| scenario.is_named(name)) {
            return Err(Failure::new(Exit::Usage, unknown(name, &all)));
        }
    }
    let is_selected =
        |scenario: &Scenario| only.is_empty() || only.iter().any(|name| scenario.is_named(name));
    Ok(all.into_iter().filter(is_selected).collect())
}

fn unknown(name: &str, all: &[Scenario]) -> String {
    let similarity = |scenario: &Scenario| strsim::jaro(name, &scenario.name);
    let best = all
        .iter()
        .max_by(|one, other| similarity(one).total_cmp(&similarity(other)))
        .filter(|scenario| similarity(scenario) > SIMILAR);
    let hint = best.map_or_else(
        || "--list has their names".into(),
        |scenario| format!("did you mean {:?}?", scenario.name),
    );
    format!("there is no scenario {name:?}; {hint}")
}

async fn list(scenarios: &[Scenario], format: Format) -> Result<(), Failure> {
    for scenario in scenarios {
        match format {
            Format::Text => print(&format!("{:<50} {}", scenario.name, scenario.title)).await?,
            Format::Json => {
                print_json(&Line::Listed {
                    name: &scenario.name,
                    title: &scenario.title,
                    rows: scenario.covers.rows(),
                    needs: scenario.needs().into_iter().map(Ability::name).collect(),
                })
                .await?
            }
        }
    }
    Ok(())
}

/// Plays one scenario to a client that somebody else starts.
async fn listen(
    scenarios: &[Scenario],
    address: SocketAddr,
    format: Format,
) -> Result<Verdict, Failure> {
    let [scenario] = scenarios else {
        let names: Vec<_> = scenarios
            .iter()
            .map(|scenario| scenario.name.as_str())
            .collect();
        let message = match names.as_slice() {
            [] => "--without leaves out the scenario of --only".into(),
            names => format!(
                "--listen plays one scenario, and --only selects {}: {}",
                names.len(),
                names.join(", ")
            ),
        };
        return Err(Failure::new(Exit::Usage, message));
    };
    let player = Player::bind(scenario, address).await.map_err(|error| {
        Failure::new(Exit::Other, format!("cannot listen at {address}: {error}"))
    })?;
    if format == Format::Text {
        print(&format!("listening on {}", player.address())).await?;
        print(&format!(
            "start the client with {}",
            in_words(scenario, &player)
        ))
        .await?;
    } else {
        let line = serde_json::json!({
            "type": "listening",
            "address": player.address().to_string(),
            "token_file": player.token_file(),
        });
        print_json(&line).await?;
    }
    let verdict = player.play().await;
    report(&verdict, format).await?;
    Ok(verdict)
}

/// The request that a client must be started with.
fn in_words(scenario: &Scenario, player: &Player<'_>) -> String {
    let start = &scenario.client;
    let mut words = vec![format!("filters {:?}", start.filters)];
    if !start.client_id.is_empty() {
        words.push(format!("client_id {:?}", start.client_id));
    }
    if start.resume_after != tidegate_conformance::At::Nowhere {
        words.push(format!("resume_after {}", start.resume_after));
    }
    if start.replay_last > 0 {
        words.push(format!("replay_last {}", start.replay_last));
    }
    if let Some(seconds) = start.heartbeat_s {
        words.push(format!("heartbeat_interval {seconds} s"));
    }
    if let Some(path) = player.token_file() {
        words.push(format!(
            "the token in the file {}, read before each call",
            path.display()
        ));
    }
    words.join(", ")
}

async fn drive(args: &ConformanceArgs, scenarios: Vec<Scenario>) -> Result<Vec<Verdict>, Failure> {
    let mut driver = Driver::new(&args.command);
    if args.requests_only {
        driver = driver.requests_only();
    }
    let suite = Suite {
        scenarios,
        jobs: args.jobs.into(),
    };
    let printer = Printer::start();
    let format = args.output;
    let verdicts = suite.run(&driver, |verdict| printer.print(rendered(verdict, format)));
    let verdicts = verdicts
        .await
        .map_err(|error| Failure::new(Exit::Other, error));
    printer.finish().await?;
    verdicts
}

/// Prints from a thread of its own: a reader of the output that is slow, or a terminal that is stopped, must not stop the
/// servers and be taken for the silence of one.
struct Printer {
    sender: mpsc::Sender<Result<String, Failure>>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Printer {
    fn start() -> Self {
        let (sender, receiver) = mpsc::channel();
        let print_all = move || {
            receiver
                .into_iter()
                .try_for_each(|text: Result<String, _>| Ok(stdio::print(format!("{}\n", text?))?))
        };
        Self {
            sender,
            thread: spawn_blocking(print_all),
        }
    }

    fn print(&self, text: Result<String, Failure>) {
        // It fails once the output cannot be written, which `finish` tells.
        let _ = self.sender.send(text);
    }

    async fn finish(self) -> Result<(), Failure> {
        drop(self.sender);
        self.thread
            .await
            .map_err(|error| Failure::new(Exit::Other, error))?
    }
}

async fn report(verdict: &Verdict, format: Format) -> Result<(), Failure> {
    print(&rendered(verdict, format)?).await
}

fn rendered(verdict: &Verdict, format: Format) -> Result<String, Failure> {
    match format {
        Format::Text => Ok(verdict.to_string()),
        Format::Json => json(&Line::Scenario {
            passed: verdict.is_passed(),
            verdict,
        }),
    }
}

/// Prints the sum, and fails if a scenario did, or if nothing was proven.
async fn conclude(
    args: &ConformanceArgs,
    verdicts: &[Verdict],
    left_out: &[Scenario],
) -> Result<(), Failure> {
    let failed = verdicts
        .iter()
        .filter(|verdict| !verdict.is_passed())
        .count();
    let passed = verdicts.len() - failed;
    match args.output {
        Format::Json => {
            print_json(&Line::Summary {
                passed,
                failed,
                left_out: left_out.len(),
            })
            .await?
        }
        Format::Text => {
            let mut sum = format!("{passed} passed, {failed} failed");
            if !left_out.is_empty() {
                let names: Vec<_> = left_out
                    .iter()
                    .map(|scenario| scenario.name.as_str())
                    .collect();
                sum.push_str(&format!(
                    ", {} left out by --without: {}",
                    names.len(),
                    names.join(", ")
                ));
            }
            print(&sum).await?;
        }
    }
    match (failed, passed) {
        (0, 0) => Err(Failure::new(Exit::Usage, "no scenario is left to run")),
        (0, _) => Ok(()),
        (failed, _) => {
            let message = format!(
                "the client broke the rules of {failed} of {} scenarios",
                verdicts.len()
            );
            Err(Failure::new(Exit::Other, message))
        }
    }
}

/// Prints from another thread, so that a signal ends the command although nobody reads its output.
async fn print(text: &str) -> Result<(), Failure> {
    let (_, printed) = stdio::print_aside(format!("{text}\n").into_bytes()).await;
    Ok(printed?)
}

async fn print_json(line: &impl Serialize) -> Result<(), Failure> {
    print(&json(line)?).await
}

fn json(line: &impl Serialize) -> Result<String, Failure> {
    Ok(serde_json::to_string(line).map_err(io::Error::other)?)
}

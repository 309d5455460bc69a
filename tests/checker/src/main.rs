//! `tidegate-chaos`: the chaos run from the command line.

#![allow(clippy::print_stdout, reason = "the report goes there")]

use std::{
    error::Error as _,
    process::ExitCode,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tidegate_checker::chaos::{self, Counts, Options};
use tokio::time::interval;

/// Runs clients of every behavior against a server, through faults and restarts, and checks that every event is
/// accounted for.
///
/// The seed determines the settings of the servers, the clients and the faults, so that a run can be repeated. The
/// timing depends on the machine, so it may take several tries to see a violation again.
#[derive(Debug, Parser)]
#[command(name = "scripts/chaos")]
struct Arguments {
    /// Seed of the first round; a random one if left out
    #[arg(long)]
    seed: Option<u64>,
    /// How long to run: 90s, 3m, 1h
    #[arg(long, default_value = "3m", value_parser = duration)]
    duration: Duration,
    /// Run until at least N delivery slots are checked, however long that takes
    #[arg(long, value_name = "N", default_value_t = 0)]
    slots: u64,
    /// How long each round publishes
    #[arg(long, default_value = "12s", value_parser = duration)]
    round: Duration,
    /// Clients of a round, in multiples of 35
    #[arg(long, default_value_t = Options::default().scale)]
    scale: usize,
    /// Events in a batch, on average; each of three publishers sends up to 500 batches per second
    #[arg(long, default_value_t = Options::default().batch)]
    batch: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        // A small number is easier to type.
        seed: arguments
            .seed
            .unwrap_or_else(|| fastrand::u64(0..1_000_000)),
        duration: arguments.duration,
        slots: arguments.slots,
        rounds: 1,
        round: arguments.round,
        scale: arguments.scale,
        batch: arguments.batch,
    };
    println!(
        "seed {}, {:?} per round, {} clients, {} events per batch",
        options.seed,
        options.round,
        options.scale * Options::CLIENTS,
        options.batch
    );
    let counts = Arc::new(Counts::default());
    let ended = tokio::select! {
        ended = chaos::run(options, Arc::clone(&counts)) => ended,
        () = show_progress(&counts) => unreachable!("it goes on forever"),
    };
    match ended {
        Ok(report) => {
            print!("{report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            print!("{failure}");
            if let Some(cause) = failure.source() {
                print!(": {cause}");
            }
            println!();
            ExitCode::FAILURE
        }
    }
}

/// Updates a progress line on a terminal, forever.
async fn show_progress(counts: &Counts) {
    let style =
        ProgressStyle::with_template("[{elapsed_precise}] {msg}").expect("the template is right");
    let line = ProgressBar::new_spinner().with_style(style);
    let mut pace = interval(Duration::from_millis(500));
    loop {
        pace.tick().await;
        let (slots, published) = (counts.slots.load(Relaxed), counts.published.load(Relaxed));
        let faults = &counts.faults;
        let faults: u64 = [
            &faults.delays,
            &faults.throttles,
            &faults.cuts,
            &faults.half_opens,
        ]
        .iter()
        .map(|count| count.load(Relaxed))
        .sum();
        line.set_message(format!(
            "{published} events published, {slots} slots, {faults} faults"
        ));
        line.tick();
    }
}

/// Parses a number with a unit.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time: write for example 90s, 3m or 1h");
    let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..unit].parse().map_err(|_| wrong())?;
    let seconds = match &text[unit..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err(wrong()),
    };
    Ok(Duration::from_secs(number * seconds))
}

//! The comparison: puts the same loads on one server after another, in several rounds.

use std::path::PathBuf;

use clap::Args;
use tidegate_bench::Environment;

use crate::{
    amount::Amount,
    baselines::Failure,
    document::{Document, Section},
    peer::{Launching, Peer},
    results::Results,
    trial::Trial,
    workload::Workload,
};

/// The options of the comparison.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The workloads [default: all]
    #[arg(long, value_delimiter = ',', value_name = "WORKLOAD")]
    workloads: Vec<Workload>,

    /// The servers to compare [default: all]
    #[arg(long, value_delimiter = ',', value_name = "PEER")]
    peers: Vec<Peer>,

    /// Number of rounds. In a round, every server has its turn.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Number of rounds with stalled clients, whose latencies differ more from round to round than the effect to find.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    stalled_rounds: u32,

    #[command(flatten)]
    amount: Amount,

    #[command(flatten)]
    launching: Launching,

    /// The document to write.
    #[arg(long, value_name = "PATH", default_value = "docs/benchmarks.md")]
    output: PathBuf,

    /// The command that the document says to repeat it with.
    #[arg(long, value_name = "TEXT", default_value = "scripts/bench-peers")]
    command_line: String,
}

pub(crate) async fn run(args: &CompareArgs) -> Result<(), Failure> {
    let workloads = or_all(&args.workloads, &Workload::ALL);
    let peers = or_all(&args.peers, &Peer::ALL);
    let mut sections = Vec::new();
    let mut environment = None;
    for workload in workloads {
        let mut results: Vec<_> = peers.iter().map(|&peer| Results::new(peer)).collect();
        let rounds = match workload {
            Workload::Stalled => args.stalled_rounds,
            _ => args.rounds,
        };
        for round in 1..=rounds {
            for result in &mut results {
                result.round(workload, round, args, &mut environment).await;
                result.print_last(workload, round, rounds);
            }
        }
        sections.push(Section {
            workload,
            rounds,
            results,
        });
    }
    let environment = environment.ok_or("no server could be started")?;
    let versions = peers
        .iter()
        .map(|&peer| (peer, peer.version(&args.launching.programs)))
        .collect();
    let document = Document {
        environment,
        versions,
        amount: args.amount.clone(),
        rounds: args.rounds,
        command_line: args.command_line.clone(),
        sections,
    };
    document.write(&args.output)?;
    println!("written: {}", args.output.display());
    Ok(())
}

fn or_all<T: Copy>(chosen: &[T], all: &[T]) -> Vec<T> {
    if chosen.is_empty() { all } else { chosen }.to_vec()
}

impl Results {
    async fn round(
        &mut self,
        workload: Workload,
        round: u32,
        args: &CompareArgs,
        environment: &mut Option<Environment>,
    ) {
        if !workload.suits(self.peer) {
            return;
        }
        let mut trial = Trial {
            peer: self.peer,
            round,
            amount: &args.amount,
            launching: &args.launching,
            environment,
        };
        match workload.sample(&mut trial).await {
            Ok(sample) => self.samples.push(sample),
            Err(error) => self.failures.push(error.to_string()),
        }
    }
}

//! What tidegate is compared with, and the comparison.
//!
//! `broadcast`, `mpsc`, `typed`, `typed-transport` and `raw` are servers, as small as somebody would write them by hand. `compare` starts
//! one server after another, gives each the same work, and writes down medians and ratios. `grow` measures
//! what a delivery of tidegate costs as the work grows.
#![expect(clippy::print_stdout, reason = "this is a program for the terminal")]

mod amount;
mod baselines;
mod compare;
mod document;
mod grow;
mod peer;
mod plot;
mod results;
mod text;
mod trial;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{baselines::TlsArgs, compare::CompareArgs, grow::GrowArgs};

/// Compares tidegate with what else could be picked.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: tonic, and a tokio::sync::broadcast that all streams share.
    Broadcast(TlsArgs),
    /// Serve: tonic, and a tokio::sync::mpsc for each stream, with try_send.
    Mpsc(TlsArgs),
    /// Serve: tonic, and the typed hub of the crate tidegate.
    Typed(TlsArgs),
    /// Serve: the same service over connections of tidegate's own.
    TypedTransport,
    /// Serve: what a publisher writes is written to every subscriber, and nothing else.
    Raw,
    /// Give the same work to each in turn.
    Compare(Box<CompareArgs>),
    /// Measure what a delivery costs as the work grows.
    Grow(Box<GrowArgs>),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Broadcast(tls) => baselines::broadcast::serve(&tls).await,
        Command::Mpsc(tls) => baselines::mpsc::serve(&tls).await,
        Command::Typed(tls) => baselines::typed::serve(&tls).await,
        Command::TypedTransport => baselines::typed::serve_on_transport().await,
        Command::Raw => baselines::raw::serve(),
        Command::Compare(args) => compare::run(&args).await,
        Command::Grow(args) => grow::run(&args).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

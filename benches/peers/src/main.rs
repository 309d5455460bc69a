//! Compares tidegate with other servers: baselines, NATS and Redis.
//!
//! `broadcast`, `mpsc`, `typed`, `typed-transport` and `raw` are servers, each as small as if written by hand for one
//! service. `compare` starts one server after another, puts the same load on each, and writes medians and ratios to a
//! document. `grow` measures the cost of a delivery of tidegate as the load grows.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is a program for the terminal"
)]

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

/// Compares tidegate with other servers.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve by tonic, with one tokio::sync::broadcast for all streams.
    Broadcast(TlsArgs),
    /// Serve by tonic, with a tokio::sync::mpsc for each stream.
    Mpsc(TlsArgs),
    /// Serve by tonic, with the typed hub of the crate tidegate.
    Typed(TlsArgs),
    /// Serve by the crate tidegate-transport, with the same typed hub.
    TypedTransport,
    /// Serve raw TCP: copy the bytes of each publisher to every subscriber.
    Raw {
        /// The most bytes that it reads, and writes to each subscriber, at once.
        #[arg(long, value_name = "BYTES", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..))]
        write: u32,
    },
    /// Put the same loads on each server in turn, and write docs/benchmarks.md.
    Compare(Box<CompareArgs>),
    /// Measure the cost of a delivery as the load grows, and write docs/growth.md.
    Grow(Box<GrowArgs>),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Broadcast(tls) => baselines::broadcast::serve(&tls).await,
        Command::Mpsc(tls) => baselines::mpsc::serve(&tls).await,
        Command::Typed(tls) => baselines::typed::serve(&tls).await,
        Command::TypedTransport => baselines::typed::serve_on_transport().await,
        Command::Raw { write } => baselines::raw::serve(write as usize),
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

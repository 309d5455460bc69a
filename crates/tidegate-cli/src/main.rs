//! The `tidegate` command: `serve`, `sub`, `pub`, `bench`, `token` and `completions`.
//!
//! Each command is a module with its arguments and a `run`; [`exit`] turns what comes back into an exit code.

mod args;
#[cfg(target_os = "linux")]
mod bench;
mod completions;
mod exit;
mod lines;
mod logging;
mod memory;
mod output;
mod publish;
mod security;
mod serve;
mod signals;
mod sub;
mod token;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    args::{Cli, Command},
    exit::Failure,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    logging::init(&cli.log)?;
    memory::init();
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(run(cli.command));
    // A read of standard input or a write to a pipe that nobody empties may be stuck; it must not hold up
    // the end.
    runtime.shutdown_background();
    outcome
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(*args).await,
        Command::Sub(args) => sub::run(args).await,
        Command::Pub(args) => publish::run(args).await,
        #[cfg(target_os = "linux")]
        Command::Bench(args) => bench::run(args).await,
        Command::Token(args) => token::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}

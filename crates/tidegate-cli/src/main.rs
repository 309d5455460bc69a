//! The `tidegate` command: `serve`, `check-config`, `sub`, `pub`, `clients`, `kick`, `stats`, `bench`, `token`,
//! `conformance` and `completions`.
//!
//! Each command is a module of [`commands`], with its arguments and a `run`; [`exit`] turns its result into an exit code.

mod args;
mod commands;
mod exit;
mod lines;
mod logging;
mod memory;
mod output;
#[cfg(unix)]
mod reload;
mod security;
mod server_args;
mod settings;
mod signals;
mod stdio;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::{
    args::{Cli, Command},
    commands::{admin, check_config, completions, conformance, publish, serve, sub, token},
    exit::Failure,
    logging::Logs,
};

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| settings::explain(error).exit());
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    let logs = logging::init(&cli.log)?;
    memory::init();
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(run(cli.command, cli.log.log, logs));
    // A read of standard input, or a write to a pipe that nobody reads, blocks a thread of the runtime; waiting for it
    // would keep the program from ending.
    runtime.shutdown_background();
    outcome
}

/// Runs one command. `log` is the value of --log on the command line.
async fn run(command: Command, log: Option<String>, logs: Logs) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(args, log, logs).await,
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Sub(args) => sub::run(args).await,
        Command::Pub(args) => publish::run(args).await,
        Command::Clients(args) => admin::clients(args).await,
        Command::Kick(args) => admin::kick(args).await,
        Command::Stats(args) => admin::stats(args).await,
        #[cfg(target_os = "linux")]
        Command::Bench(args) => commands::bench::run(args).await,
        Command::Token(args) => token::run(&args),
        Command::Conformance(args) => conformance::run(args).await,
        Command::Completions(args) => completions::run(&args, Cli::command()),
    }
}

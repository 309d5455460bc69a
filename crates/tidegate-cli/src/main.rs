//! The `tidegate` command: `serve`, `check-config`, `sub`, `pub`, `clients`, `publishers`, `kick`, `stats`, `bench`,
//! `token`, `conformance` and `completions`.
//!
//! Each command is a module of [`commands`], with its arguments and a `run`; [`exit`] turns its result into an exit code.

mod args;
mod commands;
mod environment;
mod exit;
mod lines;
mod log_writer;
mod logging;
mod memory;
mod output;
#[cfg(unix)]
mod reload;
mod runtime;
mod security;
mod server_args;
mod settings;
mod signals;
mod stdio;

use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::{CommandFactory as _, Parser as _};

use crate::{
    args::{Cli, Command},
    commands::{admin, check_config, completions, conformance, publish, serve, sub, token},
    exit::{Exit, Failure},
    log_writer::LogWriter,
    logging::Logs,
    stdio::StandardError,
};

fn main() {
    memory::init();
    let log = match LogWriter::start(StandardError) {
        Ok(log) => log,
        Err(error) => {
            runtime::say_that_none_starts(&error);
            exit::leave(Exit::Other as u8);
        }
    };
    stdio::report_through(&log);
    log.report_panics();
    let outcome = match Cli::try_parse() {
        Ok(cli) => start(cli, &log),
        Err(error) => say(&settings::explain(error)),
    };
    let code = match outcome {
        Ok(code) => code,
        Err(failure) => failure.report(),
    };
    // The last lines, "ended" among them.
    log.flush();
    exit::leave(code)
}

/// Prints help, the version, or a fault of the command line.
fn say(error: &clap::Error) -> Result<u8, Failure> {
    match error.print() {
        // Where standard error takes nothing, the code has to do.
        Err(failed) if !error.use_stderr() => Err(stdio::in_words(failed).into()),
        _ => Ok(u8::try_from(error.exit_code()).unwrap_or(Exit::Other as u8)),
    }
}

fn start(cli: Cli, log: &LogWriter) -> Result<u8, Failure> {
    let logs = logging::init(&cli.log, log)?;
    let runtime = runtime::start(log)?;
    // A panic would wait for the threads of the runtime, as described below. The hook has reported it.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(run(cli.command, cli.log.log, logs))
    }));
    // A read of standard input, or a write to a pipe that nobody reads, blocks a thread of the runtime; waiting for it
    // would keep the program from ending.
    runtime.shutdown_background();
    match outcome {
        Ok(outcome) => outcome.map(|()| exit::SUCCESS),
        Err(_panic) => Ok(exit::PANICKED),
    }
}

/// Runs one command. `log` is the value of --log on the command line.
async fn run(command: Command, log: Option<String>, logs: Logs) -> Result<(), Failure> {
    #[cfg(unix)]
    signals::outlive_file_limits()?;
    // A server refuses them.
    if !matches!(command, Command::Serve(_) | Command::CheckConfig(_)) {
        for warning in settings::misspelled_variables() {
            tracing::warn!("{warning}");
        }
    }
    match command {
        Command::Serve(args) => serve::run(args, log, logs).await,
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Sub(args) => sub::run(args).await,
        Command::Pub(args) => publish::run(args).await,
        Command::Clients(args) => admin::clients(args).await,
        Command::Publishers(args) => admin::publishers(args).await,
        Command::Kick(args) => admin::kick(args).await,
        Command::Stats(args) => admin::stats(args).await,
        #[cfg(target_os = "linux")]
        Command::Bench(args) => commands::bench::run(args).await,
        Command::Token(args) => token::run(&args),
        Command::Conformance(args) => conformance::run(args).await,
        Command::Completions(args) => completions::run(&args, Cli::command()),
    }
}

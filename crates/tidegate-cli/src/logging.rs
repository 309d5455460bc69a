//! Logs, on standard error.

use std::{env, io};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::exit::{Exit, Failure};

#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// What to log: error, warn, info, debug or trace, also by module, as in `warn,tidegate=debug`. The
    /// environment variable RUST_LOG wins if it is set.
    #[arg(long, global = true, value_name = "FILTER", default_value = "warn")]
    pub(crate) log: String,

    /// How to log, on standard error.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object per line.
    Json,
}

/// Sends logs to standard error from here on.
pub(crate) fn init(args: &LogArgs) -> Result<(), Failure> {
    let from_env = env::var(EnvFilter::DEFAULT_ENV).ok();
    let directives = from_env
        .filter(|directives| !directives.is_empty())
        .unwrap_or_else(|| args.log.clone());
    let filter = EnvFilter::try_new(&directives).map_err(|error| {
        Failure::new(Exit::Usage, format!("log filter {directives:?}: {error}"))
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => {
            let choice = anstream::AutoStream::choice(&io::stderr());
            let colour = choice != anstream::ColorChoice::Never;
            subscriber.with_ansi(colour).init();
        }
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

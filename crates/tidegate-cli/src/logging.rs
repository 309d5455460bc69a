//! Logs, on standard error.

use std::{env, fmt, io, sync::Arc};

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, reload};

use crate::{
    exit::{Exit, Failure},
    log_writer::LogWriter,
};

#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// Log filter: error, warn, info, debug or trace, also by module, as in `warn,tidegate=debug`. The
    /// environment variable RUST_LOG takes precedence if it is set [default: warn].
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,

    /// Log format, on standard error.
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

/// The target of the access log, which is off unless the filter names it.
const ACCESS: &str = "tidegate::access";

/// The log filter where none is given.
const DEFAULT: &str = "warn";

/// Changes the log filter of the running program. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Logs {
    reload: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    writer: LogWriter,
}

/// Sends logs to `writer` from here on. To be called once.
pub(crate) fn init(args: &LogArgs, writer: &LogWriter) -> Result<Logs, Failure> {
    let directives = args.log.as_deref().unwrap_or(DEFAULT);
    let directives = from_environment().unwrap_or_else(|| directives.into());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(&directives)?)
        // It would print to standard error by itself, and panic if that cannot be written.
        .log_internal_errors(false)
        .with_writer(writer.clone());
    let reload: Arc<dyn Fn(_) -> _ + Send + Sync> = match args.log_format {
        LogFormat::Text => {
            let choice = anstream::AutoStream::choice(&io::stderr());
            let color = choice != anstream::ColorChoice::Never;
            let subscriber = subscriber.with_ansi(color).with_filter_reloading();
            let handle = subscriber.reload_handle();
            subscriber.init();
            Arc::new(move |filter| handle.reload(filter))
        }
        LogFormat::Json => {
            writer.use_json();
            let subscriber = subscriber.json().with_filter_reloading();
            let handle = subscriber.reload_handle();
            subscriber.init();
            Arc::new(move |filter| handle.reload(filter))
        }
    };
    Ok(Logs {
        reload,
        writer: writer.clone(),
    })
}

/// The filter in `RUST_LOG`, which takes precedence over every other.
fn from_environment() -> Option<String> {
    let directives = env::var(EnvFilter::DEFAULT_ENV).ok();
    directives.filter(|directives| !directives.is_empty())
}

fn filter(directives: &str) -> Result<EnvFilter, Failure> {
    let mut all = directives.to_owned();
    if !directives.contains(ACCESS) {
        // Lines about each call come only where they are asked for: `info` is for the state of the server.
        all.push_str(&format!(",{ACCESS}=off"));
    }
    EnvFilter::try_new(all).map_err(|error| {
        Failure::new(
            Exit::Usage,
            format!("invalid log filter {directives:?}: {error}"),
        )
    })
}

impl Logs {
    /// Counts the lines that were lost so far.
    pub(crate) fn lost_lines(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let writer = self.writer.clone();
        move || writer.lost()
    }

    /// Applies the filter in `directives`, unless `RUST_LOG` is set.
    pub(crate) fn set(&self, directives: &str) -> Result<(), Failure> {
        if from_environment().is_some() {
            return Ok(());
        }
        (self.reload)(filter(directives)?).map_err(|error| Failure::new(Exit::Other, error))
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logs").finish_non_exhaustive()
    }
}

//! Logs, on standard error.

use std::{
    env, fmt, io,
    sync::{Arc, Mutex, PoisonError},
};

use clap::{Args, ValueEnum};
use tidegate_server::settings::{log_filter, log_silence};
use tracing_subscriber::{EnvFilter, reload};

use crate::{
    exit::{Exit, Failure},
    log_writer::LogWriter,
    stdio,
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

/// The log filter where none is given.
const DEFAULT: &str = "warn";

/// Changes the log filter of the running program. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Logs {
    reload: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    writer: LogWriter,
    /// The warning about the filter in force, if it was worth one.
    warning: Arc<Mutex<Option<String>>>,
}

/// Sends logs to `writer` from here on. To be called once.
pub(crate) fn init(args: &LogArgs, writer: &LogWriter) -> Result<Logs, Failure> {
    let given = args.log.as_deref().unwrap_or(DEFAULT);
    let (origin, directives) = match from_environment()? {
        Some(directives) => (EnvFilter::DEFAULT_ENV, directives),
        None => ("--log", given.into()),
    };
    let filter = filter(origin, &directives)?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
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
    let logs = Logs {
        reload,
        writer: writer.clone(),
        warning: Arc::default(),
    };
    logs.warn_of_silence(origin, &directives);
    Ok(logs)
}

/// The filter in `RUST_LOG`, which takes precedence over every other.
fn from_environment() -> Result<Option<String>, Failure> {
    let name = EnvFilter::DEFAULT_ENV;
    match env::var(name) {
        Ok(directives) if !directives.is_empty() => Ok(Some(directives)),
        Ok(_) | Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => Err(Failure::new(
            Exit::Usage,
            format!("{name}: the value is not UTF-8"),
        )),
    }
}

/// The filter that `origin` sets.
fn filter(origin: &str, directives: &str) -> Result<EnvFilter, Failure> {
    log_filter(directives).map_err(|problem| {
        let message = format!("{origin}: {directives:?} is no log filter: {problem}");
        Failure::new(Exit::Usage, message)
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
        if from_environment()?.is_some() {
            return Ok(());
        }
        (self.reload)(filter("log", directives)?)
            .map_err(|error| Failure::new(Exit::Other, error))?;
        self.warn_of_silence("log", directives);
        Ok(())
    }

    /// Warns of a filter that turns the log off without saying so, once. Not in the log, which is off.
    fn warn_of_silence(&self, origin: &str, directives: &str) {
        let warning = log_silence(directives);
        // Held while it is said: a server says at most two at the same time, and in order.
        let mut last = self.warning.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(warning) = warning.as_ref().filter(|_| *last != warning) {
            stdio::report(format_args!("warning: {origin}: {warning}"));
        }
        *last = warning;
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logs").finish_non_exhaustive()
    }
}

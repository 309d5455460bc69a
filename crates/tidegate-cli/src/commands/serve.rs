//! `tidegate serve`: the server.

use std::{
    error::Error as _,
    io::{self, Write as _},
    net::SocketAddr,
    pin::pin,
};

use clap::Args;
use tidegate_server::{BindError, ListenAddress, Server};
use tokio::sync::oneshot;

#[cfg(unix)]
use crate::reload;
use crate::{
    exit::{Exit, Failure},
    logging::Logs,
    memory,
    settings::SettingArgs,
    signals::Signals,
};

/// Run the server
///
/// Prints the address it listens on as its first line, and that of --http as its second. On SIGINT or SIGTERM it tells every client where
/// to resume and ends when all have gone, or after --drain-timeout; a second signal ends it at once.
///
/// A flag wins over the environment (TIDEGATE_DRAIN_TIMEOUT for --drain-timeout), and the environment over the
/// file of --config, which is read again on SIGHUP. Durations are written 5s, 250ms or 1m30s, sizes 64KiB, 2GiB or
/// 65536. The word none means no limit, or nothing; auto lets the server work out the value.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    settings: SettingArgs,

    /// Print the configuration in effect, with the source of each value, and exit.
    #[arg(long)]
    print_config: bool,
}

const AFTER_HELP: &str = "\
Try it, from two other terminals:
  tidegate sub 'orders.>'
  tidegate pub orders.eu.created 'order 17'

`tidegate --help` lists the exit codes.";

/// `log` is what was given on the command line.
pub(crate) async fn run(args: ServeArgs, log: Option<String>, logs: Logs) -> Result<(), Failure> {
    let asked = args.settings.with_log(log);
    let (configuration, written) = asked.read()?;
    if args.print_config {
        write!(io::stdout(), "{}", written.effective(&configuration))?;
        return Ok(());
    }
    logs.set(&configuration.log)?;
    let server = Server::bind(configuration.server.clone()).await?;
    // Before anyone knows the address, so that no signal is missed.
    let mut signals = Signals::listen()?;
    #[cfg(unix)]
    reload::on_hangup(asked, configuration, &server, logs)?;
    announce(server.listening(), server.http_addr())?;
    tokio::spawn(memory::release_freed(server.hub().clone()));
    let (stop, stopped) = oneshot::channel::<()>();
    let mut serving = pin!(server.serve(async { _ = stopped.await }));
    let report = tokio::select! {
        report = &mut serving => report,
        () = signals.next() => {
            drop(stop);
            tokio::select! {
                report = &mut serving => report,
                () = signals.next() => {
                    return Err(Failure::new(Exit::Interrupted, "ended at once by a second signal"));
                }
            }
        }
    };
    tracing::info!(
        connections_drained = report.connections_drained,
        connections_cut = report.connections_cut,
        streams_drained = report.streams_drained,
        streams_cut = report.streams_cut,
        "ended"
    );
    Ok(())
}

/// Programs that start a server read its address here, so it goes out at once, and in one piece: who has read the
/// first line may close the pipe.
fn announce(address: &ListenAddress, http: Option<SocketAddr>) -> io::Result<()> {
    let mut lines = format!("listening on {address}\n");
    if let Some(address) = http {
        lines.push_str(&format!("HTTP on {address}\n"));
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(lines.as_bytes())?;
    stdout.flush()
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        let cause = error
            .source()
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        Self::new(Exit::Other, format!("{error}{cause}"))
    }
}

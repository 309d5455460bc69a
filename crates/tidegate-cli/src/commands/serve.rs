//! `tidegate serve`: the server.

use std::{error::Error as _, io, net::SocketAddr, pin::pin, thread};

use clap::Args;
use tidegate_server::{BindError, ListenAddress, Server};
use tokio::sync::oneshot;

#[cfg(unix)]
use crate::reload;
use crate::{
    exit::{Exit, Failure},
    logging::Logs,
    memory,
    settings::{self, Read, SettingArgs},
    signals::Signals,
    stdio,
};

/// Run the server
///
/// Prints the address it listens on as its first line, and that of --http as its second. On SIGINT or SIGTERM it tells
/// every client where to resume and ends when all have gone, or after --drain-timeout, with exit code 0; a second signal
/// ends it at once. A drain that was asked for over the network, by AdminService.Drain, ends it with exit code 10, so
/// that a supervisor which restarts on failure starts it again.
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
    let Read {
        value: (configuration, written),
        read_once,
    } = asked.read()?;
    if args.print_config {
        return Ok(stdio::print(written.effective(&configuration))?);
    }
    logs.set(&configuration.log)?;
    if let Some(path) = &read_once {
        tracing::warn!(
            path = %path.display(),
            "the configuration came from a pipe or an open file, such as standard input, so it cannot be read again on SIGHUP"
        );
    }
    for warning in written.warnings() {
        tracing::warn!("{warning}");
    }
    let server = Server::bind(configuration.server.clone()).await?;
    server.controls().count_lost_log_lines(logs.lost_lines());
    // Before anyone knows the address, so that no signal is missed.
    let mut signals = Signals::listen()?;
    #[cfg(unix)]
    reload::on_hangup((asked, read_once), (configuration, &written), &server, logs)?;
    announce(server.listening(), server.http_addr());
    let (controls, hub) = (server.controls().clone(), server.hub().clone());
    tokio::spawn(async move {
        let release = || memory::release_freed(hub.clone());
        controls.supervise("release_memory", release).await;
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let mut serving = pin!(server.serve(async { _ = stopped.await }));
    let mut is_stopped = false;
    let report = tokio::select! {
        report = &mut serving => report,
        () = signals.next() => {
            is_stopped = true;
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
    // A supervisor that restarts what has failed must not take it for the wish of its operator.
    if report.is_by_controls && !is_stopped {
        return Err(Failure::new(
            Exit::Drained,
            "drained by a call over the network; start it again",
        ));
    }
    Ok(())
}

/// Programs that start a server read its address here, so it goes out at once, and in one piece: who has read the
/// first line may close the pipe.
///
/// A thread of its own writes it, because nobody may read a pipe that is full, and the server serves all the same.
fn announce(address: &ListenAddress, http: Option<SocketAddr>) {
    let mut lines = format!("listening on {address}\n");
    if let Some(address) = http {
        lines.push_str(&format!("HTTP on {address}\n"));
    }
    let announced = address.clone();
    let write = move || {
        if let Err(error) = stdio::print(&lines) {
            warn_of_silence(&error, &announced, http);
        }
    };
    if let Err(error) = thread::Builder::new().name("announce".into()).spawn(write) {
        warn_of_silence(&error, address, http);
    }
}

fn warn_of_silence(error: &io::Error, address: &ListenAddress, http: Option<SocketAddr>) {
    let http = http.map(tracing::field::display);
    tracing::warn!(
        %error,
        %address,
        http,
        "the addresses cannot be announced on standard output; the server serves all the same"
    );
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        let cause = error
            .source()
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        Self::new(
            settings::exit(error.is_temporary()),
            format!("{error}{cause}"),
        )
    }
}

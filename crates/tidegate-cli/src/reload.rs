//! Reading the configuration again on SIGHUP.

use std::io;

use tidegate_server::{
    Controls,
    settings::{Configuration, reload},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{exit::Failure, logging::Logs, settings::SettingArgs};

/// What a reload needs.
struct Reloader {
    asked: SettingArgs,
    /// What the server runs with.
    running: Configuration,
    controls: Controls,
    logs: Logs,
}

/// Reads the configuration again at each SIGHUP from here on. Without a file nothing could change, and the signal
/// keeps its meaning: the terminal is gone, and the process ends.
pub(crate) fn on_hangup(
    asked: SettingArgs,
    running: Configuration,
    controls: Controls,
    logs: Logs,
) -> io::Result<()> {
    if !asked.has_file() {
        return Ok(());
    }
    let mut hangups = signal(SignalKind::hangup())?;
    let mut reloader = Reloader {
        asked,
        running,
        controls,
        logs,
    };
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            reloader.reload();
        }
    });
    Ok(())
}

impl Reloader {
    /// Takes over what can change. A configuration with anything wrong in it changes nothing.
    fn reload(&mut self) {
        let next = match self.asked.read() {
            Ok((next, _)) => next,
            Err(failure) => return complain(&failure),
        };
        let reloaded = reload(&mut self.running, &next);
        self.controls.apply(&self.running.server);
        if let Err(failure) = self.logs.set(&self.running.log) {
            complain(&failure);
        }
        for key in &reloaded.needs_restart {
            tracing::warn!(
                key,
                "it differs in the configuration; it takes effect after a restart"
            );
        }
        tracing::info!(changed = ?reloaded.changed, "configuration read again");
    }
}

fn complain(failure: &Failure) {
    if let Failure::Told(_, message) = failure {
        message.lines().for_each(|line| tracing::error!("{line}"));
        tracing::error!("configuration not read again; nothing has changed");
    }
}

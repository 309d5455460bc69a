//! Reading the configuration again on SIGHUP, and the files that it names.

use std::io;

use tidegate_server::{
    Controls, Server,
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
    files: tidegate_server::Reloader,
    logs: Logs,
}

/// Reads the configuration, certificates, credentials and rules again at each SIGHUP from here on. Without a file of
/// any of them nothing could change, and the signal keeps its meaning: the terminal is gone, and the process ends.
pub(crate) fn on_hangup(
    asked: SettingArgs,
    running: Configuration,
    server: &Server,
    logs: Logs,
) -> io::Result<()> {
    if !asked.has_file() && !server.reloader().has_files() {
        return Ok(());
    }
    let mut hangups = signal(SignalKind::hangup())?;
    let mut reloader = Reloader {
        asked,
        running,
        controls: server.controls().clone(),
        files: server.reloader().clone(),
        logs,
    };
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            reloader.reload();
            reloader.reload_files().await;
        }
    });
    Ok(())
}

impl Reloader {
    /// Takes over what can change. A configuration with anything wrong in it changes nothing.
    fn reload(&mut self) {
        let next = match self.asked.read() {
            Ok((next, _)) => next,
            Err(failure) => {
                log_failure(&failure);
                tracing::error!("configuration not read again; nothing has changed");
                return;
            }
        };
        let reloaded = reload(&mut self.running, &next);
        self.controls.apply(&self.running.server);
        if let Err(failure) = self.logs.set(&self.running.log) {
            log_failure(&failure);
            tracing::error!("what is logged has not changed; the rest has");
        }
        for key in &reloaded.needs_restart {
            tracing::warn!(
                key,
                "it differs in the configuration; it takes effect after a restart"
            );
        }
        tracing::info!(changed = ?reloaded.changed, "configuration read again");
    }

    /// Certificates, credentials and rules are files of their own, also where the configuration has an error.
    async fn reload_files(&self) {
        if !self.files.has_files() {
            return;
        }
        match self.files.reload().await {
            Ok(()) => tracing::info!("certificates, credentials and rules read again"),
            Err(errors) => errors.iter().for_each(|error| {
                let error = error.with_cause();
                tracing::error!("{error}; what was there before stays");
            }),
        }
    }
}

fn log_failure(failure: &Failure) {
    if let Failure::Reported(_, message) = failure {
        message.lines().for_each(|line| tracing::error!("{line}"));
    }
}

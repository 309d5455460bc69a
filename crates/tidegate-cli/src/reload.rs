//! Reloading the configuration, and the files that it names, on SIGHUP.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::Arc,
};

use tidegate_server::{
    Controls, Server,
    settings::{Configuration, Written, reload},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Mutex,
};

use crate::{exit::Failure, logging::Logs, settings::SettingArgs};

/// Everything that a reload needs.
struct Reloader {
    asked: SettingArgs,
    /// The pipe that the configuration came from, if it came from one.
    pipe: Option<PathBuf>,
    /// Whether the file had a setting when it was read last.
    file_has_settings: bool,
    /// The settings in force.
    running: Configuration,
    controls: Controls,
    files: tidegate_server::Reloader,
    logs: Logs,
}

/// Reloads the configuration, certificates, credentials and rules at each SIGHUP from here on. If none of them is in a
/// file, nothing could change, and the signal keeps its default action: it ends the process.
pub(crate) fn on_hangup(
    (asked, pipe): (SettingArgs, Option<PathBuf>),
    (running, written): (Configuration, &Written),
    server: &Server,
    logs: Logs,
) -> io::Result<()> {
    if !asked.has_file() && !server.reloader().has_files() {
        return Ok(());
    }
    let hangups = signal(SignalKind::hangup())?;
    let reloader = Reloader {
        asked,
        pipe,
        file_has_settings: written.has_settings_of_a_file(),
        running,
        controls: server.controls().clone(),
        files: server.reloader().clone(),
        logs,
    };
    let controls = server.controls().clone();
    // Outside of the task, which may panic: it goes on with the settings that are in force, and no signal is missed.
    let state = Arc::new(Mutex::new((hangups, reloader)));
    tokio::spawn(async move {
        let obey = || {
            let state = Arc::clone(&state);
            async move {
                let mut state = state.lock().await;
                let (hangups, reloader) = &mut *state;
                while hangups.recv().await.is_some() {
                    reloader.reload().await;
                    reloader.reload_files().await;
                }
            }
        };
        controls.supervise("reload", obey).await;
    });
    Ok(())
}

impl Reloader {
    /// Applies the settings that can change in a running server. A configuration with an error changes nothing.
    async fn reload(&mut self) {
        let asked = self.asked.clone();
        let pipe = self.pipe.clone();
        let read = move || match pipe.is_some_and(|path| is_spent(&path)) {
            true => None,
            false => Some(asked.read_again()),
        };
        // A file on a network file system may take its time, and the runtime has other things to do.
        let read = match tokio::task::spawn_blocking(read).await {
            Ok(Some(read)) => read,
            Ok(None) => {
                tracing::warn!(
                    "the configuration came from a pipe, which can be read only once: it is kept as it is. Put it into a \
                     file to change it while the server runs"
                );
                return;
            }
            Err(error) => match error.try_into_panic() {
                // Whoever runs this counts it, and begins again.
                Ok(panic) => resume_unwind(panic),
                // A runtime that shuts down has dropped it before it ran.
                Err(_) => return,
            },
        };
        let next = match read {
            Ok((next, written)) => {
                for warning in written.warnings() {
                    tracing::warn!("{warning}");
                }
                // A file may be emptied on purpose. An editor, or a `>` in a shell, does it by accident.
                let has_settings = written.has_settings_of_a_file();
                if self.file_has_settings && !has_settings {
                    tracing::warn!(
                        "the file of the configuration has become empty: its settings are at their defaults"
                    );
                }
                self.file_has_settings = has_settings;
                next
            }
            Err(failure) => {
                log_failure(&failure);
                tracing::error!("the configuration was not reloaded; nothing has changed");
                return;
            }
        };
        let reloaded = reload(&mut self.running, &next);
        self.controls.apply(&self.running.server);
        if let Err(failure) = self.logs.set(&self.running.log) {
            log_failure(&failure);
            tracing::error!("the log filter has not changed; the other settings have");
        }
        for key in &reloaded.needs_restart {
            tracing::warn!(
                key,
                "the new value of this setting takes effect after a restart"
            );
        }
        tracing::info!(changed = ?reloaded.changed, "configuration reloaded");
    }

    /// Reloads certificates, credentials and rules: these files are independent of an error in the configuration.
    async fn reload_files(&self) {
        if !self.files.has_files() {
            return;
        }
        match self.files.reload().await {
            Ok(()) => tracing::info!("certificates, credentials and rules reloaded"),
            Err(errors) => errors.iter().for_each(|error| {
                let error = error.with_cause();
                tracing::error!("{error}; its previous contents stay in force");
            }),
        }
    }
}

/// Whether a pipe that was read is still there, or gone. A file may have taken its place.
fn is_spent(path: &Path) -> bool {
    fs::metadata(path).map_or(true, |found| found.file_type().is_fifo())
}

fn log_failure(failure: &Failure) {
    if let Failure::Reported(_, message) = failure {
        message.lines().for_each(|line| tracing::error!("{line}"));
    }
}

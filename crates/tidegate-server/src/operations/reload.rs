//! The reload of certificates, credentials, keys and rules when their files change.

use std::{
    panic::resume_unwind,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use tokio::time;
use tokio_util::task::AbortOnDropHandle;

use super::controls::Controls;
use crate::{
    config::ServerConfig,
    error::BindError,
    files::{Files, Look, SecurityError, aside},
    identity::Authenticator,
    network::tls::Tls,
};

/// The time between two checks of the files. Streams whose credentials or rights are withdrawn must end within 5 s of
/// the change, and this leaves 3 s for a slow machine.
const INTERVAL: Duration = Duration::from_secs(2);

/// The time between two looks at files that have changed, until two agree. An editor or a copy truncates a file before it
/// writes it, and what is between the two says that nobody may do anything.
const SETTLING: Duration = Duration::from_millis(250);

/// The most looks at files that have changed. What changes all the time must not hold off what it says.
const MAX_LOOKS: u32 = 5;

/// The time between two looks at the expiry of the certificate.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

/// A handle that reads certificates, tokens, keys and rules again. Cheap to clone; all clones are of the same server.
#[derive(Debug, Clone)]
pub struct Reloader {
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) authenticator: Option<Arc<Authenticator>>,
    /// Held while files are read and put in force. Of two reloads at once, the one that read earlier could put its
    /// contents in force last, and a token that had been withdrawn would be good again.
    turn: Arc<Mutex<()>>,
}

impl Reloader {
    /// Reads the certificates, credentials, keys and rules that `config` names.
    ///
    /// # Errors
    /// When they cannot be used, or credentials would cross a network without TLS.
    pub(crate) fn new(config: &ServerConfig) -> Result<Self, BindError> {
        let tls = config.tls.clone().map(Tls::new).transpose()?.map(Arc::new);
        let auth = &config.auth;
        let is_open = tls.is_none() && !config.listen.is_local();
        if auth.takes_tokens() && is_open && !auth.insecure {
            let address = config.listen.clone();
            return Err(BindError::PlaintextCredentials { address });
        }
        let authenticator = Authenticator::new(auth.clone(), tls.as_deref())?;
        Ok(Self {
            tls,
            authenticator,
            turn: Arc::default(),
        })
    }

    /// Reads all files again and fetches all key sets, whether or not they have changed. The server does so by itself
    /// within 2 s of a change to a file. When this returns, their contents are in force: new connections get the new
    /// certificate, and streams end that would be refused now.
    ///
    /// A key set that cannot be fetched is logged, and is no error here.
    ///
    /// # Errors
    /// One error for each file that could not be loaded. The previous contents of that file stay in force; the files
    /// that did load take effect.
    pub async fn reload(&self) -> Result<(), Vec<SecurityError>> {
        let errors = self.clone().reload_files(true).await;
        if let Some(authenticator) = &self.authenticator {
            authenticator.fetch(|_| Duration::ZERO).await;
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(errors),
        }
    }

    /// Whether the server has TLS or authentication, and so files to read.
    #[must_use]
    pub const fn has_files(&self) -> bool {
        self.tls.is_some() || self.authenticator.is_some()
    }

    /// Spawns a task that reloads files when they change and fetches key sets when they are due, until the handle is
    /// dropped. `None` if there are no files.
    pub(crate) fn spawn_refresh(&self, controls: Controls) -> Option<AbortOnDropHandle<()>> {
        let reloader = self.clone();
        let supervised = async move {
            let refresh = || reloader.clone().refresh();
            controls.supervise("refresh", refresh).await;
        };
        self.has_files()
            .then(|| AbortOnDropHandle::new(tokio::spawn(supervised)))
    }

    async fn refresh(self) {
        let files = async {
            // The first tick is skipped: the files were read when the server was made.
            let mut ticks = time::interval_at(time::Instant::now() + INTERVAL, INTERVAL);
            loop {
                ticks.tick().await;
                if !self.has_settled_changes().await {
                    continue;
                }
                for error in self.clone().reload_files(false).await {
                    tracing::error!(error = %error.with_cause(), "cannot reload a file; its previous contents stay in force");
                }
            }
        };
        let keys = async {
            let mut ticks = time::interval(INTERVAL);
            while let Some(authenticator) = &self.authenticator {
                ticks.tick().await;
                authenticator.fetch(|set| set.refresh_interval).await;
            }
        };
        let expiry = async {
            let mut ticks = time::interval(EXPIRY_INTERVAL);
            while let Some(tls) = &self.tls {
                ticks.tick().await;
                match tls.due_notice(SystemTime::now()) {
                    Some(notice) if notice.is_error => tracing::error!("{}", notice.text),
                    Some(notice) => tracing::warn!("{}", notice.text),
                    None => {}
                }
            }
        };
        tokio::join!(files, keys, expiry);
    }

    async fn reload_files(self, force: bool) -> Vec<SecurityError> {
        let reloaded = aside(move || self.reload_now(force)).await;
        reloaded.unwrap_or_default()
    }

    /// Waits while the files are being written, until two looks at them agree. Returns whether one of them has changed.
    async fn has_settled_changes(&self) -> bool {
        let mut last = None;
        for _ in 0..MAX_LOOKS {
            let files = self.clone();
            let now = aside(move || files.look_for_changes()).await.flatten();
            if now.is_none() {
                return false;
            }
            if now == last {
                return true;
            }
            last = now;
            time::sleep(SETTLING).await;
        }
        true
    }

    /// How the files look. Nothing if none of them has changed since it was read.
    fn look_for_changes(&self) -> Option<Vec<Look>> {
        // All at once: where several are late, as on one file system, they are so together.
        let looks: Vec<_> = thread::scope(|scope| {
            let begun = self.files().map(|files| {
                let thread = thread::Builder::new().name("tidegate-look".into());
                (files, thread.spawn_scoped(scope, || files.look()))
            });
            let begun: Vec<_> = begun.collect();
            let looks = begun.into_iter().map(|(files, look)| {
                let look = match look {
                    // It must not look as if nothing had changed.
                    Ok(look) => look.join().unwrap_or_else(|panic| resume_unwind(panic)),
                    // No thread is left for it, so they are late one after the other.
                    Err(_) => files.look(),
                };
                (files, look)
            });
            looks.collect()
        });
        let has_changed = looks.iter().any(|(files, look)| files.has_changed(look));
        has_changed.then(|| looks.into_iter().map(|(_, look)| look).collect())
    }

    fn files(&self) -> impl Iterator<Item = &Files> {
        let own = self.tls.iter().map(|tls| tls.files());
        own.chain(self.authenticator.iter().flat_map(|auth| auth.files()))
    }

    fn reload_now(&self, force: bool) -> Vec<SecurityError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut errors = Vec::new();
        if let Some(tls) = &self.tls {
            let (is_new, failed) = tls.reload(force);
            errors.extend(failed);
            if is_new {
                tracing::info!("certificates reloaded");
                for (setting, message) in tls.warnings() {
                    tracing::warn!(setting, "{message}");
                }
                if let Some(authenticator) = &self.authenticator {
                    authenticator.set_verifier(tls.verifier());
                }
            }
        }
        if let Some(authenticator) = &self.authenticator {
            errors.extend(authenticator.reload(force));
        }
        errors
    }
}

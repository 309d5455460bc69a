//! The reload of certificates, credentials, keys and rules when their files change.

use std::{sync::Arc, time::Duration};

use tokio::time;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::ServerConfig, error::BindError, files::SecurityError, identity::Authenticator,
    network::tls::Tls,
};

/// The time between two checks of the files. Streams whose credentials or rights are withdrawn must end within 5 s of
/// the change, and this leaves 3 s for a slow machine.
const INTERVAL: Duration = Duration::from_secs(2);

/// A handle that reads certificates, tokens, keys and rules again. Cheap to clone; all clones are of the same server.
#[derive(Debug, Clone)]
pub struct Reloader {
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) authenticator: Option<Arc<Authenticator>>,
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
        Ok(Self { tls, authenticator })
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
    pub(crate) fn spawn_refresh(&self) -> Option<AbortOnDropHandle<()>> {
        self.has_files()
            .then(|| AbortOnDropHandle::new(tokio::spawn(self.clone().refresh())))
    }

    async fn refresh(self) {
        let files = async {
            // The first tick is skipped: the files were read when the server was made.
            let mut ticks = time::interval_at(time::Instant::now() + INTERVAL, INTERVAL);
            loop {
                ticks.tick().await;
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
        tokio::join!(files, keys);
    }

    async fn reload_files(self, force: bool) -> Vec<SecurityError> {
        let reloaded = tokio::task::spawn_blocking(move || self.reload_now(force));
        // Only a runtime that shuts down drops the task before it has run.
        reloaded.await.unwrap_or_default()
    }

    fn reload_now(&self, force: bool) -> Vec<SecurityError> {
        let mut errors = Vec::new();
        if let Some(tls) = &self.tls {
            match tls.reload(force) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!("certificates reloaded");
                    if let Some(authenticator) = &self.authenticator {
                        authenticator.set_verifier(tls.verifier());
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        if let Some(authenticator) = &self.authenticator {
            errors.extend(authenticator.reload(force));
        }
        errors
    }
}

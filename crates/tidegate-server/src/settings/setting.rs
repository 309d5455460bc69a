//! A setting, and the configuration that settings make.

use super::security::Security;
use crate::config::ServerConfig;

/// The beginning of the environment variable of every setting.
pub const VARIABLES: &str = "TIDEGATE_";

/// A thing that can be set.
#[derive(Debug)]
pub struct Setting {
    /// Where it stands in the file: its section, a dot, its name; or its name alone.
    pub key: &'static str,
    /// What its value is, for help: `DURATION`, `SIZE`. With three dots, it may have several.
    pub value_name: &'static str,
    /// What it is about: whole sentences.
    pub about: &'static str,
    /// Whether a reload changes it.
    pub reloads: bool,
    pub(super) get: fn(&Configuration) -> String,
    pub(super) set: fn(&mut Configuration, &str) -> Result<(), String>,
}

/// A configuration as it is meant.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Configuration {
    /// How the server behaves.
    pub server: ServerConfig,
    /// What to log: a filter of `tracing-subscriber`.
    pub log: String,
    /// What `server.tls` and `server.auth` are made of.
    pub(super) security: Security,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            log: "warn".into(),
            security: Security::default(),
        }
    }
}

impl Setting {
    /// The long flag, without the dashes before it: `http2-stream-window` for the key `http2.stream_window`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.key.replace(['.', '_'], "-")
    }

    /// The environment variable: `TIDEGATE_HTTP2_STREAM_WINDOW` for the key `http2.stream_window`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLES}{}", self.key.replace('.', "_").to_uppercase())
    }

    /// The section of the file that it stands in; empty at the top.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// The text of its default.
    #[must_use]
    pub fn default(&self) -> String {
        (self.get)(&Configuration::default())
    }

    /// Whether a text can be its value.
    ///
    /// # Errors
    /// What is wrong, and how to write it.
    pub fn check(&self, text: &str) -> Result<(), String> {
        (self.set)(&mut Configuration::default(), text)
    }

    /// Whether it may have several values. Their texts stand in one, with [`SEPARATOR`](super::SEPARATOR) between.
    #[must_use]
    pub fn takes_several(&self) -> bool {
        self.value_name.ends_with("...")
    }
}

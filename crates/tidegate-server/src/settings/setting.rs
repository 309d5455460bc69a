//! One setting, and the configuration that all of them make.

use super::security::Security;
use crate::config::ServerConfig;

/// The beginning of the environment variable of every setting.
pub const VARIABLES: &str = "TIDEGATE_";

/// A setting: one row of [`SETTINGS`](super::SETTINGS).
#[derive(Debug)]
pub struct Setting {
    /// The key in the file: section, dot, name, or the name alone. Words are joined by underscores.
    pub key: &'static str,
    /// The kind of its value, for help: `DURATION`, `SIZE`. Three dots at the end mean that it takes a list.
    pub value_name: &'static str,
    /// The help: whole sentences. The first begins with the noun that the value is.
    pub about: &'static str,
    /// Whether a reload changes it. Others need a restart.
    pub reloads: bool,
    /// Writes its value in a configuration as text, which `set` reads as the same value.
    pub(super) get: fn(&Configuration) -> String,
    /// Reads a text and puts its value into a configuration. The error says how to write it instead.
    pub(super) set: fn(&mut Configuration, &str) -> Result<(), String>,
}

/// A configuration: the meaning of all values.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Configuration {
    /// The configuration of the server.
    pub server: ServerConfig,
    /// The filter of the log, in the syntax of `tracing-subscriber`'s `EnvFilter`. Default: `warn`.
    pub log: String,
    /// The values that `server.tls` and `server.auth` are made of.
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

    /// The section of its key, without brackets; empty for a key at the top of the file.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// Its default, as text.
    #[must_use]
    pub fn default(&self) -> String {
        (self.get)(&Configuration::default())
    }

    /// Checks that a text can be its value.
    ///
    /// # Errors
    /// A sentence on how to write it instead.
    pub fn check(&self, text: &str) -> Result<(), String> {
        (self.set)(&mut Configuration::default(), text)
    }

    /// Whether it takes a list of values. Their texts are one text, with [`SEPARATOR`](super::SEPARATOR) between them.
    #[must_use]
    pub fn takes_several(&self) -> bool {
        self.value_name.ends_with("...")
    }
}

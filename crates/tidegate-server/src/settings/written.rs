//! A configuration as it is written: the text of each value, and its origin.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use super::{
    example::write_sections,
    setting::{Configuration, Setting},
};
use crate::memory::Budget;

/// A configuration as it is written: the text and the origin of each [`Setting`] that a source sets.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// By key, the text of the strongest source. Every text has passed [`Setting::check`].
    values: BTreeMap<&'static str, (String, Origin)>,
    warnings: Vec<Problem>,
}

/// The place where a value is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The path of the file, and the line in it, from 1.
    File(PathBuf, usize),
    /// The name of the environment variable.
    Environment(String),
    /// The name of the flag, without dashes before it.
    Flag(String),
    /// The key of a setting that no source sets.
    Default(&'static str),
}

/// An error in a configuration, or something to warn of. Displays as its origin, a colon and its message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct Problem {
    /// The place of the error.
    pub origin: Origin,
    /// The error, and how to correct it.
    pub message: String,
    /// Whether it may pass by itself, such as a file that cannot be read now; see
    /// [`SecurityError::is_temporary`](crate::SecurityError::is_temporary).
    pub is_temporary: bool,
}

impl Problem {
    /// Makes a problem that does not pass by itself.
    pub fn new(origin: Origin, message: impl Into<String>) -> Self {
        Self {
            origin,
            message: message.into(),
            is_temporary: false,
        }
    }

    /// Its place in a report: by line in the file, problems of other sources after all lines.
    pub(super) fn place(&self) -> usize {
        match self.origin {
            Origin::File(_, line) => line,
            Origin::Environment(_) | Origin::Flag(_) | Origin::Default(_) => usize::MAX,
        }
    }
}

impl Written {
    /// The configuration in effect as a file, with the origin of each value in a comment behind it. The file, read
    /// alone, means the same.
    #[must_use]
    pub fn effective(&self, configuration: &Configuration) -> String {
        let mut text = String::new();
        write_sections(&mut text, |setting, text| {
            let origin = self.origin(setting.key);
            let origin = origin.map_or_else(|| "default".into(), ToString::to_string);
            // The one value whose meaning differs from process to process.
            let meaning = match setting.key {
                "memory_budget" if configuration.server.memory_budget.is_none() => {
                    let Budget { bytes, source, .. } = Budget::new(None);
                    format!(": {bytes} bytes, {source}")
                }
                _ => String::new(),
            };
            let line = setting.line(configuration);
            text.push_str(&format!("{line} # {origin}{meaning}\n"));
        });
        text
    }

    /// The origin of the value of a key; `None` if no source sets it.
    #[must_use]
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.values.get(key).map(|(_, origin)| origin)
    }

    /// The origin of the value of a key, or that no source sets it.
    pub(super) fn origin_or_default(&self, key: &'static str) -> Origin {
        self.origin(key).cloned().unwrap_or(Origin::Default(key))
    }

    /// Whether a file has at least one setting that no stronger source sets.
    #[must_use]
    pub fn has_settings_of_a_file(&self) -> bool {
        let mut origins = self.values.values().map(|(_, origin)| origin);
        origins.any(|origin| matches!(origin, Origin::File(..)))
    }

    /// Everything in the sources that is no error and yet may be a mistake.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Adds a warning.
    pub(super) fn warn(&mut self, warning: Problem) {
        self.warnings.push(warning);
    }

    /// Puts a value over those of weaker sources. A value with an error goes to `problems` instead.
    pub(super) fn set(
        &mut self,
        setting: &'static Setting,
        text: String,
        origin: Origin,
        problems: &mut Vec<Problem>,
    ) {
        match setting.check(&text) {
            Ok(()) => _ = self.values.insert(setting.key, (text, origin)),
            Err(message) => {
                let message = format!("{} = {text:?}: {message}", setting.key);
                problems.push(Problem::new(origin, message));
            }
        }
    }

    /// The meaning of all values.
    pub(super) fn configuration(&self) -> Configuration {
        let mut configuration = Configuration::default();
        for (key, (text, _)) in &self.values {
            let setting = Setting::of(key).expect("only keys of the table are written");
            (setting.set)(&mut configuration, text).expect("it was checked");
        }
        configuration.server.tls = configuration.security.tls();
        configuration.server.auth = configuration.security.auth();
        configuration
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(variable) => f.write_str(variable),
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Default(key) => write!(f, "{key} (default)"),
        }
    }
}

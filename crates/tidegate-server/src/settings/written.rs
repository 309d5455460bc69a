//! A configuration as it is written: texts, and where each stands.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use super::{
    example::write_sections,
    setting::{Configuration, Setting},
};

/// A configuration as it is written: for each [`Setting`] that is set, by its key, the text that counts.
#[derive(Debug, Clone, Default)]
pub struct Written {
    values: BTreeMap<&'static str, (String, Origin)>,
}

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the file, on this line.
    File(PathBuf, usize),
    /// In this environment variable.
    Environment(String),
    /// In this flag.
    Flag(String),
}

/// Something that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What, and how to mend it.
    pub message: String,
}

impl Problem {
    /// The line in the file; what stands elsewhere comes after all lines.
    pub(super) fn place(&self) -> usize {
        match self.origin {
            Origin::File(_, line) => line,
            Origin::Environment(_) | Origin::Flag(_) => usize::MAX,
        }
    }
}

impl Written {
    /// The configuration that counts, as a file, and behind each value where it comes from.
    #[must_use]
    pub fn effective(&self, configuration: &Configuration) -> String {
        let mut text = String::new();
        write_sections(&mut text, |setting, text| {
            let origin = self.origin(setting.key);
            let origin = origin.map_or_else(|| "default".into(), ToString::to_string);
            text.push_str(&format!("{} # {origin}\n", setting.line(configuration)));
        });
        text
    }

    /// Where the value of a key stands; `None` if it is the default.
    #[must_use]
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.values.get(key).map(|(_, origin)| origin)
    }

    /// Puts a value over those of weaker sources, unless it is wrong.
    pub(super) fn set(
        &mut self,
        setting: &'static Setting,
        text: String,
        origin: Origin,
        problems: &mut Vec<Problem>,
    ) {
        match setting.check(&text) {
            Ok(()) => _ = self.values.insert(setting.key, (text, origin)),
            Err(message) => problems.push(Problem {
                message: format!("{} = {text:?}: {message}", setting.key),
                origin,
            }),
        }
    }

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
        }
    }
}

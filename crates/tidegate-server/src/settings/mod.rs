//! The settings of a server, read from a file, the environment and the command line.
//!
//! # Precedence
//! A flag wins over the environment, the environment over the file, the file over the default.
//!
//! # Text and meaning
//! [`Written`] has the text of each value and its origin. [`Configuration`] has the meaning of those texts. [`read`]
//! makes both from the sources, and reports every error in all of them at once, also in values that a stronger source
//! overrides.
//!
//! # One table
//! [`SETTINGS`] has one row for each setting. The table decides which keys, variables and flags are accepted, what
//! [`example()`] lists, and what a reload changes; no source has a setting that another lacks.
//!
//! # Names
//! Flag and variable follow from the key: `http2.stream_window` in the file is `--http2-stream-window` and
//! `TIDEGATE_HTTP2_STREAM_WINDOW`. No row can differ. A key, a variable or a flag without a setting is an error that
//! names the nearest setting; only variables that come near none are ignored.

mod contents;
mod example;
mod file;
mod forms;
mod names;
mod reload;
mod security;
mod setting;
mod table;
mod written;

use std::{collections::BTreeMap, path::PathBuf};

use self::security::NEEDS;
pub use self::{
    example::example,
    forms::{SEPARATOR, bytes, duration},
    reload::{Reloaded, reload},
    setting::{Configuration, Setting, VARIABLES},
    table::SETTINGS,
    written::{Origin, Problem, Written},
};

/// The sources of values, from the weakest to the strongest.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The path and the text of the file. The path only names origins. `None` is no file.
    pub file: Option<(&'a PathBuf, &'a str)>,
    /// The variables of the environment, by name. Names that do not begin with [`VARIABLES`] are ignored.
    pub environment: &'a BTreeMap<String, String>,
    /// The key and the text of each flag on the command line. Of two with one key, the last counts.
    pub flags: &'a [(&'static str, String)],
}

/// Reads all sources. Opens none of the files that they name.
///
/// # Errors
/// Every problem, in the order of the sources, those of the file by line.
///
/// # Panics
/// If the key of a flag is not in [`SETTINGS`].
pub fn read(sources: Sources<'_>) -> Result<(Configuration, Written), Vec<Problem>> {
    let (configuration, written, problems) = read_leniently(sources);
    match problems[..] {
        [] => Ok((configuration, written)),
        _ => Err(problems),
    }
}

/// Reads all sources, and checks the files of certificates, keys, tokens and rules that they name.
///
/// Blocks on the file system. Fetches nothing and binds no address, so a server that takes the configuration may still
/// fail to start.
///
/// # Errors
/// Every problem, those of the file by line, then the others in the order of the sources. The problem of a file that a
/// setting names has the origin of that setting.
///
/// # Panics
/// If the key of a flag is not in [`SETTINGS`].
pub fn check(sources: Sources<'_>) -> Result<(), Vec<Problem>> {
    let (configuration, written, mut problems) = read_leniently(sources);
    problems.extend(contents::problems(&configuration, &written));
    // With an error in one of them, the server would find that error again, and no other.
    if problems.is_empty() {
        problems.extend(contents::together(&configuration, &written));
    }
    problems.sort_by_key(Problem::place);
    match problems[..] {
        [] => Ok(()),
        _ => Err(problems),
    }
}

/// Reads all sources, and leaves values with an error at what weaker sources say.
fn read_leniently(sources: Sources<'_>) -> (Configuration, Written, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut written = Written::default();
    if let Some((path, text)) = sources.file {
        for (setting, text, line) in file::values(path, text, &mut problems) {
            written.set(
                setting,
                text,
                Origin::File(path.clone(), line),
                &mut problems,
            );
        }
        problems.sort_by_key(Problem::place);
    }
    for setting in SETTINGS {
        let variable = setting.variable();
        if let Some(text) = sources.environment.get(&variable) {
            let origin = Origin::Environment(variable);
            written.set(setting, text.clone(), origin, &mut problems);
        }
    }
    problems.extend(
        sources
            .environment
            .keys()
            .filter_map(|name| misspelled(name)),
    );
    for (key, text) in sources.flags {
        let setting = Setting::of(key).expect("flags are made from the table");
        let origin = Origin::Flag(setting.flag());
        written.set(setting, text.clone(), origin, &mut problems);
    }
    let configuration = written.configuration();
    problems.extend(contradictions(&configuration, &written));
    (configuration, written, problems)
}

/// The problem of a variable that is no setting and comes near one. Variables that come near none are left alone:
/// orchestrators set `TIDEGATE_PORT` and the like for a service named `tidegate`.
fn misspelled(variable: &str) -> Option<Problem> {
    let name = variable.strip_prefix(VARIABLES)?;
    let meant = Setting::nearest(name).map(Setting::variable)?;
    (meant != variable).then(|| Problem {
        origin: Origin::Environment(variable.into()),
        message: format!("there is no such setting; did you mean {meant}?"),
    })
}

/// The problems of values that are right alone and wrong together.
fn contradictions<'a>(
    configuration: &'a Configuration,
    written: &'a Written,
) -> impl Iterator<Item = Problem> + 'a {
    missing(configuration, written).chain(too_large(configuration, written))
}

/// The problems of settings that need another setting, which is at its default.
fn missing<'a>(
    configuration: &'a Configuration,
    written: &'a Written,
) -> impl Iterator<Item = Problem> + 'a {
    let is_set = |key: &str| {
        Setting::of(key).is_some_and(|setting| (setting.get)(configuration) != setting.default())
    };
    NEEDS.iter().filter_map(move |&(key, needed)| {
        let origin = written.origin(key).filter(|_| is_set(key))?;
        (!is_set(needed)).then(|| Problem {
            origin: origin.clone(),
            message: format!("{key} needs {needed}: set it too"),
        })
    })
}

/// The problem of a limit on one event above that on the request that has to carry it.
fn too_large(configuration: &Configuration, written: &Written) -> Option<Problem> {
    let publish = &configuration.server.service.publish;
    let origin = written.origin("limits.max_event_bytes");
    let origin = origin.or_else(|| written.origin("limits.max_publish_bytes"))?;
    (publish.max_event_bytes > publish.max_batch_bytes).then(|| Problem {
        origin: origin.clone(),
        message: "limits.max_event_bytes is above limits.max_publish_bytes, so the largest events could not be \
                  published: lower it, or raise the other"
            .into(),
    })
}

#[cfg(test)]
mod tests;

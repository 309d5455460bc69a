//! What can be set about a server, and where from: a file, the environment, the command line.
//!
//! # Precedence
//! A flag wins over the environment, the environment over the file, the file over the default.
//!
//! # As written, and as meant
//! [`Written`] has texts and where each stands. [`Configuration`] has what they mean. [`read`] makes the second of the
//! first, and reports everything that is wrong with all sources at once, what is overridden included.
//!
//! # One table
//! [`SETTINGS`] has one row for each thing that can be set, and everything is made from it: what is accepted in the
//! file, in the environment and as a flag, [`example`], and what a reload changes.

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

/// Where values come from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The path and the text of the file.
    pub file: Option<(&'a PathBuf, &'a str)>,
    /// The variables of the environment, by their names. Those that do not begin with [`VARIABLES`] do not matter.
    pub environment: &'a BTreeMap<String, String>,
    /// What was given on the command line: keys and texts.
    pub flags: &'a [(&'static str, String)],
}

/// Reads all sources.
///
/// # Errors
/// Everything that is wrong, in the order of the sources, the file by its lines.
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

/// Reads all sources, and the files of certificates, keys, tokens and rules that they name.
///
/// # Errors
/// Everything that is wrong, in the order of the sources, the file by its lines; what is wrong with a file that is
/// named, where it is named.
///
/// # Panics
/// If the key of a flag is not in [`SETTINGS`].
pub fn check(sources: Sources<'_>) -> Result<(), Vec<Problem>> {
    let (configuration, written, mut problems) = read_leniently(sources);
    problems.extend(contents::problems(&configuration, &written));
    if problems.is_empty() {
        problems.extend(contents::together(&configuration, &written));
    }
    problems.sort_by_key(Problem::place);
    match problems[..] {
        [] => Ok(()),
        _ => Err(problems),
    }
}

/// Reads all sources, and leaves out what is wrong.
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

/// What is wrong with a variable that is no setting and comes near one. What comes near none is somebody else's:
/// orchestrators set `TIDEGATE_PORT` and the like for a service named `tidegate`.
fn misspelled(variable: &str) -> Option<Problem> {
    let name = variable.strip_prefix(VARIABLES)?;
    let meant = Setting::nearest(name).map(Setting::variable)?;
    (meant != variable).then(|| Problem {
        origin: Origin::Environment(variable.into()),
        message: format!("there is no such setting; did you mean {meant}?"),
    })
}

/// What is right by itself and wrong together.
fn contradictions<'a>(
    configuration: &'a Configuration,
    written: &'a Written,
) -> impl Iterator<Item = Problem> + 'a {
    missing(configuration, written).chain(too_large(configuration, written))
}

/// What makes no sense without something else that is not there.
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

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
//! names the nearest setting; a variable that comes near none is warned of, unless it is one that orchestrators set.
//! An empty variable is as if it were not set.

mod contents;
mod example;
mod file;
mod forms;
mod log;
mod names;
mod reload;
mod security;
mod setting;
mod table;
mod variables;
mod written;

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

use self::security::NEEDS;
use crate::network::listener::ListenAddress;

pub use self::{
    example::example,
    forms::{SEPARATOR, bytes, duration},
    log::{log_filter, log_silence},
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
    /// The variables of the environment, by name. Those that have nothing to do with [`VARIABLES`] are ignored.
    pub environment: &'a BTreeMap<OsString, OsString>,
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

/// Reads all sources, and makes everything that a server makes at its start, but for its listeners and its hub: it
/// reads the files of certificates, keys, tokens and rules that the settings name. Returns what a server would warn of.
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
pub fn check(sources: Sources<'_>) -> Result<Vec<Problem>, Vec<Problem>> {
    let (configuration, written, mut problems) = read_leniently(sources);
    problems.extend(contents::problems(&configuration, &written));
    let mut warnings = written.warnings().to_vec();
    // A server says it by itself: its log could not.
    let silence = log_silence(&configuration.log);
    warnings.extend(silence.map(|message| Problem::new(written.origin_or_default("log"), message)));
    // With an error in one of them, the server would find that error again, and no other.
    if problems.is_empty() {
        match contents::together(&configuration, &written) {
            Ok(further) => warnings.extend(further),
            Err(problem) => problems.push(problem),
        }
    }
    problems.sort_by_key(Problem::place);
    warnings.sort_by_key(Problem::place);
    match problems[..] {
        [] => Ok(warnings),
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
    variables::read(sources.environment, &mut written, &mut problems);
    for (key, text) in sources.flags {
        let setting = Setting::of(key).expect("flags are made from the table");
        let origin = Origin::Flag(setting.flag());
        written.set(setting, text.clone(), origin, &mut problems);
    }
    let configuration = written.configuration();
    problems.extend(contradictions(&configuration, &written));
    (configuration, written, problems)
}

/// The problems of values that are right alone and wrong together.
fn contradictions<'a>(
    configuration: &'a Configuration,
    written: &'a Written,
) -> impl Iterator<Item = Problem> + 'a {
    missing(configuration, written)
        .chain(too_large(configuration, written))
        .chain(taken(configuration, written))
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
        let message = format!("{key} needs {needed}: set it too");
        (!is_set(needed)).then(|| Problem::new(origin.clone(), message))
    })
}

/// The problem of a limit on one event above that on the request that has to carry it.
fn too_large(configuration: &Configuration, written: &Written) -> Option<Problem> {
    let publish = &configuration.server.service.publish;
    let origin = written.origin("limits.max_event_bytes");
    let origin = origin.or_else(|| written.origin("limits.max_publish_bytes"))?;
    let message = "limits.max_event_bytes is above limits.max_publish_bytes, so the largest events could not be published: \
                   lower it, or raise the other";
    let is_above = publish.max_event_bytes > publish.max_batch_bytes;
    is_above.then(|| Problem::new(origin.clone(), message))
}

/// The problem of two listeners at one address.
fn taken(configuration: &Configuration, written: &Written) -> Option<Problem> {
    let ListenAddress::Tcp(listen) = configuration.server.listen else {
        return None;
    };
    let http = configuration.server.http?;
    // An address that stands for all of them takes the port of each.
    let is_same = listen.ip() == http.ip()
        || (listen.is_ipv4() == http.is_ipv4()
            && (listen.ip().is_unspecified() || http.ip().is_unspecified()));
    let is_taken = is_same && listen.port() == http.port() && http.port() != 0;
    let message =
        format!("http = {http} is taken by listen = {listen}: give one of them another port");
    is_taken.then(|| Problem::new(written.origin_or_default("http"), message))
}

#[cfg(test)]
mod tests;

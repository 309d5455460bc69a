//! The scenarios that come with the crate, and those of a folder.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use crate::scenario::{Scenario, ScenarioError};

/// Name and text of a file.
macro_rules! file {
    ($name:literal) => {
        (
            $name,
            include_str!(concat!("../scenarios/", $name, ".toml")),
        )
    };
}

/// Names and texts of the files in `scenarios/`, in order.
const FILES: &[(&str, &str)] = &[
    file!("back-off-grows"),
    file!("back-off-is-random"),
    file!("client-id-taken"),
    file!("credentials-are-kept"),
    file!("credentials-are-refused"),
    file!("credentials-are-renewed"),
    file!("delay-in-the-details"),
    file!("delay-of-going-away"),
    file!("delay-of-the-server"),
    file!("delay-that-cannot-be-read"),
    file!("details-that-cannot-be-read"),
    file!("event-in-full"),
    file!("gap-in-its-place"),
    file!("gap-of-unknown-reason"),
    file!("heartbeats-keep-a-stream"),
    file!("index-as-documented"),
    file!("index-broken"),
    file!("position-ahead"),
    file!("position-batch"),
    file!("position-caught-up"),
    file!("position-epoch-changed"),
    file!("position-gap"),
    file!("position-gap-conflated"),
    file!("position-gap-expired"),
    file!("position-going-away"),
    file!("position-going-away-of-another-epoch"),
    file!("position-half-event"),
    file!("position-heartbeat"),
    file!("position-large-numbers"),
    file!("position-live-start"),
    file!("position-nothing-settled"),
    file!("position-replay-start"),
    file!("position-resume-start"),
    file!("reason-in-the-details"),
    file!("reason-in-the-trailer"),
    file!("reason-of-another-domain"),
    file!("request-is-repeated"),
    file!("request-keeps-the-assigned-id"),
    file!("response-of-unknown-kind"),
    file!("resume-after-a-broken-connection"),
    file!("resume-after-a-code"),
    file!("resume-after-a-page"),
    file!("resume-after-a-reason"),
    file!("resume-after-a-refusal"),
    file!("resume-after-a-reset"),
    file!("resume-after-ok"),
    file!("resume-over-a-new-connection"),
    file!("silence-is-noticed"),
    file!("silence-of-a-slow-link"),
    file!("stop-at-a-code"),
    file!("stop-at-a-page"),
    file!("stop-at-a-reason"),
    file!("stop-at-a-refusal"),
    file!("stop-at-an-ended-stream"),
];

/// Returns the names and texts of the files that come with the crate.
pub fn files() -> impl Iterator<Item = (&'static str, &'static str)> {
    FILES.iter().copied()
}

/// Returns the scenarios that come with the crate.
///
/// # Panics
/// A file of the crate cannot be read, which its tests exclude.
pub fn scenarios() -> Vec<Scenario> {
    let read = files().map(|(name, text)| Scenario::read(name, text));
    let read: Result<Vec<_>, _> = read.collect();
    read.expect("a test reads them").concat()
}

/// The largest file of scenarios, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Reads a file of scenarios. Any other kind is refused before it is opened: a pipe without a writer blocks, and a device
/// may never end.
fn read_file(path: &Path) -> io::Result<String> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other(
            "it is no regular file: write the scenario to one",
        ));
    }
    let mut text = String::new();
    let mut file = fs::File::open(path)?.take(MAX_FILE + 1);
    file.read_to_string(&mut text)?;
    match text.len() as u64 > MAX_FILE {
        true => Err(io::Error::other(
            "it is larger than 1 MiB: write its scenarios to several files",
        )),
        false => Ok(text),
    }
}

/// Reads the scenarios of a folder, in the order of their names.
///
/// # Errors
/// The folder or a file of it cannot be read, or a file is no scenario.
pub fn read_folder(folder: &Path) -> Result<Vec<Scenario>, ScenarioError> {
    let error = |path: &Path, problem: String| ScenarioError {
        name: path.display().to_string(),
        problem,
    };
    let entries = fs::read_dir(folder).map_err(|fault| error(folder, fault.to_string()))?;
    let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(|fault| error(folder, fault.to_string()))?;
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    });
    paths.sort_by_cached_key(|path| path.file_stem().map(ToOwned::to_owned));
    if paths.is_empty() {
        return Err(error(
            folder,
            "it has no file whose name ends with .toml".into(),
        ));
    }
    let mut scenarios = Vec::new();
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = read_file(&path).map_err(|fault| error(&path, fault.to_string()))?;
        scenarios.extend(Scenario::read(&name, &text)?);
    }
    Ok(scenarios)
}

//! Filters of the log.
//!
//! `EnvFilter` takes any word that is no level for the name of a module, so of `inof` it makes a filter that lets
//! nothing pass. Here a word alone has to be a level or a module that this program has, and a module with a level must
//! not come near one of them without being it. Spans are refused: the program has none.

use strsim::osa_distance;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::access_log::TARGET as ACCESS;

/// The crates of this program.
const OWN: &[&str] = &[
    "tidegate",
    "tidegate_bench",
    "tidegate_client",
    "tidegate_conformance",
    "tidegate_core",
    "tidegate_http2",
    "tidegate_proto",
    "tidegate_server",
    "tidegate_transport",
];

/// The modules of these crates, a path in each line. Those of the program itself are in `tidegate`, too.
const MODULES: &str = include_str!("modules.txt");

/// Crates of others that it is made of, and that log.
const OTHERS: &[&str] = &[
    "h2",
    "hyper",
    "hyper_util",
    "mio",
    "rustls",
    "tokio",
    "tokio_util",
    "tonic",
    "tower",
    "want",
];

/// The levels, as people write them.
const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace", "off"];

/// Words that people write for a level.
const MEANT: &[(&str, &str)] = &[
    ("none", "off"),
    ("warning", "warn"),
    ("err", "error"),
    ("all", "trace"),
];

/// Reads a filter: levels, and modules with levels, with commas between them. The access log, `tidegate::access`, is off
/// unless the filter names it.
///
/// # Errors
/// The end of a sentence that says how to write it.
pub fn log_filter(text: &str) -> Result<EnvFilter, String> {
    if text.contains(char::is_control) {
        return Err("must not have control characters".into());
    }
    let mut parts = text.split(',').filter(|part| !part.is_empty()).peekable();
    if parts.peek().is_none() {
        return Err("must not be empty: write off to log nothing".into());
    }
    parts.try_for_each(check)?;
    let text = match text.contains(ACCESS) {
        true => text.into(),
        // Lines about each call come only where they are asked for: `info` is for the state of the server.
        false => format!("{text},{ACCESS}=off"),
    };
    EnvFilter::try_new(text)
        .map_err(|error| format!("{error}: write it as info, or as warn,tidegate=debug"))
}

/// The words that warn of a filter that turns the log of the program itself off without saying so. A filter that says
/// `off` means it. The text has to be one that [`log_filter`] takes.
#[must_use]
pub fn log_silence(text: &str) -> Option<String> {
    let mut parts = text.split(',').filter(|part| !part.is_empty());
    let speaks = parts.any(|part| match part.split_once('=') {
        _ if is_level(part) => true,
        Some((ACCESS, _)) => false,
        Some((name, level)) => {
            is_own(name)
                && level
                    .parse::<LevelFilter>()
                    .is_ok_and(|level| level != LevelFilter::OFF)
        }
        None => part != ACCESS && is_own(part),
    });
    (!speaks).then(|| {
        format!(
            "the filter {text:?} gives no level to the program's own modules, so not even their errors are logged: write \
             warn,{text}, or off,{text} if that is meant"
        )
    })
}

/// Checks one part of a filter, as far as `EnvFilter` does not.
fn check(part: &str) -> Result<(), String> {
    if part.trim() != part {
        return Err("must not have white space around a level or a module".into());
    }
    if part.contains(['[', ']', '{', '}']) {
        return Err(
            "must have no brackets, which select spans: this program has none. Write modules with levels, as in \
             warn,tidegate=debug"
                .into(),
        );
    }
    match part.split_once('=') {
        Some((name, _)) if is_level(name) => Err(format!(
            "`{name}` is a level, and stands behind the `=`: write it as warn,tidegate={name}"
        )),
        Some((name, level)) => {
            module(name)?;
            match is_level(level) {
                true => Ok(()),
                false => Err(no_level(level)),
            }
        }
        None if is_level(part) => Ok(()),
        None if is_known(&part.to_lowercase()) => module(part),
        None => Err(no_level(part)),
    }
}

/// Checks that a name is that of a module of this program, or comes near none.
fn module(name: &str) -> Result<(), String> {
    if name == ACCESS {
        return Ok(());
    }
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if !name.split("::").all(is_word) {
        // The crates are the packages, with another sign between the words.
        let meant = meant(&name.to_lowercase().replace(['-', '.'], "_"));
        return Err(no_module(name, meant.or(Some("tidegate"))));
    }
    let crate_name = crate_of(name);
    let exists = match OWN.contains(&crate_name) {
        true => is_module(name),
        false => OTHERS.contains(&crate_name),
    };
    if exists {
        return Ok(());
    }
    let lower = name.to_lowercase();
    let is_foreign = !crate_of(&lower).starts_with("tidegate") && !is_known(&lower);
    match meant(&lower) {
        None if is_foreign => Ok(()),
        meant => Err(no_module(name, meant)),
    }
}

/// The module or crate that was meant by a name in small letters that is none, if it comes near one.
fn meant(name: &str) -> Option<&'static str> {
    // Its lines have a name of their own.
    const ACCESS_MODULE: &str = "access_log";

    let crate_name = crate_of(name);
    let last = name.rsplit("::").next().unwrap_or_default();
    // Other modules of that crate differ from it by no more than a word, so `near` would find it too often.
    if osa_distance(name, ACCESS) <= 2 || last == ACCESS_MODULE || near(name, &["access"]).is_some()
    {
        return Some(ACCESS);
    }
    if let Some(other) = OTHERS.iter().find(|other| **other == crate_name) {
        return Some(other);
    }
    let own = || OWN.iter().copied();
    if own().any(|own| own == crate_name) {
        // The same module of another crate, as `tidegate::identity`, or a slip in its own.
        let path = name.split_once("::").map_or("", |(_, path)| path);
        let all = || own().chain(MODULES.lines());
        return all()
            .find(|known| *known == name || ends_with(known, path))
            .or_else(|| all().filter(|known| osa_distance(known, name) <= 2).min())
            .or_else(|| own().find(|own| *own == crate_name));
    }
    // A crate without the `tidegate_` before it, or a module without its crate.
    own()
        .find(|own| own.strip_prefix("tidegate_") == Some(crate_name))
        .or_else(|| MODULES.lines().find(|known| ends_with(known, name)))
        .or_else(|| near(crate_name, OWN))
        .or_else(|| {
            let short = |own: &&str| {
                let short = own.strip_prefix("tidegate_").unwrap_or(own);
                osa_distance(short, crate_name) * 3 < short.len()
            };
            own().find(short)
        })
        .or_else(|| crate_name.starts_with("tidegate").then_some("tidegate"))
}

fn no_module(name: &str, meant: Option<&str>) -> String {
    match meant {
        Some(meant) => format!("there is no module `{name}`; did you mean `{meant}`?"),
        None => {
            format!("there is no module `{name}`; write one that is, as in warn,tidegate=debug")
        }
    }
}

/// Whether a path has these last parts, and more before them.
fn ends_with(path: &str, last: &str) -> bool {
    !last.is_empty()
        && path
            .strip_suffix(last)
            .is_some_and(|before| before.ends_with("::"))
}

/// Whether there is such a crate or module of this program that logs by its own name.
fn is_module(name: &str) -> bool {
    let is_access_log = name.strip_prefix("tidegate_server::") == Some("access_log");
    !is_access_log && (OWN.contains(&name) || MODULES.lines().any(|known| known == name))
}

fn crate_of(name: &str) -> &str {
    name.split("::").next().unwrap_or_default()
}

fn is_own(name: &str) -> bool {
    OWN.contains(&crate_of(name))
}

fn is_known(name: &str) -> bool {
    is_own(name) || OTHERS.contains(&crate_of(name))
}

fn is_level(word: &str) -> bool {
    !word.is_empty() && word.parse::<LevelFilter>().is_ok()
}

/// The error of a word that is no level.
fn no_level(word: &str) -> String {
    let lower = word.to_lowercase();
    let level = MEANT.iter().find(|(other, _)| *other == lower);
    let level = level.map(|(_, level)| *level);
    let level = level
        .or_else(|| near(&lower, LEVELS))
        .or_else(|| meant(&lower));
    match level {
        Some(meant) => format!("there is no level `{word}`; did you mean `{meant}`?"),
        None => format!(
            "there is no level `{word}`: write error, warn, info, debug, trace or off, or a module with one of them, as \
             in warn,tidegate=debug"
        ),
    }
}

/// The one of `names` that differs from a word by no more than a slip or two of the keyboard.
fn near(word: &str, names: &[&'static str]) -> Option<&'static str> {
    let distances = names.iter().map(|name| (osa_distance(word, name), *name));
    let (distance, name) = distances.min()?;
    (distance * 2 < name.len()).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn slips_in_a_filter_are_refused_with_what_was_meant() {
        for (text, meant) in [
            ("inof", "`info`"),
            ("infoo", "`info`"),
            ("warning", "`warn`"),
            ("none", "`off`"),
            ("tidegate=inof", "`info`"),
            ("warn,tidegate_server=debgu", "`debug`"),
            ("info,dbeug", "`debug`"),
            ("tidegat=debug", "`tidegate`"),
            ("tidegate_servr=debug", "`tidegate_server`"),
            ("tidegate_servr::identity=debug", "`tidegate_server`"),
            ("tidegate_cli=debug", "`tidegate"),
            ("tidegatee", "`tidegate`"),
            ("info=debug", "tidegate=info"),
            ("info=", "tidegate=info"),
            ("tidegate=", "error, warn, info"),
            ("9", "error, warn, info"),
            ("foo", "error, warn, info"),
            ("warn;info", "error, warn, info"),
            ("", "off"),
            (",", "off"),
            (" info", "white space"),
            ("info, debug", "white space"),
            ("info\n", "control characters"),
            ("tidegat[span]=info", "brackets"),
            ("[nosuch]", "brackets"),
            ("[{x=1}]=info", "brackets"),
            ("[span]=debug", "brackets"),
            ("tidegate[span{field=1}]=debug", "brackets"),
            ("TIDEGATE=debug", "`tidegate`"),
            ("Tidegate", "`tidegate`"),
            (
                "warn,TIDEGATE_SERVER::Identity=debug",
                "`tidegate_server::identity`",
            ),
            ("H2=debug", "`h2`"),
            ("tidegate::nosuch", "`tidegate`"),
            ("tidegate_server::nosuch=info", "`tidegate_server`"),
            (
                "tidegate_server::identiy=info",
                "`tidegate_server::identity`",
            ),
            ("tidegate_server::identity::nosuch=info", "`tidegate_server"),
            ("tidegate::identity=info", "`tidegate_server::identity`"),
            ("tidegate::access::x=info", "`tidegate"),
            ("access", "`tidegate::access`"),
            ("access=info", "`tidegate::access`"),
            ("acess=info", "`tidegate::access`"),
            ("access_log=info", "`tidegate::access`"),
            ("warn,tidegate::access_log=info", "`tidegate::access`"),
            (
                "warn,tidegate_server::access_log=info",
                "`tidegate::access`",
            ),
            ("tidegate::ACCESS=info", "`tidegate::access`"),
            ("Tidegate::Access", "`tidegate::access`"),
            ("server", "`tidegate_server`"),
            ("server=debug", "`tidegate_server`"),
            ("SERVER=debug", "`tidegate_server`"),
            ("servr=debug", "`tidegate_server`"),
            ("core::hub=debug", "`tidegate_core`"),
            ("identity=debug", "`tidegate_server::identity`"),
            ("tidegate-server=debug", "`tidegate_server`"),
            ("tidegate.server=debug", "`tidegate_server`"),
            ("::tidegate=debug", "`tidegate`"),
            ("tidegate::=debug", "`tidegate`"),
            ("tidegate:server=debug", "`tidegate_server`"),
            ("\"tidegate\"=debug", "`tidegate`"),
            ("warn,tidegate::acess=info", "`tidegate::access`"),
            ("warn,tidegate::acces", "`tidegate::access`"),
        ] {
            let error = log_filter(text).unwrap_err();
            assert!(error.contains(meant), "{text:?}: {error}");
        }
    }

    #[test]
    fn levels_and_modules_pass() {
        for text in [
            "info",
            "INFO",
            "Warn",
            "off",
            "0",
            "3",
            "warn,tidegate=debug",
            "tidegate",
            "tidegate_server::identity=trace",
            "warn,tidegate::access=info",
            "tidegate::chunks=debug",
            "tidegate::service=debug",
            "h2",
            "hyper=debug,info",
            "sqlx=debug",
            "info,",
            "tidegate::commands::serve=debug",
            "tidegate_core::subscription::live=debug",
            "tidegate_conformance=debug",
            "h2::codec=debug",
        ] {
            assert!(
                log_filter(text).is_ok(),
                "{text:?}: {:?}",
                log_filter(text).err()
            );
        }
    }

    #[test]
    fn filters_that_turn_the_log_off_without_saying_so_are_warned_of() {
        for text in [
            "h2=debug",
            "sqlx=debug,h2",
            "tidegate::access=info",
            "tidegate::access",
            "tidegate=off",
            "hyper=info,tidegate_server=OFF",
        ] {
            log_filter(text).unwrap();
            let warning = log_silence(text).expect(text);
            assert!(warning.contains(&format!("warn,{text}")), "{warning}");
            let corrected = format!("warn,{text}");
            log_filter(&corrected).unwrap();
            assert_eq!(log_silence(&corrected), None);
        }
        for text in [
            "off",
            "0",
            "OFF,tidegate::access=info",
            "tidegate::access=info,off",
            "error",
            "tidegate",
            "h2=debug,tidegate_server::identity=info",
        ] {
            log_filter(text).unwrap();
            assert_eq!(log_silence(text), None, "{text}");
        }
    }

    #[test]
    fn the_modules_are_those_of_the_sources() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut modules = BTreeSet::new();
        for folder in fs::read_dir(&crates).unwrap() {
            let folder = folder.unwrap();
            let package = folder.file_name().into_string().unwrap();
            let name = match &*package {
                // The program has the name of the library.
                "tidegate-cli" => "tidegate".into(),
                // It runs in the compiler.
                "tidegate-macros" => continue,
                package => package.replace('-', "_"),
            };
            assert!(is_own(&name), "{name}");
            walk(&folder.path().join("src"), &name, &mut modules);
        }
        let list: String = modules.iter().map(|module| format!("{module}\n")).collect();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/settings/modules.txt");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&path, &list).unwrap();
        }
        assert!(
            fs::read_to_string(&path).unwrap() == list,
            "{} is not what the sources have; set UPDATE_EXPECT=1 to write it",
            path.display()
        );
    }

    fn walk(folder: &Path, above: &str, modules: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let module = match stem {
                "lib" | "main" | "mod" => above.to_owned(),
                stem if stem == "tests" || stem.ends_with("_tests") => continue,
                stem => format!("{above}::{stem}"),
            };
            if path.is_dir() {
                walk(&path, &module, modules);
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            for line in fs::read_to_string(&path).unwrap().lines() {
                let inner = line.strip_prefix("mod ");
                let inner = inner.and_then(|rest| rest.strip_suffix(" {"));
                if let Some(inner) = inner.filter(|inner| *inner != "tests") {
                    modules.insert(format!("{module}::{inner}"));
                }
            }
            if module.contains("::") {
                modules.insert(module);
            }
        }
    }
}

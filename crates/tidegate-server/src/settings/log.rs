//! Filters of the log.
//!
//! `EnvFilter` takes any word that is no level for the name of a module, so of `inof` it makes a filter that lets
//! nothing pass. Here a word alone has to be a level or a module that this program has, and a module with a level must
//! not come near one of them without being it.

use strsim::osa_distance;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::access_log::TARGET as ACCESS;

/// The crates of this program.
const OWN: &[&str] = &[
    "tidegate",
    "tidegate_bench",
    "tidegate_client",
    "tidegate_core",
    "tidegate_proto",
    "tidegate_server",
    "tidegate_transport",
];

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

/// Checks one part of a filter, as far as `EnvFilter` does not.
fn check(part: &str) -> Result<(), String> {
    if part.trim() != part {
        return Err("must not have white space around a level or a module".into());
    }
    // What stands in brackets selects spans, which `EnvFilter` reads.
    let (before, brackets) = match part.find('[') {
        Some(place) => (&part[..place], &part[place..]),
        None => (part, ""),
    };
    if before.is_empty() && !brackets.is_empty() {
        return Ok(());
    }
    match before.split_once('=') {
        _ if !brackets.is_empty() => module(before),
        Some((name, level)) => {
            if is_level(name) {
                return Err(format!(
                    "`{name}` is a level, and stands behind the `=`: write it as warn,tidegate={name}"
                ));
            }
            module(name)?;
            match is_level(level) {
                true => Ok(()),
                false => Err(no_level(level)),
            }
        }
        None if is_level(before) => Ok(()),
        None if is_known(before) => module(before),
        None => Err(no_level(before)),
    }
}

/// Checks that a name comes near no module of this program without being one.
fn module(name: &str) -> Result<(), String> {
    // Not by `near`: other modules of that crate differ from it by no more than a word.
    if name != ACCESS && osa_distance(name, ACCESS) <= 2 {
        return Err(format!(
            "there is no module `{name}`; did you mean `{ACCESS}`?"
        ));
    }
    let crate_name = name.split("::").next().unwrap_or_default();
    let is_like_ours = crate_name.starts_with("tidegate") || near(crate_name, OWN).is_some();
    if is_known(name) || !is_like_ours {
        return Ok(());
    }
    let meant = near(crate_name, OWN).unwrap_or("tidegate");
    Err(format!(
        "there is no module `{crate_name}`; did you mean `{meant}`?"
    ))
}

fn is_known(name: &str) -> bool {
    let crate_name = name.split("::").next().unwrap_or_default();
    OWN.iter().chain(OTHERS).any(|known| *known == crate_name)
}

fn is_level(word: &str) -> bool {
    !word.is_empty() && word.parse::<LevelFilter>().is_ok()
}

/// The error of a word that is no level.
fn no_level(word: &str) -> String {
    let lower = word.to_lowercase();
    let meant = MEANT.iter().find(|(other, _)| *other == lower);
    let meant = meant.map(|(_, level)| *level);
    let meant = meant
        .or_else(|| near(&lower, LEVELS))
        .or_else(|| near(&lower, OWN));
    match meant {
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
            ("tidegat[span]=info", "`tidegate`"),
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
            "[span]=debug",
            "tidegate[span{field=1}]=debug",
        ] {
            assert!(
                log_filter(text).is_ok(),
                "{text:?}: {:?}",
                log_filter(text).err()
            );
        }
    }
}

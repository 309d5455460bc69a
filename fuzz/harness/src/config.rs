//! The configuration: file, environment and flags.

use std::{collections::BTreeMap, path::PathBuf};

use tidegate_server::settings::{Configuration, Origin, SETTINGS, Sources, read, reload};

/// Reads a configuration from a text in up to three parts, with a NUL between them: the file, lines `NAME=VALUE` of the
/// environment, and lines `key=VALUE` of flags.
///
/// # Panics
/// If a problem has no location, or the printed configuration differs from the one that was read.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, '\0');
    let file = parts.next().unwrap_or_default();
    let environment = pairs(parts.next().unwrap_or_default())
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let given = pairs(parts.next().unwrap_or_default());
    // The command line refuses unknown flags before they come here.
    let flags: Vec<_> = SETTINGS
        .iter()
        .filter_map(|setting| Some((setting.key, value(&given, setting.key)?)))
        .collect();
    let path = PathBuf::from("fuzz.toml");
    let outcome = read(Sources {
        file: Some((&path, file)),
        environment: &environment,
        flags: &flags,
    });
    let (configuration, written) = match outcome {
        Ok(read) => read,
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                let lines = file.bytes().filter(|byte| *byte == b'\n').count() + 1;
                if let Origin::File(_, line) = problem.origin {
                    assert!((1..=lines).contains(&line), "{problem}");
                }
                assert!(!problem.message.is_empty(), "{problem}");
            }
            return;
        }
    };
    let printed = written.effective(&configuration);
    let again = read(Sources {
        file: Some((&path, &printed)),
        environment: &BTreeMap::new(),
        flags: &[],
    });
    let (mut again, rewritten) = again.unwrap_or_else(|problems| panic!("{problems:?}\n{printed}"));
    assert_eq!(values(&rewritten.effective(&again)), values(&printed));
    assert_eq!(reload(&mut again, &configuration), Default::default());
    // A reload changes the settings that may change, and a second one changes nothing.
    let mut running = Configuration::default();
    let first = reload(&mut running, &configuration);
    let second = reload(&mut running, &configuration);
    assert!(second.changed.is_empty(), "{second:?}");
    assert_eq!(second.needs_restart, first.needs_restart);
}

/// Parses lines `NAME=VALUE`.
fn pairs(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .collect()
}

fn value(pairs: &[(&str, &str)], name: &str) -> Option<String> {
    let pair = pairs.iter().find(|(other, _)| *other == name)?;
    Some(pair.1.to_owned())
}

/// Returns the printed configuration without the origins of the values.
fn values(printed: &str) -> Vec<&str> {
    printed
        .lines()
        .map(|line| line.rsplit_once(" # ").map_or(line, |(value, _)| value))
        .collect()
}

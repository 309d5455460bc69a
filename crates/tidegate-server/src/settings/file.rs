//! The configuration file: TOML, read with the line of every value.

use std::{collections::HashSet, ops::Range, path::PathBuf};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    forms::SEPARATOR,
    names::nearest,
    setting::Setting,
    table::SETTINGS,
    written::{Origin, Problem},
};

/// The settings in a file, the text of each value and its line. Errors go to `problems`, in no order.
pub(super) fn values(
    path: &PathBuf,
    text: &str,
    problems: &mut Vec<Problem>,
) -> Vec<(&'static Setting, String, usize)> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        path,
        text,
        found: Vec::new(),
        problems,
    };
    let mut explained = HashSet::new();
    for error in errors {
        let at = error.span().unwrap_or_default();
        let line = reader.line(&at);
        match text.lines().nth(line - 1).and_then(unquoted) {
            // The parser may find several errors in such a value.
            Some(message) if explained.insert(line) => reader.report(&at, message),
            Some(_) => {}
            None => reader.report(&at, error.message().into()),
        }
    }
    reader.table("", table.get_ref());
    reader.found
}

/// The advice for a line whose value lacks its quotes; `None` for other lines.
fn unquoted(line: &str) -> Option<String> {
    let (key, value) = line.split_once('=')?;
    let key = key.trim();
    let value = value.split(" #").next().unwrap_or_default().trim();
    // Editors for prose make them.
    let bare = value.trim_matches(['\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}']);
    let is_bare = !value.is_empty() && !value.starts_with(['"', '\'', '[', '{', '=']);
    if !is_bare || key.contains(['"', '#']) || bare.contains('"') {
        return None;
    }
    // A number, true and false need no quotes: the fault is another.
    if bare.parse::<f64>().is_ok() || bare.parse::<bool>().is_ok() {
        return None;
    }
    let lower = bare.to_lowercase();
    Some(match &*lower {
        "true" | "false" => format!("write it in small letters: {key} = {lower}"),
        _ => format!("a text stands in quotes: write {key} = \"{bare}\""),
    })
}

/// A walk through the sections of a file.
struct Reader<'a> {
    path: &'a PathBuf,
    text: &'a str,
    /// Settings with texts and lines, in the order of the walk.
    found: Vec<(&'static Setting, String, usize)>,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    /// Reads a section. `prefix` is its name with a dot, or empty at the top of the file.
    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            self.entry(&key, &name.span(), value);
        }
    }

    /// Reads an entry of a section: a setting, a section within, or an error.
    fn entry(&mut self, key: &str, at: &Range<usize>, value: &Spanned<DeValue<'_>>) {
        let is_section = SETTINGS
            .iter()
            .any(|setting| is_within(setting.section(), key));
        match (Setting::of(key), value.get_ref()) {
            (Some(setting), value) => self.value(setting, at, value),
            (None, DeValue::Table(table)) if is_section => self.table(&format!("{key}."), table),
            (None, _) if is_section => {
                self.report(at, format!("`{key}` is a section: write [{key}]"));
            }
            (None, DeValue::Table(_)) => {
                let meant = did_you_mean(nearest(key, SETTINGS.iter().map(Setting::section)));
                self.report(at, format!("there is no section `{key}`{meant}"));
            }
            (None, _) => {
                let name = key.rsplit('.').next().unwrap_or_default();
                // It may stand in the wrong section.
                let meant = Setting::nearest(key).or_else(|| Setting::nearest(name));
                let meant = did_you_mean(meant.map(|setting| setting.key));
                self.report(at, format!("there is no setting `{key}`{meant}"));
            }
        }
    }

    /// Takes the value of a setting as text.
    fn value(&mut self, setting: &'static Setting, at: &Range<usize>, value: &DeValue<'_>) {
        let text = match value {
            // An empty list says that there is none; an empty text is no file's name.
            DeValue::String(text) if text.is_empty() && setting.takes_several() => None,
            DeValue::Array(values) if setting.takes_several() => text_of_several(values),
            _ => text_of(value),
        };
        match text {
            Some(text) => self.found.push((setting, text, self.line(at))),
            None if setting.takes_several() => self.report(
                at,
                format!(
                    "{}: must be strings in quotes, without commas, as in [\"a\", \"b\"]",
                    setting.key
                ),
            ),
            None => self.report(
                at,
                format!(
                    "{}: must be a string in quotes, a whole number, true or false",
                    setting.key
                ),
            ),
        }
    }

    /// Adds a problem at a place in the text.
    fn report(&mut self, at: &Range<usize>, message: String) {
        let origin = Origin::File(self.path.clone(), self.line(at));
        self.problems.push(Problem::new(origin, message));
    }

    /// The line of a place in the text, counted from 1.
    fn line(&self, at: &Range<usize>) -> usize {
        let before = &self.text.as_bytes()[..at.start.min(self.text.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// Whether `section` is `key`, or a section within `key`.
fn is_within(section: &str, key: &str) -> bool {
    let rest = section.strip_prefix(key);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A value as the environment or a flag would write it; `None` for dates, fractions, lists and tables.
fn text_of(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            let number = i128::from_str_radix(&digits, number.radix()).ok()?;
            Some(number.to_string())
        }
        _ => None,
    }
}

/// A list as the environment or a flag would write it; `None` if an element is no string, empty, or has a
/// [`SEPARATOR`] in it.
fn text_of_several(values: &[Spanned<DeValue<'_>>]) -> Option<String> {
    let texts = values.iter().map(|value| {
        let text = value.get_ref().as_str()?;
        (!text.is_empty() && !text.contains(SEPARATOR)).then_some(text)
    });
    Some(texts.collect::<Option<Vec<_>>>()?.join(SEPARATOR))
}

/// The end of a message: a question that names the nearest name, or nothing.
fn did_you_mean(meant: Option<&str>) -> String {
    meant.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

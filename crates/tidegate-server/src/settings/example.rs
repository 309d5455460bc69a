//! Settings written as a file: the example, and the lines that it shares with the configuration in effect.

use super::{
    forms::SEPARATOR,
    setting::{Configuration, Setting},
    table::SETTINGS,
};

/// A file with every setting at its default, and above each its help, its variable and its flag as comments.
#[must_use]
pub fn example() -> String {
    let mut text = String::from(EXAMPLE_HEAD);
    let default = Configuration::default();
    write_sections(&mut text, |setting, text| {
        text.push('\n');
        for line in wrapped(setting.about) {
            text.push_str(&format!("# {line}\n"));
        }
        let reloads = if setting.reloads { "; reloads" } else { "" };
        let (variable, flag) = (setting.variable(), setting.flag());
        text.push_str(&format!("# {variable}, --{flag}{reloads}\n"));
        text.push_str(&format!("{}\n", setting.line(&default)));
    });
    text
}

const EXAMPLE_HEAD: &str = "\
# Every setting of `tidegate serve`, with its default. Give the server your copy with `--config`, and check it with
# `tidegate check-config`. The last comment above a setting names its environment variable, which wins over this
# file, and its flag, which wins over both. A setting marked \"reloads\" takes effect on SIGHUP; others need a restart.
#
# Durations have a unit: \"5s\", \"250ms\", \"1m30s\". Sizes have a unit, \"64KiB\", \"2GiB\", or are numbers of bytes.
# \"none\" means no limit, or nothing; \"auto\" lets the server work out the value.
";

impl Setting {
    /// Its name in the section.
    fn name(&self) -> &'static str {
        self.key.rsplit_once('.').map_or(self.key, |(_, name)| name)
    }

    /// Its line in a file that means `configuration`.
    pub(super) fn line(&self, configuration: &Configuration) -> String {
        let text = (self.get)(configuration);
        let literal = match (self.takes_several(), &*text) {
            (false, _) => literal(&text),
            (true, "none") => "[]".into(),
            (true, _) => {
                let texts: Vec<_> = text
                    .split(SEPARATOR)
                    .map(|text| format!("{text:?}"))
                    .collect();
                format!("[{}]", texts.join(", "))
            }
        };
        format!("{} = {literal}", self.name())
    }
}

/// Appends every setting to `text` with `write_one`, under the heads of the sections.
pub(super) fn write_sections(text: &mut String, write_one: impl Fn(&Setting, &mut String)) {
    let mut section = "";
    for setting in SETTINGS {
        if setting.section() != section {
            section = setting.section();
            text.push_str(&format!("\n[{section}]\n"));
        }
        write_one(setting, text);
    }
}

/// A value as TOML writes it: numbers and booleans bare, all else in quotes.
fn literal(text: &str) -> String {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number || matches!(text, "true" | "false") {
        text.into()
    } else {
        format!("{text:?}")
    }
}

/// The words of a text in lines of at most 108 bytes, so that a comment has at most 110.
fn wrapped(text: &str) -> Vec<String> {
    const WIDTH: usize = 108;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is one");
        if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
            lines.push(word.into());
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines
}

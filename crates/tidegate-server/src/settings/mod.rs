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
mod file;
mod forms;
mod security;
mod table;

use std::{collections::BTreeMap, fmt, path::PathBuf};

use self::security::{NEEDS, Security};
pub use self::{
    forms::{bytes, duration},
    table::SETTINGS,
};
use crate::config::ServerConfig;

/// A thing that can be set.
#[derive(Debug)]
pub struct Setting {
    /// Where it stands in the file: its section, a dot, its name; or its name alone.
    pub key: &'static str,
    /// The long flag, without the dashes.
    pub flag: &'static str,
    /// What its value is, for help: `DURATION`, `SIZE`. With three dots, it may have several.
    pub value_name: &'static str,
    /// What it is about: whole sentences.
    pub about: &'static str,
    /// Whether a reload changes it.
    pub reloads: bool,
    get: fn(&Configuration) -> String,
    set: fn(&mut Configuration, &str) -> Result<(), String>,
}

/// A configuration as it is meant.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Configuration {
    /// How the server behaves.
    pub server: ServerConfig,
    /// What to log: a filter of `tracing-subscriber`.
    pub log: String,
    /// What `server.tls` and `server.auth` are made of.
    security: Security,
}

/// Stands between values of a setting that may have several.
pub const SEPARATOR: &str = ",";

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
    Flag(&'static str),
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

/// Where values come from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The path and the text of the file.
    pub file: Option<(&'a PathBuf, &'a str)>,
    /// Looks a variable of the environment up.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// What was given on the command line: keys and texts.
    pub flags: &'a [(&'static str, String)],
}

/// What a reload did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that were changed.
    pub changed: Vec<&'static str>,
    /// Keys that differ and need a restart. The running server keeps what it has.
    pub needs_restart: Vec<&'static str>,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            log: "warn".into(),
            security: Security::default(),
        }
    }
}

/// Reads all sources.
///
/// # Errors
/// Everything that is wrong, in the order of the sources, the file by its lines.
///
/// # Panics
/// If the key of a flag is not in [`SETTINGS`].
pub fn read(sources: Sources<'_>) -> Result<(Configuration, Written), Vec<Problem>> {
    let (configuration, written, problems) = read_what_can_be(sources);
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
    let (configuration, written, mut problems) = read_what_can_be(sources);
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
fn read_what_can_be(sources: Sources<'_>) -> (Configuration, Written, Vec<Problem>) {
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
        if let Some(text) = (sources.environment)(&variable) {
            written.set(setting, text, Origin::Environment(variable), &mut problems);
        }
    }
    for (key, text) in sources.flags {
        let setting = Setting::of(key).expect("flags are made from the table");
        let origin = Origin::Flag(setting.flag);
        written.set(setting, text.clone(), origin, &mut problems);
    }
    let configuration = written.meant();
    problems.extend(contradictions(&configuration, &written));
    (configuration, written, problems)
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
            message: format!("{key} needs {needed} too: set it"),
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

/// Changes what a reload may in `running` to what it is in `next`.
pub fn reload(running: &mut Configuration, next: &Configuration) -> Reloaded {
    let mut reloaded = Reloaded::default();
    for setting in SETTINGS {
        let wanted = (setting.get)(next);
        if (setting.get)(running) == wanted {
            continue;
        }
        if setting.reloads && (setting.set)(running, &wanted).is_ok() {
            reloaded.changed.push(setting.key);
        } else {
            reloaded.needs_restart.push(setting.key);
        }
    }
    reloaded
}

/// A commented file with every setting at its default.
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
        let (variable, flag) = (setting.variable(), setting.flag);
        text.push_str(&format!("# {variable}, --{flag}{reloads}\n"));
        text.push_str(&format!("{}\n", setting.line(&default)));
    });
    text
}

const EXAMPLE_HEAD: &str = "\
# Every setting of `tidegate serve`, with its default. Read it with `--config`, check it with
# `tidegate check-config`. Under each is the environment variable that wins over the file, and the flag that
# wins over both. What reloads is read again on SIGHUP; the rest needs a restart.
#
# Durations are written \"5s\", \"250ms\", \"1m30s\"; sizes \"64KiB\", \"2GiB\", or as a number of bytes.
";

impl Problem {
    /// The line in the file; what stands elsewhere comes after all lines.
    fn place(&self) -> usize {
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
    fn set(
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

    fn meant(&self) -> Configuration {
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

impl Setting {
    /// The setting with this key.
    #[must_use]
    pub fn of(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// The environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("TIDEGATE_{}", self.flag.replace('-', "_").to_uppercase())
    }

    /// The section of the file that it stands in; empty at the top.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// The text of its default.
    #[must_use]
    pub fn default(&self) -> String {
        (self.get)(&Configuration::default())
    }

    /// Whether a text can be its value.
    ///
    /// # Errors
    /// What is wrong, and how to write it.
    pub fn check(&self, text: &str) -> Result<(), String> {
        (self.set)(&mut Configuration::default(), text)
    }

    /// Whether it may have several values. Their texts stand in one, with [`SEPARATOR`] between.
    #[must_use]
    pub fn takes_several(&self) -> bool {
        self.value_name.ends_with("...")
    }

    fn name(&self) -> &'static str {
        self.key.rsplit_once('.').map_or(self.key, |(_, name)| name)
    }

    /// Its line of a file.
    fn line(&self, configuration: &Configuration) -> String {
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

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(variable) => f.write_str(variable),
            Self::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}

impl fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}

/// Writes all settings with `write_one`, under their sections.
fn write_sections(text: &mut String, write_one: impl Fn(&Setting, &mut String)) {
    let mut section = "";
    for setting in SETTINGS {
        if setting.section() != section {
            section = setting.section();
            text.push_str(&format!("\n[{section}]\n"));
        }
        write_one(setting, text);
    }
}

/// A text as TOML writes it: numbers and truths are bare.
fn literal(text: &str) -> String {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number || matches!(text, "true" | "false") {
        text.into()
    } else {
        format!("{text:?}")
    }
}

/// The words of a text in lines of a readable length.
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

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fs, path::Path, time::Duration};

    use super::*;
    use crate::{
        identity::jwt::{JwksUrl, JwtKeys},
        network::tls::ClientAuth,
    };

    fn nothing(_: &str) -> Option<String> {
        None
    }

    /// What is wrong with a file, by line.
    fn problems(text: &str) -> Vec<(usize, String)> {
        let path = PathBuf::from("t.toml");
        let read = read(Sources {
            file: Some((&path, text)),
            environment: &nothing,
            flags: &[],
        });
        let told = read.unwrap_err().into_iter().map(|problem| {
            let Origin::File(_, line) = problem.origin else {
                panic!("{problem}")
            };
            (line, problem.message)
        });
        told.collect()
    }

    #[test]
    fn the_table_is_consistent() {
        let keys: HashSet<_> = SETTINGS.iter().map(|setting| setting.key).collect();
        let flags: HashSet<_> = SETTINGS.iter().map(|setting| setting.flag).collect();
        assert_eq!((keys.len(), flags.len()), (SETTINGS.len(), SETTINGS.len()));
        let mut sections: Vec<_> = SETTINGS.iter().map(Setting::section).collect();
        sections.dedup();
        let distinct: HashSet<_> = sections.iter().collect();
        assert_eq!(
            distinct.len(),
            sections.len(),
            "a section stands in two places"
        );
        for setting in SETTINGS {
            setting.check(&setting.default()).unwrap();
            assert!(
                setting.check("\u{1}").is_err(),
                "{} takes anything",
                setting.key
            );
            assert!(setting.about.ends_with('.'), "{}", setting.key);
        }
    }

    #[test]
    fn the_example_has_every_setting_at_its_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tidegate.example.toml");
        if std::env::var_os("UPDATE_EXAMPLE").is_some() {
            fs::write(&path, example()).unwrap();
        }
        let listed = fs::read_to_string(&path).unwrap();
        assert_eq!(listed, example(), "set UPDATE_EXAMPLE=1 if that is meant");
        let (configuration, written) = read(Sources {
            file: Some((&path, &listed)),
            environment: &nothing,
            flags: &[],
        })
        .unwrap();
        for setting in SETTINGS {
            assert!(written.origin(setting.key).is_some(), "{}", setting.key);
            assert_eq!((setting.get)(&configuration), setting.default());
        }
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let path = PathBuf::from("t.toml");
        let text = "drain_timeout = \"1s\"\nheartbeat = \"2s\"\n[history]\nevents = 3\n";
        let environment = |name: &str| match name {
            "TIDEGATE_HEARTBEAT" => Some("20s".to_owned()),
            "TIDEGATE_HISTORY_EVENTS" => Some("30".to_owned()),
            _ => None,
        };
        let (configuration, written) = read(Sources {
            file: Some((&path, text)),
            environment: &environment,
            flags: &[("history.events", "300".into())],
        })
        .unwrap();
        let server = &configuration.server;
        assert_eq!(server.drain_timeout.as_secs(), 1);
        assert_eq!(server.service.heartbeat_interval.as_secs(), 20);
        assert_eq!(server.history.max_events, 300);
        let effective = written.effective(&configuration);
        for line in [
            "drain_timeout = \"1s\" # t.toml:1",
            "heartbeat = \"20s\" # TIDEGATE_HEARTBEAT",
            "[history]\nevents = 300 # --history-events",
            "max_filters = 1024 # default",
        ] {
            assert!(effective.contains(line), "{line} is not in:\n{effective}");
        }
        // What is printed means the same when it is read.
        let (again, _) = read(Sources {
            file: Some((&path, &effective)),
            environment: &nothing,
            flags: &[],
        })
        .unwrap();
        for setting in SETTINGS {
            assert_eq!((setting.get)(&again), (setting.get)(&configuration));
        }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_each_with_its_line() {
        let text = "\
drain_timeout = 5
heartbeet = \"5s\"
history = 3
log = [\"debug\"]
http = \"50080\"

[limits]
max_filters = -1
max_event_bytes = \"2 apples\"
client_ids = \"reject\"

[histroy]
events = 1

[quotas.address]
publish_events = 0
publish_bytes = \"1MiB\"
";
        let told = problems(text);
        for (line, part) in [
            (1, "drain_timeout = \"5\": write it with a unit"),
            (2, "there is no `heartbeet`; did you mean `heartbeat`?"),
            (3, "`history` is a section: write [history]"),
            (
                4,
                "log: must be a text in quotes, a whole number, true or false",
            ),
            (5, "http = \"50080\": write it as ADDRESS:PORT"),
            (8, "limits.max_filters = \"-1\": must be a whole number"),
            (
                9,
                "limits.max_event_bytes = \"2 apples\": write it as a number of bytes",
            ),
            (
                10,
                "there is no `limits.client_ids`; did you mean `client_ids`?",
            ),
            (12, "there is no section `histroy`; did you mean `history`?"),
            (
                16,
                "quotas.address.publish_events = \"0\": must be at least 1",
            ),
        ] {
            assert!(
                told.iter()
                    .any(|(at, message)| *at == line && message.contains(part)),
                "{line}: {part} is not in {told:#?}"
            );
        }
        assert_eq!(told.len(), 10, "{told:#?}");
        assert!(told.is_sorted_by_key(|(line, _)| *line));
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line_together_with_the_rest() {
        let told = problems("listen = \nhttp = \"x\"\nlog = \"a\"\nlog = \"b\"\n");
        let lines: Vec<_> = told.iter().map(|(line, _)| *line).collect();
        assert!(
            lines.contains(&1) && lines.contains(&2) && lines.contains(&4),
            "{told:#?}"
        );
    }

    #[test]
    fn contradictions_are_told_where_they_were_written() {
        let told = problems("\n[limits]\nmax_event_bytes = \"8MiB\"\n");
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].0, 3);
        assert!(told[0].1.contains("above limits.max_publish_bytes"));
        let told = problems(
            "[tls]\nkey = \"k\"\nclient_auth = \"optional\"\n[auth.jwt]\nkeys = [\"a\"]\n",
        );
        let told: Vec<_> = told.iter().map(|(line, told)| (*line, &**told)).collect();
        assert_eq!(
            told,
            [
                (2, "tls.key needs tls.certificate too: set it"),
                (3, "tls.client_auth needs tls.client_ca too: set it"),
                (5, "auth.jwt.keys needs auth.jwt.issuer too: set it"),
            ]
        );
    }

    #[test]
    fn tls_and_credentials_are_made_of_their_settings() {
        let text = "\
[tls]
certificate = \"c.pem\"
key = \"k.pem\"
client_ca = \"ca.pem\"
client_auth = \"optional\"
[auth]
tokens = \"tokens\"
rules = \"rules.toml\"
insecure = true
[auth.jwt]
issuer = \"i\"
audience = \"7\"
public_keys = [\"a.pem\", \"1\"]
keys = \"set.json,https://issuer.example/keys\"
refresh = \"1m\"
";
        let path = PathBuf::from("t.toml");
        let of = |text: &str| {
            read(Sources {
                file: Some((&path, text)),
                environment: &nothing,
                flags: &[("auth.jwt.secrets", "s1,s2".into())],
            })
            .unwrap()
        };
        let (configuration, written) = of(text);
        let tls = configuration.server.tls.as_ref().unwrap();
        assert_eq!(tls.client_ca.as_deref(), Some(Path::new("ca.pem")));
        assert_eq!(tls.client_auth, ClientAuth::Optional);
        let auth = &configuration.server.auth;
        assert!(auth.tokens.is_some() && auth.rules_file.is_some() && auth.insecure);
        let jwt = auth.jwt.as_ref().unwrap();
        assert_eq!((&*jwt.issuer, &*jwt.audience), ("i", "7"));
        let mut set = JwksUrl::new("https://issuer.example/keys");
        set.refresh_interval = Duration::from_secs(60);
        let keys = [
            JwtKeys::Pem("a.pem".into()),
            JwtKeys::Pem("1".into()),
            JwtKeys::Secret("s1".into()),
            JwtKeys::Secret("s2".into()),
            JwtKeys::JwksFile("set.json".into()),
            JwtKeys::JwksUrl(set),
        ];
        assert_eq!(jwt.keys, keys);
        // What is printed means the same.
        let (again, _) = of(&written.effective(&configuration));
        assert_eq!(again.server.auth.jwt.unwrap().keys, keys);
        let told = problems("[auth.jwt]\nsecrets = [\"a,b\"]\n");
        assert!(told[0].1.contains("without commas"), "{told:?}");
    }

    #[test]
    fn the_environment_is_checked_and_named() {
        let environment = |name: &str| (name == "TIDEGATE_ON_STALL").then(|| "panic".to_owned());
        let told = read(Sources {
            file: None,
            environment: &environment,
            flags: &[],
        })
        .unwrap_err();
        assert_eq!(
            told[0].to_string(),
            "TIDEGATE_ON_STALL: on_stall = \"panic\": must be park or close"
        );
    }

    #[test]
    fn a_reload_changes_what_it_may_and_names_the_rest() {
        let mut running = Configuration::default();
        let mut next = Configuration::default();
        next.server.history.max_events = 5;
        next.server.quotas.observe_only = true;
        next.server.service.max_filters = 7;
        let reloaded = reload(&mut running, &next);
        assert_eq!(reloaded.changed, ["history.events", "quotas.observe_only"]);
        assert_eq!(reloaded.needs_restart, ["limits.max_filters"]);
        assert_eq!(running.server.history.max_events, 5);
        assert_ne!(running.server.service.max_filters, 7);
        // What needs a restart is named again.
        let again = reload(&mut running, &next);
        assert_eq!(again.changed, [""; 0]);
        assert_eq!(again.needs_restart, ["limits.max_filters"]);
    }
}

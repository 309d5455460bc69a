//! The settings of the server as flags, and the reading of all sources.

use std::{collections::BTreeMap, env, ffi::OsString, fs, io, path::PathBuf};

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};
use tidegate_server::settings::{
    Configuration, Problem, SEPARATOR, SETTINGS, Setting, Sources, VARIABLES, Written, check, read,
};

use crate::{
    environment,
    exit::{Exit, Failure},
};

/// The flags of all settings, and the file. The flags come from the table that reads the file, so neither has a setting
/// that the other lacks.
#[derive(Debug, Clone, Default)]
pub(crate) struct SettingArgs {
    file: Option<PathBuf>,
    /// The key and the text of each flag on the command line.
    given: Vec<(&'static str, String)>,
}

/// The flag of the file.
const FILE: &str = "config";

/// The variable of the file.
pub(crate) const FILE_VARIABLE: &str = "TIDEGATE_CONFIG";

/// Variables of the program that are no settings of the server, so that none is taken for a misspelled one.
pub(crate) const NO_SETTINGS: &[&str] = &[
    FILE_VARIABLE,
    environment::SERVER,
    environment::TLS_CA,
    environment::TOKEN,
    environment::TOKEN_FILE,
];

/// The key of the one setting that is a flag of every command.
const LOG: &str = "log";

impl SettingArgs {
    /// The settings of a file and the environment, without flags.
    pub(crate) fn of_file(file: Option<PathBuf>) -> Self {
        Self {
            file: file.or_else(file_of_environment),
            given: Vec::new(),
        }
    }

    /// The same settings with the log filter of the command line, if it has one.
    pub(crate) fn with_log(mut self, log: Option<String>) -> Self {
        self.given.extend(log.map(|log| (LOG, log)));
        self
    }

    /// Whether there is a file, whose contents may change.
    #[cfg(unix)]
    pub(crate) const fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Reads all sources as they are now.
    pub(crate) fn read(&self) -> Result<(Configuration, Written), Failure> {
        self.with(read)
    }

    /// Checks all sources, and the files that they name.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.with(check)
    }

    fn with<T>(
        &self,
        read: impl FnOnce(Sources<'_>) -> Result<T, Vec<Problem>>,
    ) -> Result<T, Failure> {
        let text = self.file.as_ref().map(fs::read_to_string);
        let text = text.transpose().map_err(|error| self.unreadable(&error))?;
        read(Sources {
            file: self.file.as_ref().zip(text.as_deref()),
            environment: &variables(),
            flags: &self.given,
        })
        .map_err(|problems| Failure::new(Exit::Usage, report(&problems)))
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        let path = self.file.as_deref().unwrap_or_else(|| "".as_ref());
        Failure::new(Exit::Usage, format!("{}: {error}", path.display()))
    }
}

/// A message with all problems, each on a line of its own.
fn report(problems: &[Problem]) -> String {
    let count = match problems.len() {
        1 => "1 error".into(),
        count => format!("{count} errors"),
    };
    let lines = problems.iter().map(|problem| format!("\n{problem}"));
    format!(
        "the configuration has {count}:{}",
        lines.collect::<String>()
    )
}

/// The variables that are settings, or look like settings.
fn variables() -> BTreeMap<String, String> {
    // A value that is not Unicode must not be ignored. With U+FFFD in it, the setting refuses it or finds no such file.
    let text = |text: OsString| text.to_string_lossy().into_owned();
    env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .filter(|(name, _)| name.starts_with(VARIABLES) && !NO_SETTINGS.contains(&name.as_str()))
        .collect()
}

/// The file that the environment names.
fn file_of_environment() -> Option<PathBuf> {
    env::var_os(FILE_VARIABLE)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// The settings that are flags of `tidegate serve` alone.
fn flags() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(|setting| setting.key != LOG)
}

impl Args for SettingArgs {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE)
            .long(FILE)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(format!(
                "Configuration file in TOML. docs/tidegate.example.toml lists every setting [env: {FILE_VARIABLE}]"
            ));
        flags().fold(command.arg(file), |command, setting| {
            command.arg(flag(setting))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = Self::default();
        settings.update_from_arg_matches(matches)?;
        Ok(settings)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let file = matches.get_one::<PathBuf>(FILE);
        self.file = file.cloned().or_else(file_of_environment);
        let given = flags().filter_map(|setting| {
            let texts = matches.get_many::<String>(setting.key)?;
            let texts: Vec<_> = texts.map(String::as_str).collect();
            Some((setting.key, texts.join(SEPARATOR)))
        });
        self.given = given.collect();
        Ok(())
    }
}

/// Names the nearest setting in the error about an unknown flag of `tidegate serve`. clap's own suggestion compares
/// letters, and for `--preface-timeout` finds `--drain-timeout`.
pub(crate) fn suggest(mut error: clap::Error) -> clap::Error {
    if let Some(setting) = nearest_setting(&error) {
        let flag = format!("--{}", setting.flag());
        error.insert(ContextKind::SuggestedArg, ContextValue::String(flag));
        // It names clap's suggestion.
        error.remove(ContextKind::Usage);
    }
    error
}

/// The setting nearest to the unknown flag of an error; `None` for other errors and other commands.
fn nearest_setting(error: &clap::Error) -> Option<&'static Setting> {
    let usage = error.get(ContextKind::Usage)?;
    let is_serve = usage.to_string().contains("tidegate serve");
    match error.get(ContextKind::InvalidArg)? {
        ContextValue::String(flag) if is_serve && error.kind() == ErrorKind::UnknownArgument => {
            Setting::nearest(flag.strip_prefix("--")?)
        }
        _ => None,
    }
}

/// The flag of a setting.
fn flag(setting: &'static Setting) -> Arg {
    let arg = Arg::new(setting.key)
        .long(setting.flag())
        .value_name(setting.value_name)
        .help(format!(
            "{} [default: {}]",
            setting.about.trim_end_matches('.'),
            setting.default()
        ))
        .value_parser(|text: &str| setting.check(text).map(|()| text.to_owned()));
    let arg = match setting.value_name {
        "BOOL" => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        _ if setting.takes_several() => arg.action(ArgAction::Append),
        _ => arg,
    };
    match setting.section() {
        "" => arg,
        "connections" => arg.help_heading("Connections"),
        "history" => arg.help_heading("History"),
        "tls" | "auth" | "auth.jwt" => arg.help_heading("TLS and credentials"),
        "limits" => arg.help_heading("Limits on requests"),
        "http2" => arg.help_heading("HTTP/2").hide_short_help(true),
        _ => arg.help_heading("Quotas").hide_short_help(true),
    }
}

//! The settings of the server as flags, and the reading of all sources.

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};
use tidegate_server::{
    read_configuration,
    settings::{
        Configuration, Origin, Problem, SEPARATOR, SETTINGS, Setting, Sources, VARIABLES, Written,
        check, read,
    },
};

use crate::{
    environment,
    exit::{Exit, Failure},
};

/// The flags of all settings, and the file. The flags come from the table that reads the file, so neither has a setting
/// that the other lacks.
#[derive(Debug, Clone, Default)]
pub(crate) struct SettingArgs {
    file: Option<ConfigFile>,
    /// The key and the text of each flag on the command line.
    given: Vec<(&'static str, String)>,
}

/// The file of the settings.
#[derive(Debug, Clone)]
struct ConfigFile {
    path: PathBuf,
    /// The flag or the variable that names it, for errors.
    named_by: &'static str,
}

/// Settings as they were read.
pub(crate) struct Read<T> {
    pub(crate) value: T,
    /// The path of the file if it cannot be read again: a pipe, or standard input.
    pub(crate) read_once: Option<PathBuf>,
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

/// The variable of the log's filter, as all programs of its kind have it.
const RUST_LOG: &str = "RUST_LOG";

/// The key of the one setting that is a flag of every command.
const LOG: &str = "log";

impl ConfigFile {
    /// The file at `path`, or standard input for `-`.
    fn new(path: PathBuf, named_by: &'static str) -> Self {
        let path = match path.as_os_str() == "-" {
            true => "/dev/stdin".into(),
            false => path,
        };
        Self { path, named_by }
    }
}

impl SettingArgs {
    /// The settings of a file and the environment, without flags. `named_by` is what names the file.
    pub(crate) fn of_file(file: Option<PathBuf>, named_by: &'static str) -> Self {
        Self {
            file: file
                .map(|path| ConfigFile::new(path, named_by))
                .or_else(file_of_environment),
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

    /// Reads all sources for the first time. The file may be a pipe. Blocks.
    pub(crate) fn read(&self) -> Result<Read<(Configuration, Written)>, Failure> {
        self.with(true, read)
    }

    /// Reads all sources as they are now, in a server that runs. Blocks.
    #[cfg(unix)]
    pub(crate) fn read_again(&self) -> Result<(Configuration, Written), Failure> {
        self.with(false, read).map(|read| read.value)
    }

    /// Checks all sources, and the files that they name. Returns what a server would warn of. Blocks.
    pub(crate) fn check(&self) -> Result<Vec<Problem>, Failure> {
        self.with(true, check).map(|read| read.value)
    }

    fn with<T>(
        &self,
        is_first: bool,
        read: impl FnOnce(Sources<'_>) -> Result<T, Vec<Problem>>,
    ) -> Result<Read<T>, Failure> {
        let file = self.file.as_ref().map(|ConfigFile { path, named_by }| {
            read_configuration(path, is_first).map_err(|error| {
                let exit = exit(error.is_temporary());
                Failure::new(exit, format!("{named_by}: {}", error.with_cause()))
            })
        });
        let file = file.transpose()?;
        let path = self.file.as_ref().map(|file| &file.path);
        let (environment, strange) = variables();
        let read = read(Sources {
            file: path.zip(file.as_ref().map(|file| &*file.text)),
            environment: &environment,
            flags: &self.given,
        });
        let problems = match read {
            Ok(value) if strange.is_empty() => {
                let is_read_once = file.is_some_and(|file| file.is_read_once);
                let read_once = path.filter(|_| is_read_once).cloned();
                return Ok(Read { value, read_once });
            }
            Ok(_) => strange,
            Err(problems) => [problems, strange].concat(),
        };
        let are_temporary = problems.iter().all(|problem| problem.is_temporary);
        Err(Failure::new(exit(are_temporary), report(&problems)))
    }
}

/// The code for errors of a configuration. A supervisor that does not start a server again after a wrong configuration has
/// to do so after one that could not be read.
pub(crate) const fn exit(is_temporary: bool) -> Exit {
    match is_temporary {
        true => Exit::Other,
        false => Exit::Usage,
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

/// The variables of the environment, but for those that other commands read, and the problems of those that are written as
/// these are, but for their case: the program does not read them.
fn variables() -> (BTreeMap<OsString, OsString>, Vec<Problem>) {
    let mut problems = Vec::new();
    let settings = env::vars_os().filter(|(name, value)| {
        let meant = differing_in_case(name).filter(|_| !value.is_empty());
        problems.extend(meant.map(|meant| {
            let origin = Origin::Environment(name.to_string_lossy().into_owned());
            Problem::new(
                origin,
                format!("there is no such variable; did you mean {meant}?"),
            )
        }));
        meant.is_none() && !NO_SETTINGS.iter().any(|other| name == other)
    });
    (settings.collect(), problems)
}

/// The variable of the program whose name differs from this one in nothing but the case of letters, and, for that of the
/// file, the signs between its words.
fn differing_in_case(name: &OsStr) -> Option<&'static str> {
    let letters = |name: &str| name.replace(['_', '-', '.', ' '], "").to_uppercase();
    let known = NO_SETTINGS.iter().chain(&[RUST_LOG]);
    known.copied().find(|known| {
        let is_file = || letters(&name.to_string_lossy()) == letters(FILE_VARIABLE);
        name != *known
            && (name.eq_ignore_ascii_case(known) || (*known == FILE_VARIABLE && is_file()))
    })
}

/// The file that the environment names.
fn file_of_environment() -> Option<ConfigFile> {
    environment::path(FILE_VARIABLE).map(|path| ConfigFile::new(path, FILE_VARIABLE))
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
        let file = matches.get_one::<PathBuf>(FILE).cloned();
        self.file = Self::of_file(file, "--config").file;
        let given = flags().filter_map(|setting| {
            let texts = matches.get_many::<String>(setting.key)?;
            let texts: Vec<_> = texts.map(String::as_str).collect();
            Some((setting.key, texts.join(SEPARATOR)))
        });
        self.given = given.collect();
        Ok(())
    }
}

/// Makes an error of the command line say what was meant.
pub(crate) fn explain(error: clap::Error) -> clap::Error {
    match error.kind() {
        ErrorKind::InvalidUtf8 => name_what_is_not_utf_8(error),
        ErrorKind::UnknownArgument => advise_on_switches(suggest(error)),
        _ => suggest(error),
    }
}

/// Says of a flag without a value that it has none, where one was given: `--print-config false`.
fn advise_on_switches(mut error: clap::Error) -> clap::Error {
    const ANSWERS: &[&str] = &["true", "false", "yes", "no", "on", "off"];
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    if !ANSWERS.contains(&&*word.to_lowercase()) {
        return error;
    }
    let arguments: Vec<_> = env::args_os().collect();
    let pair = arguments
        .windows(2)
        .find(|pair| pair[1] == **word && pair[0].to_string_lossy().starts_with("--"));
    if let Some([flag, _]) = pair {
        let advice = format!(
            "{} takes no value: write it, or leave it out",
            flag.to_string_lossy()
        );
        error.insert(
            ContextKind::Suggested,
            ContextValue::StyledStrs(vec![advice.into()]),
        );
    }
    error
}

/// The warnings about variables that come near one of those that commands other than `serve` read, and are none.
pub(crate) fn misspelled_variables() -> impl Iterator<Item = String> {
    let set = env::vars_os().filter(|(_, value)| !value.is_empty());
    set.filter_map(|(name, _)| {
        let name = name.to_str()?.to_owned();
        let is_known = NO_SETTINGS.contains(&&*name)
            || SETTINGS.iter().any(|setting| setting.variable() == name);
        let near = |other: &&&str| {
            let distance = strsim::osa_distance(&name.to_uppercase(), other);
            // All of them have nine letters in common.
            distance <= 2 && distance * 2 < other.len() - VARIABLES.len()
        };
        let meant = NO_SETTINGS.iter().find(near).copied();
        let meant = differing_in_case(name.as_ref()).or(meant);
        let meant = meant.filter(|_| !is_known)?;
        Some(format!("{name}: it is ignored; did you mean {meant}?"))
    })
}

/// Names the argument that is not UTF-8, which clap leaves to its user to find.
fn name_what_is_not_utf_8(error: clap::Error) -> clap::Error {
    match env::args_os().find(|argument| argument.to_str().is_none()) {
        Some(argument) => {
            let message = format!("the argument {argument:?} is not UTF-8\n");
            clap::Error::raw(ErrorKind::InvalidUtf8, message)
        }
        None => error,
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
        .value_parser(|text: &str| match text {
            // In the environment it is how a value is taken away; here it is a slip of a script.
            "" => Err("must not be empty: leave the flag out".to_owned()),
            text => setting.check(text).map(|()| text.to_owned()),
        });
    let arg = match setting.value_name {
        // `--admin`, `--admin false` and `--admin=false`: `serve` takes no other words that the second could mean.
        "BOOL" => arg.num_args(0..=1).default_missing_value("true"),
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

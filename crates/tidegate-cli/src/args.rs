//! The command line, and the forms of values that several commands share.

use clap::{Args, Parser, Subcommand};
use tidegate_client::Client;

use crate::{
    admin::{ClientsArgs, KickArgs, StatsArgs},
    check_config::CheckConfigArgs,
    completions::CompletionsArgs,
    exit::{self, Failure},
    logging::LogArgs,
    publish::PubArgs,
    security::CredentialArgs,
    serve::ServeArgs,
    sub::SubArgs,
    token::TokenArgs,
};

/// Stream events over gRPC to every connected client, each at its own pace.
///
/// A first try, in three terminals:
///
///   tidegate serve
///   tidegate sub 'orders.>'
///   tidegate pub orders.eu.created 'order 17'
///
/// Events are published to topics of dot-separated tokens, such as
/// orders.eu.created. A subscriber names topics, or patterns: `*` stands for one
/// token, `>` at the end for one or more. Quote patterns, or the shell takes them
/// for its own.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, after_long_help = exit::HELP, verbatim_doc_comment)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: LogArgs,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(ServeArgs),
    CheckConfig(CheckConfigArgs),
    Sub(SubArgs),
    Pub(PubArgs),
    Clients(ClientsArgs),
    Kick(KickArgs),
    Stats(StatsArgs),
    #[cfg(target_os = "linux")]
    Bench(crate::bench::BenchArgs),
    Token(TokenArgs),
    Completions(CompletionsArgs),
}

/// Where the server is, for the commands that speak to one.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server to speak to.
    #[arg(
        long,
        value_name = "URL",
        env = "TIDEGATE_SERVER",
        default_value = "http://127.0.0.1:50051",
        value_parser = server_url
    )]
    pub(crate) server: String,

    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
}

impl ServerArgs {
    /// A client for the server.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        self.credentials.client(&self.server)
    }
}

/// Takes `host:port` for `http://host:port`.
fn server_url(text: &str) -> Result<String, String> {
    match text {
        "" => Err("write it as http://HOST:PORT".into()),
        url if url.contains("://") => Ok(url.into()),
        authority => Ok(format!("http://{authority}")),
    }
}

/// An attribute, `NAME=VALUE`. The value may be empty and may contain `=`.
pub(crate) fn attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write it as NAME=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::settings::{FILE_VARIABLE, NO_SETTINGS, suggest};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_benchmarks_of_the_documents_are_understood() {
        let documents = [
            include_str!("../../../docs/benchmarks.md"),
            include_str!("../../../docs/memory.md"),
        ];
        let lines = documents.iter().flat_map(|text| text.lines());
        let commands = lines.filter_map(|line| line.strip_prefix("$ tidegate bench"));
        let mut count = 0;
        for command in commands {
            let words = ["tidegate", "bench"].into_iter();
            let understood = Cli::try_parse_from(words.chain(command.split_whitespace()));
            assert!(understood.is_ok(), "{command}: {}", understood.unwrap_err());
            count += 1;
        }
        assert!(count > 10);
    }

    #[test]
    fn attributes_have_names() {
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(attribute("a=b"), pair("a", "b"));
        assert_eq!(attribute("a="), pair("a", ""));
        assert_eq!(attribute("a=b=c"), pair("a", "b=c"));
        assert!(attribute("a").is_err());
        assert!(attribute("=b").is_err());
    }

    #[test]
    fn the_scheme_may_be_left_out() {
        assert_eq!(server_url("host:1"), Ok("http://host:1".into()));
        assert_eq!(server_url("http://host:1"), Ok("http://host:1".into()));
        assert!(server_url("").is_err());
    }

    #[test]
    fn logging_is_set_before_or_after_the_command() {
        for line in [
            ["tidegate", "--log", "debug", "sub", "a"],
            ["tidegate", "sub", "a", "--log", "debug"],
        ] {
            assert_eq!(Cli::parse_from(line).log.log.as_deref(), Some("debug"));
        }
    }

    fn variables(command: &clap::Command) -> Vec<String> {
        let own = command.get_arguments().filter_map(clap::Arg::get_env);
        let own = own.map(|name| name.to_str().unwrap().to_owned());
        own.chain(command.get_subcommands().flat_map(variables))
            .collect()
    }

    #[test]
    fn variables_of_other_commands_are_known() {
        let known: HashSet<_> = NO_SETTINGS.iter().map(ToString::to_string).collect();
        let of_commands = variables(&Cli::command()).into_iter();
        let used: HashSet<_> = of_commands.chain([FILE_VARIABLE.to_owned()]).collect();
        assert_eq!(known, used);
    }

    #[test]
    fn flag_is_suggested_by_its_words_and_for_the_server_only() {
        let error = |arguments: [&str; 4]| {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            suggest(error).to_string()
        };
        let served = error(["tidegate", "serve", "--max-streams", "5"]);
        assert!(
            served.contains("'--http2-max-concurrent-streams'"),
            "{served}"
        );
        let published = error(["tidegate", "pub", "--max-streams", "5"]);
        assert!(!published.contains("http2"), "{published}");
    }
}

//! The command line.

use clap::{Parser, Subcommand};

use crate::{
    commands::{
        admin::{ClientsArgs, KickArgs, PublishersArgs, StatsArgs},
        check_config::CheckConfigArgs,
        completions::CompletionsArgs,
        conformance::ConformanceArgs,
        publish::PubArgs,
        serve::ServeArgs,
        sub::SubArgs,
        token::TokenArgs,
    },
    exit,
    logging::LogArgs,
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
/// token, `>` at the end for one or more. Quote patterns, or the shell expands
/// them.
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
    Publishers(PublishersArgs),
    Kick(KickArgs),
    Stats(StatsArgs),
    #[cfg(target_os = "linux")]
    Bench(crate::commands::bench::BenchArgs),
    Token(TokenArgs),
    Conformance(ConformanceArgs),
    Completions(CompletionsArgs),
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::settings::{NO_SETTINGS, suggest};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn documented_bench_commands_parse() {
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
    fn logging_is_set_before_or_after_the_command() {
        for line in [
            ["tidegate", "--log", "debug", "sub", "a"],
            ["tidegate", "sub", "a", "--log", "debug"],
        ] {
            assert_eq!(Cli::parse_from(line).log.log.as_deref(), Some("debug"));
        }
    }

    /// The variables that the help of some command names.
    fn variables(mut command: clap::Command) -> HashSet<String> {
        let help = command.render_long_help().to_string();
        // Where a line is wrapped is up to the terminal.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let names = help.split("[env: ").skip(1);
        let own = names.filter_map(|rest| rest.split(']').next());
        let own: HashSet<_> = own.map(ToOwned::to_owned).collect();
        let commands = command.get_subcommands().cloned().collect::<Vec<_>>();
        commands
            .into_iter()
            .flat_map(variables)
            .chain(own)
            .collect()
    }

    #[test]
    fn variables_of_other_commands_are_known() {
        let known: HashSet<_> = NO_SETTINGS.iter().map(ToString::to_string).collect();
        assert_eq!(known, variables(Cli::command()));
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

//! `tidegate completions`: prints completion scripts for shells.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::{exit::Failure, stdio};

/// Print a completion script for a shell
///
/// For bash, for example:
///
///   tidegate completions bash > ~/.local/share/bash-completion/completions/tidegate
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CompletionsArgs {
    /// The shell to print the script for.
    shell: Shell,
}

/// Prints the script for `command`, the whole command line.
pub(crate) fn run(args: &CompletionsArgs, mut command: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "tidegate", &mut script);
    Ok(stdio::print(script)?)
}

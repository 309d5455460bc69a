//! `tidegate token`: what a token file has of a token.

use std::io::{self, BufRead as _, Write as _};

use clap::Args;

use crate::exit::{Exit, Failure};

/// Print the line of a token file for a token
///
/// Reads the token from standard input, one line, and prints the line that `tidegate serve --auth-tokens FILE`
/// takes: the principal, and a hash from which nobody can tell the token.
///
/// A token must be long and random, for its hash can be tried quickly:
///
///   openssl rand -base64 32 > billing.token
///   tidegate token billing < billing.token >> tokens
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "`tidegate --help` lists the exit codes."
)]
pub(crate) struct TokenArgs {
    /// Whose token it is: one word.
    principal: String,
}

pub(crate) fn run(args: &TokenArgs) -> Result<(), Failure> {
    let mut token = String::new();
    io::stdin().lock().read_line(&mut token)?;
    let line = tidegate_server::token_line(&args.principal, token.trim_end())
        .map_err(|problem| Failure::new(Exit::Usage, problem))?;
    writeln!(io::stdout(), "{line}")?;
    Ok(())
}

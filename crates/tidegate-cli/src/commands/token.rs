//! `tidegate token`: hashes a token for a token file.

use std::io::{self, BufRead as _};

use clap::Args;

use crate::{
    exit::{Exit, Failure},
    standard::print,
};

/// Print a token file's line for a token
///
/// Reads the token from standard input, one line, and prints the line that
/// `tidegate serve --auth-tokens FILE` expects: the principal, and a hash of the token.
///
/// A token must be long and random, because guesses can be checked against its hash
/// quickly:
///
///   openssl rand -base64 32 > billing.token
///   tidegate token billing < billing.token >> tokens
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "`tidegate --help` lists the exit codes."
)]
pub(crate) struct TokenArgs {
    /// Principal that the token authenticates: one word.
    principal: String,
}

pub(crate) fn run(args: &TokenArgs) -> Result<(), Failure> {
    let mut token = String::new();
    io::stdin().lock().read_line(&mut token)?;
    let line = tidegate_server::token_line(&args.principal, token.trim_end())
        .map_err(|problem| Failure::new(Exit::Usage, problem))?;
    print(format!("{line}\n"))
}

//! `tidegate token`: hashes a token for a token file.

use clap::Args;

use crate::{
    exit::{Exit, Failure},
    stdio,
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

/// The longest token in bytes. Longer ones fit into no header.
const MAX_TOKEN: usize = 64 * 1024;

pub(crate) fn run(args: &TokenArgs) -> Result<(), Failure> {
    let token = stdio::read_line(MAX_TOKEN)?;
    let token = String::from_utf8_lossy(&token);
    let line = tidegate_server::token_line(&args.principal, token.trim_end())
        .map_err(|problem| Failure::new(Exit::Usage, problem))?;
    Ok(stdio::print(format!("{line}\n"))?)
}

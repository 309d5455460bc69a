//! `tidegate check-config`: whether a server would take a configuration.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use clap::Args;

use crate::{exit::Failure, settings::SettingArgs};

/// Check a configuration file, and the environment
///
/// Reads the files of certificates, keys, tokens and rules that it names as well. Reports everything that is wrong at
/// once, each with its line, and exits with 2; says nothing is wrong and exits with 0 if a server would take it. Binds
/// no address, and fetches no keys.
#[derive(Debug, Args)]
pub(crate) struct CheckConfigArgs {
    /// The file. Without it, that of TIDEGATE_CONFIG, or the environment alone.
    file: Option<PathBuf>,
}

pub(crate) fn run(args: &CheckConfigArgs) -> Result<(), Failure> {
    SettingArgs::of_file(args.file.clone()).check()?;
    writeln!(io::stdout(), "nothing is wrong")?;
    Ok(())
}

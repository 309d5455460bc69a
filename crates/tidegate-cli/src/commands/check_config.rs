//! `tidegate check-config`: checks a configuration without serving.

use std::path::PathBuf;

use clap::Args;

use crate::{exit::Failure, settings::SettingArgs, standard::print};

/// Check a configuration file and the environment
///
/// Reads the files of certificates, keys, tokens and rules that the configuration names, too. Reports every error with
/// its line and exits with 2, or says that the configuration is valid and exits with 0. Binds no address, and fetches
/// no keys.
#[derive(Debug, Args)]
pub(crate) struct CheckConfigArgs {
    /// Configuration file in TOML [default: that of TIDEGATE_CONFIG, or none].
    file: Option<PathBuf>,
}

pub(crate) fn run(args: &CheckConfigArgs) -> Result<(), Failure> {
    SettingArgs::of_file(args.file.clone()).check()?;
    print("configuration is valid\n")
}

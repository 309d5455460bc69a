//! `tidegate check-config`: checks a configuration without serving.

use std::path::PathBuf;

use clap::Args;

use crate::{exit::Failure, settings::SettingArgs, stdio};

/// Check a configuration file and the environment
///
/// Reads the files of certificates, keys, tokens and rules that the configuration names, too, and looks at the memory
/// and the open files that this process may have. Reports every error with its line and exits with 2, or with 1 if
/// all of them are files that cannot be read now and may be later, such as missing ones. Else it prints what a
/// server would warn of, says that the configuration is valid, and exits with 0. Binds no address, and fetches no keys.
#[derive(Debug, Args)]
pub(crate) struct CheckConfigArgs {
    /// Configuration file in TOML [default: that of TIDEGATE_CONFIG, or none].
    file: Option<PathBuf>,

    /// The same file, as `tidegate serve` takes it.
    #[arg(long = "config", value_name = "FILE", conflicts_with = "file")]
    config: Option<PathBuf>,
}

pub(crate) fn run(args: &CheckConfigArgs) -> Result<(), Failure> {
    let (file, named_by) = match &args.config {
        Some(file) => (Some(file), "--config"),
        None => (args.file.as_ref(), "check-config"),
    };
    for warning in SettingArgs::of_file(file.cloned(), named_by).check()? {
        stdio::say(format_args!("warning: {warning}"));
    }
    Ok(stdio::print("configuration is valid\n")?)
}

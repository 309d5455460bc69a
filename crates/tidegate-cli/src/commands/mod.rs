//! The commands. Each is a module with its arguments and a `run`.

pub(crate) mod admin;
#[cfg(target_os = "linux")]
pub(crate) mod bench;
pub(crate) mod check_config;
pub(crate) mod completions;
pub(crate) mod conformance;
pub(crate) mod publish;
pub(crate) mod serve;
pub(crate) mod sub;
pub(crate) mod token;

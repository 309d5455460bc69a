//! Who may call, as it is configured.

use std::path::PathBuf;

use super::{
    jwt::{JwtConfig, JwtKeys},
    rules::Rule,
};

/// Who may call, and what they may do. Authentication is on as soon as there is a way to tell who calls: tokens,
/// JSON Web Tokens, or [certificates](crate::TlsConfig::client_ca). Then everything is denied that no rule
/// allows.
///
/// The files are looked at every 2 s, and read again when they have changed. One that cannot be used leaves what
/// was there before, and is logged as an error.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// A file of bearer tokens by their hashes. Default: `None`.
    pub tokens: Option<PathBuf>,
    /// What JSON Web Tokens are accepted. Default: `None`.
    pub jwt: Option<JwtConfig>,
    /// What principals may do. Default: nothing.
    pub rules: Vec<Rule>,
    /// A file of more rules: an array of tables `rule`, in TOML, with the fields of [`Rule`]. Default: `None`.
    pub rules_file: Option<PathBuf>,
    /// Whether to take credentials without TLS from beyond this machine. Whoever is between can read and use
    /// them. Default: false.
    pub insecure: bool,
}

impl AuthConfig {
    /// Whether callers must prove who they are, certificates aside.
    pub(crate) fn takes_tokens(&self) -> bool {
        self.tokens.is_some() || self.jwt.is_some()
    }

    pub(super) fn has_rules(&self) -> bool {
        self.rules_file.is_some() || !self.rules.is_empty()
    }

    pub(super) fn key_sources(&self) -> &[JwtKeys] {
        self.jwt.as_ref().map_or(&[], |jwt| &jwt.keys)
    }
}

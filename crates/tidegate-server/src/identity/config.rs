//! The configuration of authentication.

use std::path::PathBuf;

use super::{
    jwt::{JwtConfig, JwtKeys},
    rules::Rule,
};

/// The credentials that calls need, and what they allow. Authentication is on as soon as there is a kind of
/// credentials: tokens, JSON Web Tokens, or [certificates](crate::TlsConfig::client_ca). Then a call may do only what a
/// rule allows.
///
/// The server checks the files every 2 s and reads them again when they have changed. A file that cannot be used leaves
/// its previous contents in force, and is logged as an error.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// A file of bearer tokens by their hashes. Default: `None`.
    pub tokens: Option<PathBuf>,
    /// The JSON Web Tokens that are accepted. Default: `None`.
    pub jwt: Option<JwtConfig>,
    /// The rules of what principals may do. Default: none.
    pub rules: Vec<Rule>,
    /// A file of further rules: an array of tables `rule`, in TOML, with the fields of [`Rule`]. Default: `None`.
    pub rules_file: Option<PathBuf>,
    /// Whether to accept credentials without TLS on an address that is not loopback. Anyone on the path can then read
    /// and use them. Default: false.
    pub insecure: bool,
}

impl AuthConfig {
    /// Whether calls need a token, where certificates of clients do not replace it.
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

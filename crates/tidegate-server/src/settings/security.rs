//! The settings of TLS, credentials and rules, one field for each.
//!
//! [`TlsConfig`] and [`JwtConfig`] exist only with the values that they require, so they cannot hold a setting that is
//! written before the setting that it needs. These structs can.

use std::{path::PathBuf, time::Duration};

use crate::{
    identity::{
        AuthConfig,
        jwt::{JwksUrl, JwtConfig, JwtKeys},
    },
    network::tls::{ClientAuth, TlsConfig},
};

/// The values of `[tls]` and `[auth]`.
#[derive(Debug, Clone)]
pub(super) struct Security {
    pub(super) tls: Tls,
    pub(super) tokens: Option<PathBuf>,
    pub(super) rules: Option<PathBuf>,
    pub(super) insecure: bool,
    pub(super) jwt: Jwt,
}

/// The values of `[tls]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Tls {
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) client_ca: Option<PathBuf>,
    pub(super) client_crls: Vec<PathBuf>,
    pub(super) client_auth: ClientAuth,
}

/// The values of `[auth.jwt]`.
#[derive(Debug, Clone)]
pub(super) struct Jwt {
    pub(super) issuer: Option<String>,
    pub(super) audience: Option<String>,
    pub(super) public_keys: Vec<PathBuf>,
    pub(super) secrets: Vec<PathBuf>,
    /// Paths of files, and addresses.
    pub(super) key_sets: Vec<String>,
    pub(super) key_set_ca: Option<PathBuf>,
    pub(super) key_set_refresh_interval: Duration,
    pub(super) key_set_max_age: Option<Duration>,
    pub(super) leeway: Duration,
}

/// The key of each setting that does nothing alone, and the key of the setting that it needs.
pub(super) const NEEDS: &[(&str, &str)] = &[
    ("tls.certificate", "tls.key"),
    ("tls.key", "tls.certificate"),
    ("tls.client_ca", "tls.certificate"),
    ("tls.client_auth", "tls.client_ca"),
    ("tls.client_crls", "tls.client_ca"),
    ("auth.jwt.issuer", "auth.jwt.audience"),
    ("auth.jwt.audience", "auth.jwt.issuer"),
    ("auth.jwt.public_keys", "auth.jwt.issuer"),
    ("auth.jwt.secrets", "auth.jwt.issuer"),
    ("auth.jwt.key_sets", "auth.jwt.issuer"),
    ("auth.jwt.key_set_ca", "auth.jwt.key_sets"),
];

impl Default for Security {
    fn default() -> Self {
        let AuthConfig {
            tokens,
            rules_file,
            insecure,
            ..
        } = AuthConfig::default();
        Self {
            tls: Tls::default(),
            tokens,
            rules: rules_file,
            insecure,
            jwt: Jwt::default(),
        }
    }
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            issuer: None,
            audience: None,
            public_keys: Vec::new(),
            secrets: Vec::new(),
            key_sets: Vec::new(),
            key_set_ca: None,
            key_set_refresh_interval: JwksUrl::new("").refresh_interval,
            key_set_max_age: JwksUrl::new("").max_age,
            leeway: JwtConfig::new("", "").leeway,
        }
    }
}

impl Security {
    /// The configuration of TLS; `None` without a certificate and its key.
    pub(super) fn tls(&self) -> Option<TlsConfig> {
        let certificate = self.tls.certificate.as_ref()?;
        let mut tls = TlsConfig::new(certificate, self.tls.key.as_ref()?);
        tls.client_ca.clone_from(&self.tls.client_ca);
        tls.client_crls.clone_from(&self.tls.client_crls);
        tls.client_auth = self.tls.client_auth;
        Some(tls)
    }

    /// The configuration of authentication.
    pub(super) fn auth(&self) -> AuthConfig {
        AuthConfig {
            tokens: self.tokens.clone(),
            jwt: self.jwt.config(),
            rules_file: self.rules.clone(),
            insecure: self.insecure,
            ..AuthConfig::default()
        }
    }
}

impl Jwt {
    /// The configuration of JSON Web Tokens; `None` without an issuer and an audience.
    fn config(&self) -> Option<JwtConfig> {
        let mut jwt = JwtConfig::new(self.issuer.as_ref()?, self.audience.as_ref()?);
        jwt.leeway = self.leeway;
        let public = self.public_keys.iter().cloned().map(JwtKeys::Pem);
        let secrets = self.secrets.iter().cloned().map(JwtKeys::Secret);
        let sets = self.key_sets.iter().map(|set| self.key_set(set));
        jwt.keys = public.chain(secrets).chain(sets).collect();
        Some(jwt)
    }

    /// The key set at an address, which has a scheme, or else at a path.
    pub(super) fn key_set(&self, place: &str) -> JwtKeys {
        if !place.contains("://") {
            return JwtKeys::JwksFile(place.into());
        }
        let mut set = JwksUrl::new(place);
        set.refresh_interval = self.key_set_refresh_interval;
        set.max_age = self.key_set_max_age;
        set.ca.clone_from(&self.key_set_ca);
        JwtKeys::JwksUrl(set)
    }
}

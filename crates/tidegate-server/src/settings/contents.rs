//! Checks of the files that a configuration names.
//!
//! Each file is checked alone, so that all errors are reported at once, each at the setting that names the file.
//! Nothing is fetched: of the address of a key set only the form is checked.

use std::{path::Path, sync::Arc};

use super::{
    security::{Jwt, Tls},
    setting::Configuration,
    written::{Origin, Problem, Written},
};
use crate::{
    error::BindError,
    files::SecurityError,
    identity::{jwks::Fetcher, jwt::JwtKeys, rules::Rules, tokens::Tokens},
    network::{
        pem,
        tls::{self, TlsConfig},
    },
    prepare::{Prepared, Warning},
    reading::read_file,
};

/// The problems of the files that `configuration` names, each file checked alone.
pub(super) fn problems(configuration: &Configuration, written: &Written) -> Vec<Problem> {
    let mut checks = FileChecks {
        written,
        problems: Vec::new(),
    };
    let settings = &configuration.security;
    checks.tls(&settings.tls);
    checks.file("auth.tokens", settings.tokens.as_ref(), |path, content| {
        Tokens::parse(content).map_err(|problem| SecurityError::invalid(path, problem))
    });
    checks.file("auth.rules", settings.rules.as_ref(), |path, content| {
        Rules::parse(content, Vec::new()).map_err(|problem| SecurityError::invalid(path, problem))
    });
    checks.jwt(&settings.jwt);
    checks.problems
}

/// The warnings of a server with this configuration, each at its setting.
///
/// # Errors
/// The problem for which a server would refuse what passes alone.
pub(super) fn together(
    configuration: &Configuration,
    written: &Written,
) -> Result<Vec<Problem>, Problem> {
    let prepared = Prepared::new(&configuration.server).map_err(|error| {
        let keys: &[&'static str] = match &error {
            BindError::PlaintextCredentials { .. } => &["listen", "auth.tokens", "auth.jwt.issuer"],
            BindError::Descriptors { .. } => &["connections.max"],
            _ => &["auth.rules", "auth.jwt.issuer", "tls.certificate"],
        };
        let origin = keys.iter().find_map(|key| written.origin(key));
        let message = match &error {
            BindError::Security(error) => error.with_cause(),
            other => other.to_string(),
        };
        Problem {
            is_temporary: error.is_temporary(),
            origin: origin.cloned().unwrap_or(Origin::Default(keys[0])),
            message,
        }
    })?;
    let warnings = prepared.warnings.into_iter();
    Ok(warnings
        .map(|Warning { key, message }| Problem::new(written.origin_or_default(key), message))
        .collect())
}

/// The checks so far.
struct FileChecks<'a> {
    written: &'a Written,
    problems: Vec<Problem>,
}

impl FileChecks<'_> {
    /// Checks the files of TLS, and that the key belongs to the certificate.
    fn tls(&mut self, settings: &Tls) {
        let certificate = settings.certificate.as_ref();
        let chain = self.file("tls.certificate", certificate, pem::certificates);
        let key = self.file("tls.key", settings.key.as_ref(), pem::private_key);
        if let (Some(_), Some(_), Some(chain), Some(key)) = (chain, key, certificate, &settings.key)
        {
            let made = TlsConfig::new(chain, key).check();
            self.record("tls.key", made);
        }
        let ca = settings.client_ca.as_ref();
        let roots = self.file("tls.client_ca", ca, tls::roots).map(Arc::new);
        for path in &settings.client_crls {
            self.file(
                "tls.client_crls",
                Some(path),
                |path, content| match &roots {
                    Some(roots) => tls::revoked(path, content, roots),
                    None => pem::lists(path, content),
                },
            );
        }
    }

    /// Checks the keys of JSON Web Tokens.
    fn jwt(&mut self, settings: &Jwt) {
        for path in &settings.public_keys {
            self.keys("auth.jwt.public_keys", &JwtKeys::Pem(path.clone()));
        }
        for path in &settings.secrets {
            self.keys("auth.jwt.secrets", &JwtKeys::Secret(path.clone()));
        }
        for place in &settings.key_sets {
            self.keys("auth.jwt.key_sets", &settings.key_set(place));
        }
        self.file(
            "auth.jwt.key_set_ca",
            settings.key_set_ca.as_ref(),
            tls::roots,
        );
    }

    /// Checks a file of keys, or the form of an address.
    fn keys(&mut self, key: &str, keys: &JwtKeys) {
        if let JwtKeys::JwksUrl(set) = keys {
            let mut set = set.clone();
            // The setting of the authorities reports the errors of their file.
            set.ca = None;
            self.record(key, Fetcher::new(set));
        }
        self.file(key, keys.path(), |_, content| keys.parse(content));
    }

    /// Reads a file, if the setting names one, and parses it. `None` without a file, or after an error.
    fn file<T>(
        &mut self,
        key: &str,
        path: Option<&(impl AsRef<Path> + ?Sized)>,
        parse: impl FnOnce(&Path, &[u8]) -> Result<T, SecurityError>,
    ) -> Option<T> {
        let path = path?.as_ref();
        let parsed = read_file(path).and_then(|content| parse(path, &content));
        self.record(key, parsed)
    }

    /// Reports the error of a check, if it has one, at the setting `key`; else gives its value.
    fn record<T>(&mut self, key: &str, result: Result<T, SecurityError>) -> Option<T> {
        match (result, self.written.origin(key)) {
            (Ok(good), _) => Some(good),
            (Err(error), Some(origin)) => {
                self.problems.push(Problem {
                    is_temporary: error.is_temporary(),
                    origin: origin.clone(),
                    message: format!("{key}: {}", error.with_cause()),
                });
                None
            }
            // No default names a file.
            (Err(_), None) => None,
        }
    }
}

//! Whether the files that a configuration names can be used.
//!
//! Each file is looked at by itself, so that all that is wrong is told at once, at the setting that names it. Nothing
//! is fetched: of the address of a key set only its form is looked at.

use std::{path::Path, sync::Arc};

use super::{
    security::{Jwt, Tls},
    setting::Configuration,
    written::{Origin, Problem, Written},
};
use crate::{
    authorisation::Rules,
    files::{self, SecurityError},
    jwks::Fetcher,
    jwt::JwtKeys,
    server::{BindError, security},
    tls::{self, TlsConfig},
    tokens::Tokens,
};

/// What is wrong with the files of `configuration`. When nothing is, whether a server would take them together.
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

/// What is wrong with what each file alone allows.
pub(super) fn together(configuration: &Configuration, written: &Written) -> Option<Problem> {
    let error = security(&configuration.server).err()?;
    let keys: &[&str] = match &error {
        BindError::PlaintextCredentials { .. } => &["listen", "auth.tokens", "auth.jwt.issuer"],
        _ => &["auth.rules", "auth.jwt.issuer", "tls.certificate"],
    };
    let origin = keys.iter().find_map(|key| written.origin(key));
    let message = match &error {
        BindError::Security(error) => error.with_cause(),
        other => other.to_string(),
    };
    Some(Problem {
        origin: origin
            .cloned()
            .unwrap_or_else(|| Origin::Flag("auth-insecure".into())),
        message,
    })
}

struct FileChecks<'a> {
    written: &'a Written,
    problems: Vec<Problem>,
}

impl FileChecks<'_> {
    fn tls(&mut self, settings: &Tls) {
        let certificate = settings.certificate.as_ref();
        let chain = self.file("tls.certificate", certificate, tls::certificates);
        let key = self.file("tls.key", settings.key.as_ref(), tls::private_key);
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
                    None => tls::lists(path, content),
                },
            );
        }
    }

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

    fn keys(&mut self, key: &str, keys: &JwtKeys) {
        if let JwtKeys::JwksUrl(set) = keys {
            let mut set = set.clone();
            // It has a setting of its own.
            set.ca = None;
            self.record(key, Fetcher::new(set));
        }
        self.file(key, keys.path(), |_, content| keys.parse(content));
    }

    /// Reads a file, if there is one, and makes of it what `parse` does.
    fn file<T>(
        &mut self,
        key: &str,
        path: Option<&(impl AsRef<Path> + ?Sized)>,
        parse: impl FnOnce(&Path, &[u8]) -> Result<T, SecurityError>,
    ) -> Option<T> {
        let path = path?.as_ref();
        let parsed = files::read(path).and_then(|content| parse(path, &content));
        self.record(key, parsed)
    }

    fn record<T>(&mut self, key: &str, result: Result<T, SecurityError>) -> Option<T> {
        match (result, self.written.origin(key)) {
            (Ok(good), _) => Some(good),
            (Err(error), Some(origin)) => {
                self.problems.push(Problem {
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

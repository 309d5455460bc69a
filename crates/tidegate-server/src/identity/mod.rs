//! Authentication: the principal of each call, and its rights while the server runs.
//!
//! The *principal* of a call is the one that its bearer token names, or else the one that the certificate of its
//! connection names. Its rights come from the [rules](crate::Rule) and, with a JSON Web Token, from the token too.
//!
//! # Changes
//! The tokens, keys, authorities and rules in force are one [`Policy`], which is replaced as a whole. Every open call
//! watches it, and ends when the new policy would refuse it.
//!
//! # Cost
//! A server without authentication does none of this. With it, each connection remembers its last token, so a client
//! that makes many calls has its token verified once.

mod config;
pub(crate) mod jwks;
pub(crate) mod jwt;
mod known_tokens;
mod made_ids;
pub(crate) mod peer;
mod policy;
mod refusal;
pub(crate) mod rules;
mod session;
mod token;
pub(crate) mod tokens;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::server::danger::ClientCertVerifier;
use tidegate::Reason;
use tonic::Status;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

pub use self::config::AuthConfig;
use self::{
    jwks::KeySets,
    jwt::{JwksUrl, JwtKeys, Keys, TokenError, TokenErrorKind, VerifiedToken},
    known_tokens::KnownTokens,
    policy::{Credential, Policies, Policy},
    refusal::{Cause, RefusalLog},
    rules::{Rights, Rules},
    session::{Authenticated, Session},
    tokens::Tokens,
};
use crate::{
    digest::Digest,
    files::{Contents, Files, SecurityError},
    network::tls::{Certificates, Tls},
};

/// The authenticator of a server: it verifies credentials, and reads again what it verifies them with.
#[derive(Debug)]
pub(crate) struct Authenticator {
    config: AuthConfig,
    tokens: Files,
    rules: Files,
    keys: Files,
    /// The keys in force, by file.
    keys_in_force: Mutex<Vec<Keys>>,
    key_sets: KeySets,
    policies: Arc<Policies>,
    known_tokens: KnownTokens,
    refusals: RefusalLog,
}

/// Credentials that are not accepted.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The answer to the client.
    pub(crate) status: Status,
    /// For the log.
    pub(crate) cause: Cause,
}

// ===== impl Authenticator =====

impl Authenticator {
    /// Reads all files. Returns `None` without authentication.
    ///
    /// # Errors
    /// When a file cannot be used, or the configuration contradicts itself. A key set that cannot be fetched is no
    /// error: the server fetches it again later.
    pub(crate) fn new(
        config: AuthConfig,
        tls: Option<&Tls>,
    ) -> Result<Option<Arc<Self>>, SecurityError> {
        let takes_certificates = tls.is_some_and(Tls::asks_for_certificates);
        if !(config.takes_tokens() || takes_certificates) {
            return match config.has_rules() {
                true => Err(SecurityError::Configuration(
                    "there are rules, but no credentials that they could apply to: set a file of tokens, keys for JSON \
                     Web Tokens, or a CA for client certificates",
                )),
                false => Ok(None),
            };
        }
        if config.jwt.as_ref().is_some_and(|jwt| jwt.keys.is_empty()) {
            return Err(SecurityError::Configuration(
                "JSON Web Tokens need a key that verifies them: a PEM file, a secret, or a JSON Web Key Set",
            ));
        }
        let paths = config.key_sources().iter().filter_map(JwtKeys::path);
        let keys = Files::new(paths.map(PathBuf::from));
        let key_sets = KeySets::new(config.key_sources())?;
        let policy = Policy {
            tokens: Arc::default(),
            rules: Arc::default(),
            keys: Arc::default(),
            fetched: vec![Arc::default(); key_sets.len()],
            verifier: tls.and_then(Tls::verifier),
        };
        let authenticator = Self {
            tokens: Files::new(config.tokens.clone()),
            rules: Files::new(config.rules_file.clone()),
            keys,
            keys_in_force: Mutex::default(),
            key_sets,
            policies: Arc::new(Policies::new(policy)),
            known_tokens: KnownTokens::default(),
            refusals: RefusalLog::default(),
            config,
        };
        authenticator.reload(true).into_iter().try_for_each(Err)?;
        Ok(Some(Arc::new(authenticator)))
    }

    /// The tokens that were accepted before.
    pub(crate) fn known_tokens(&self) -> &KnownTokens {
        &self.known_tokens
    }

    /// The log of credentials that were not accepted.
    pub(crate) fn refusals(&self) -> &RefusalLog {
        &self.refusals
    }

    /// Whether there is no rule.
    pub(crate) fn has_no_rules(&self) -> bool {
        self.policies.current().rules.is_empty()
    }

    /// Whether there is no token in a file.
    pub(crate) fn has_no_tokens(&self) -> bool {
        self.policies.current().tokens.is_empty()
    }

    /// The faults of the authorities for key sets.
    pub(crate) fn faults_of_authorities(&self) -> BTreeSet<String> {
        self.key_sets.faults_of_authorities()
    }

    /// The files of tokens, rules and keys.
    pub(crate) fn files(&self) -> [&Files; 3] {
        [&self.tokens, &self.rules, &self.keys]
    }

    /// Reads again the files that have changed, or all of them with `force`. A file that cannot be used leaves its
    /// previous contents in force, and does not keep the other files from taking effect. Returns one error for each.
    pub(crate) fn reload(&self, force: bool) -> Vec<SecurityError> {
        let parts = [self.reload_tokens(force), self.reload_rules(force)];
        let errors = parts.into_iter().filter_map(Result::err);
        errors.chain(self.reload_keys(force)).collect()
    }

    fn reload_tokens(&self, force: bool) -> Result<(), SecurityError> {
        let (Some(path), Some(contents)) = (&self.config.tokens, self.tokens.read(force)) else {
            return Ok(());
        };
        let tokens = Tokens::parse(&only(contents)?);
        let tokens = tokens.map_err(|problem| SecurityError::invalid(path, problem))?;
        // A file may be emptied on purpose. An editor, or a `>` in a shell, does it by accident.
        if tokens.is_empty() && !self.policies.current().tokens.is_empty() {
            tracing::warn!(
                path = %path.display(),
                "the file of tokens has become empty: none of its tokens is accepted any more"
            );
        }
        self.policies
            .amend(|policy| policy.tokens = Arc::new(tokens));
        Ok(())
    }

    fn reload_rules(&self, force: bool) -> Result<(), SecurityError> {
        let rules = self.config.rules.clone();
        let Some(contents) = self.rules.read(force) else {
            return Ok(());
        };
        let rules = match &self.config.rules_file {
            None => Rules::from(rules),
            Some(path) => Rules::parse(&only(contents)?, rules)
                .map_err(|problem| SecurityError::invalid(path, problem))?,
        };
        if rules.is_empty() && !self.policies.current().rules.is_empty() {
            let path = self.config.rules_file.as_deref().unwrap_or(Path::new(""));
            tracing::warn!(
                path = %path.display(),
                "the file of rules has become empty: it allows nobody anything any more"
            );
        }
        self.policies.amend(|policy| policy.rules = Arc::new(rules));
        Ok(())
    }

    fn reload_keys(&self, force: bool) -> Vec<SecurityError> {
        let Some(contents) = self.keys.read(force) else {
            return Vec::new();
        };
        let sources = self.config.key_sources().iter();
        let files = sources.filter(|source| source.path().is_some());
        let mut errors = Vec::new();
        let mut in_force = self
            .keys_in_force
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        in_force.resize_with(contents.len(), Keys::default);
        // One by one: a key that is withdrawn must not stay good because the file of another cannot be read.
        for ((source, content), keys) in files.zip(contents).zip(in_force.iter_mut()) {
            match content.and_then(|content| source.parse(&content)) {
                Ok(new) => *keys = new,
                Err(error) => errors.push(error),
            }
        }
        let mut keys = Keys::default();
        in_force.iter().for_each(|of_file| keys.extend(of_file));
        self.policies.amend(|policy| policy.keys = Arc::new(keys));
        errors
    }

    /// Replaces the verifier of clients' certificates.
    pub(crate) fn set_verifier(&self, verifier: Option<Arc<dyn ClientCertVerifier>>) {
        self.policies.amend(|policy| policy.verifier = verifier);
    }

    /// Fetches the key sets that were last asked for longer ago than `age` returns for them.
    pub(crate) async fn fetch(&self, age: impl Fn(&JwksUrl) -> Duration) {
        self.key_sets.fetch(&self.policies, age).await;
    }

    /// The number of attempts to fetch a key set that failed.
    pub(crate) fn fetch_failures(&self) -> u64 {
        self.key_sets.failures()
    }

    /// Verifies a token, whose SHA-256 is `hash`.
    ///
    /// # Errors
    /// When the credentials are not accepted, have expired, or cannot be verified because keys cannot be fetched.
    pub(crate) async fn authenticate_token(
        &self,
        token: &str,
        hash: Digest,
    ) -> Result<Authenticated, Refused> {
        let policy = self.policies.current();
        if let Some(principal) = policy.tokens.principal(&hash) {
            return Ok(self.begin_session(
                Arc::clone(principal),
                Credential::Token(hash),
                None,
                None,
            ));
        }
        let Some(jwt) = &self.config.jwt else {
            let cause = Cause::new("unknown", "no file lists the token");
            return Err(Refused::invalid(cause));
        };
        let verify = |policy: &Policy| jwt.verify(&policy.all_keys(), token, SystemTime::now());
        let mut verified = verify(&policy);
        let may_be_new = |error: &TokenError| error.kind == TokenErrorKind::UnknownKey;
        if verified.as_ref().is_err_and(may_be_new) && !self.key_sets.is_empty() {
            // Fetches at most once in the interval, however many calls ask. All of them wait for that one fetch, and
            // may find the key then.
            self.fetch(|set| set.unknown_key_interval).await;
            verified = verify(&self.policies.current());
        }
        match verified {
            Ok(VerifiedToken {
                principal,
                expires,
                rights,
                key,
            }) => Ok(self.begin_session(principal, Credential::Jwt(key), Some(expires), rights)),
            Err(TokenError { kind, cause }) => Err(self.refused(kind, cause)),
        }
    }

    fn refused(&self, kind: TokenErrorKind, cause: Cause) -> Refused {
        let status = match kind {
            TokenErrorKind::Expired => {
                Reason::CredentialsExpired.status("the token has expired; get a new one")
            }
            // The token may be good. The fault is with the address of the keys, so the client should try again.
            TokenErrorKind::UnknownKey if !self.key_sets.are_trusted() => Reason::KeysUnavailable
                .status("the keys that verify tokens cannot be fetched; try again later"),
            TokenErrorKind::UnknownKey | TokenErrorKind::Invalid => credentials_invalid(),
        };
        Refused { status, cause }
    }

    /// The principal of a certificate that the handshake verified. `None` if the certificate names nobody.
    pub(crate) fn authenticate_certificate(
        &self,
        certificates: Certificates,
    ) -> Option<Authenticated> {
        let (_, certificate) = X509Certificate::from_der(certificates.first()?).ok()?;
        let principal = principal_of(&certificate)?;
        let end = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end));
        Some(self.begin_session(principal, Credential::Certificate(certificates), end, None))
    }

    /// The session of a principal with verified credentials.
    fn begin_session(
        &self,
        principal: Arc<str>,
        credential: Credential,
        expires: Option<SystemTime>,
        claimed: Option<Rights>,
    ) -> Authenticated {
        Authenticated::new(Session::new(
            Arc::clone(&self.policies),
            principal,
            credential,
            expires,
            claimed,
        ))
    }
}

// ===== impl Refused =====

impl Refused {
    fn invalid(cause: Cause) -> Self {
        Self {
            status: credentials_invalid(),
            cause,
        }
    }
}

/// The contents of the one file there is.
fn only(mut contents: Contents) -> Result<Vec<u8>, SecurityError> {
    contents.pop().unwrap_or_else(|| Ok(Vec::new()))
}

/// The status for bad credentials of any kind. It does not say what is wrong with them, which would help attackers
/// only.
fn credentials_invalid() -> Status {
    Reason::CredentialsInvalid.status("the credentials are not accepted")
}

/// The principal that a certificate names: its first URI or DNS name, else its common name.
fn principal_of(certificate: &X509Certificate<'_>) -> Option<Arc<str>> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names
        .into_iter()
        .flat_map(|names| &names.value.general_names);
    let mut names = names.filter_map(|name| match name {
        GeneralName::URI(name) | GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let common_name = || {
        certificate
            .subject()
            .iter_common_name()
            .next()?
            .as_str()
            .ok()
    };
    let name = names.next().or_else(common_name)?;
    (!name.is_empty()).then(|| name.into())
}

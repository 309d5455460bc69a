//! Who calls, and what becomes of that while the server runs.
//!
//! A call is made by a *principal*: the one that its bearer token names, or else the one that the certificate of
//! its connection names. What the principal may do is in the [rules](crate::Rule) and, for a JSON Web Token,
//! in the token as well.
//!
//! # Changes
//! All that answers depend on is one [`Policy`], which is replaced as a whole. Every call that goes on watches
//! it, and ends when it would not be let in any more.
//!
//! # Cost
//! Nothing is done for a server without authentication. With it, the last token of each connection is
//! remembered, so that a client that makes many calls has its token checked once.

use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use http::{HeaderMap, header::AUTHORIZATION};
use rustls::{
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};
use subtle::ConstantTimeEq as _;
use tidegate::{Access, Authority, ClientId, CloseReason, Filter, Reason, Topic};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::Status;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use crate::{
    authorisation::{Rights, Rule, Rules},
    files::{Files, SecurityError},
    jwks::Fetcher,
    jwt::{JwtConfig, JwtKeys, Keys, Refused, Verified},
    tls::{Certificates, Tls},
    tokens::{Digest, Tokens, digest},
};

/// The longest that is slept towards the end of credentials: the clock may be set meanwhile.
const CLOCK_CHECK: Duration = Duration::from_secs(5);

/// Longer tokens are not even hashed. Headers are bounded as a whole as well.
const MAX_TOKEN_BYTES: usize = 8 << 10;

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

/// All that answers depend on.
#[derive(Debug, Clone)]
struct Policy {
    tokens: Arc<Tokens>,
    rules: Arc<Rules>,
    /// Keys from files.
    keys: Arc<Keys>,
    /// Keys from addresses, in the order of the configuration.
    fetched: Vec<Arc<Keys>>,
    /// Who vouches for clients' certificates.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// Finds out who calls.
#[derive(Debug)]
pub(crate) struct Identity {
    config: AuthConfig,
    tokens: Files,
    rules: Files,
    keys: Files,
    fetchers: Vec<Fetched>,
    policy: watch::Sender<Arc<Policy>>,
}

/// A key set that is fetched.
#[derive(Debug)]
struct Fetched {
    fetcher: Fetcher,
    /// When it was last looked at. Held while it is, so that all who need it wait for one answer.
    last: tokio::sync::Mutex<Option<Instant>>,
}

/// The client at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Caller {
    identity: Arc<Identity>,
    /// What its certificate gives it.
    by_certificate: Option<Admitted>,
    /// The last token that was accepted, and what it gives.
    last: Mutex<Option<(Digest, Admitted)>>,
}

/// A principal whose credentials were accepted.
#[derive(Debug, Clone)]
pub(crate) struct Admitted {
    session: Arc<Session>,
    pub(crate) access: Access,
}

#[derive(Debug)]
struct Session {
    identity: Arc<Identity>,
    principal: Arc<str>,
    credential: Credential,
    /// When the credential ends by itself.
    expires: Option<SystemTime>,
    /// What the credential itself grants.
    claimed: Option<Rights>,
    standing: Mutex<Arc<Standing>>,
}

/// What a session is under one policy.
#[derive(Debug)]
struct Standing {
    policy: Arc<Policy>,
    is_accepted: bool,
    rights: Rights,
}

#[derive(Debug)]
enum Credential {
    Token(Digest),
    /// The key that signed it.
    Jwt(Digest),
    Certificate(Certificates),
}

// ===== impl AuthConfig =====

impl AuthConfig {
    /// Whether callers must prove who they are, certificates aside.
    pub(crate) fn takes_tokens(&self) -> bool {
        self.tokens.is_some() || self.jwt.is_some()
    }

    fn has_rules(&self) -> bool {
        self.rules_file.is_some() || !self.rules.is_empty()
    }

    fn key_sources(&self) -> &[JwtKeys] {
        self.jwt.as_ref().map_or(&[], |jwt| &jwt.keys)
    }
}

// ===== impl Identity =====

impl Identity {
    /// Reads all files. `None` without authentication.
    ///
    /// # Errors
    /// When a file or the configuration cannot be used. A key set that cannot be fetched is no error: it is
    /// looked at again.
    pub(crate) fn new(
        config: AuthConfig,
        tls: Option<&Tls>,
    ) -> Result<Option<Arc<Self>>, SecurityError> {
        let takes_certificates = tls.is_some_and(Tls::asks_for_certificates);
        if !(config.takes_tokens() || takes_certificates) {
            return match config.has_rules() {
                true => Err(SecurityError::Configuration(
                    "there are rules, but no way to tell who calls: give a file of tokens, keys for JSON \
                     Web Tokens, or a CA for client certificates",
                )),
                false => Ok(None),
            };
        }
        if config.jwt.as_ref().is_some_and(|jwt| jwt.keys.is_empty()) {
            return Err(SecurityError::Configuration(
                "JSON Web Tokens need a key to check them with: a PEM file, a secret, or a JWKS",
            ));
        }
        let paths = config.key_sources().iter().filter_map(JwtKeys::path);
        let keys = Files::new(paths.map(PathBuf::from));
        let fetchers = config
            .key_sources()
            .iter()
            .filter_map(|source| match source {
                JwtKeys::JwksUrl(set) => Some(Fetched::new(set.clone())),
                _ => None,
            });
        let fetchers = fetchers.collect::<Result<Vec<_>, _>>()?;
        let policy = Policy {
            tokens: Arc::default(),
            rules: Arc::default(),
            keys: Arc::default(),
            fetched: vec![Arc::default(); fetchers.len()],
            verifier: tls.and_then(Tls::verifier),
        };
        let identity = Self {
            tokens: Files::new(config.tokens.clone()),
            rules: Files::new(config.rules_file.clone()),
            keys,
            fetchers,
            policy: watch::Sender::new(Arc::new(policy)),
            config,
        };
        identity.reload(true).into_iter().try_for_each(Err)?;
        if identity.policy().rules.is_empty() && identity.config.jwt.is_none() {
            tracing::warn!("there is no rule: nobody may do anything");
        }
        Ok(Some(Arc::new(identity)))
    }

    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.borrow())
    }

    fn amend(&self, change: impl FnOnce(&mut Policy)) {
        self.policy.send_modify(|policy| {
            let mut new = Policy::clone(policy);
            change(&mut new);
            *policy = Arc::new(new);
        });
    }

    /// Reads again what has changed, or in any case with `anyway`. Each file that cannot be used leaves what
    /// was there, and is no reason to leave the others.
    pub(crate) fn reload(&self, anyway: bool) -> Vec<SecurityError> {
        let parts = [
            self.reload_tokens(anyway),
            self.reload_rules(anyway),
            self.reload_keys(anyway),
        ];
        parts.into_iter().filter_map(Result::err).collect()
    }

    fn reload_tokens(&self, anyway: bool) -> Result<(), SecurityError> {
        let (Some(path), Some(contents)) = (&self.config.tokens, self.tokens.read(anyway)) else {
            return Ok(());
        };
        let tokens = Tokens::parse(&contents?.concat());
        let tokens = tokens.map_err(|problem| SecurityError::invalid(path, problem))?;
        self.amend(|policy| policy.tokens = Arc::new(tokens));
        Ok(())
    }

    fn reload_rules(&self, anyway: bool) -> Result<(), SecurityError> {
        let rules = self.config.rules.clone();
        let Some(contents) = self.rules.read(anyway) else {
            return Ok(());
        };
        let rules = match &self.config.rules_file {
            None => Rules::from(rules),
            Some(path) => Rules::parse(&contents?.concat(), rules)
                .map_err(|problem| SecurityError::invalid(path, problem))?,
        };
        self.amend(|policy| policy.rules = Arc::new(rules));
        Ok(())
    }

    fn reload_keys(&self, anyway: bool) -> Result<(), SecurityError> {
        let Some(contents) = self.keys.read(anyway) else {
            return Ok(());
        };
        let sources = self.config.key_sources().iter();
        let files = sources.filter(|source| source.path().is_some());
        let mut keys = Keys::default();
        for (source, content) in files.zip(contents?) {
            keys.extend(&source.parse(&content)?);
        }
        self.amend(|policy| policy.keys = Arc::new(keys));
        Ok(())
    }

    /// Takes over who vouches for clients now.
    pub(crate) fn set_verifier(&self, verifier: Option<Arc<dyn ClientCertVerifier>>) {
        self.amend(|policy| policy.verifier = verifier);
    }

    /// Fetches the key sets whose last look is older than `age` says. Returns whether any was looked at.
    pub(crate) async fn fetch(&self, age: impl Fn(&Fetcher) -> Duration) -> bool {
        let mut has_looked = false;
        for (i, fetched) in self.fetchers.iter().enumerate() {
            let mut last = fetched.last.lock().await;
            let age = age(&fetched.fetcher);
            if last.is_some_and(|last| last.elapsed() < age) {
                continue;
            }
            *last = Some(Instant::now());
            has_looked = true;
            match fetched.fetcher.fetch().await {
                Ok(keys) => self.take_over(i, keys),
                Err(error) => tracing::error!(%error, "cannot fetch keys; those from before stay"),
            }
        }
        has_looked
    }

    fn take_over(&self, i: usize, keys: Keys) {
        if self.policy().fetched[i].fingerprints() != keys.fingerprints() {
            self.amend(|policy| policy.fetched[i] = Arc::new(keys));
        }
    }

    /// Whom the token with this hash names.
    async fn admit_token(self: &Arc<Self>, token: &str, hash: Digest) -> Result<Admitted, Status> {
        let policy = self.policy();
        if let Some(principal) = policy.tokens.principal(&hash) {
            return Ok(self.admit(Arc::clone(principal), Credential::Token(hash), None, None));
        }
        let Some(jwt) = &self.config.jwt else {
            return Err(invalid());
        };
        let mut verified = jwt.verify(&policy.all_keys(), token);
        if matches!(verified, Err(Refused::UnknownKey)) && !self.fetchers.is_empty() {
            // Somebody else may have had them fetched meanwhile.
            self.fetch(|set| set.config().unknown_key_interval).await;
            verified = jwt.verify(&self.policy().all_keys(), token);
        }
        match verified {
            Ok(Verified {
                principal,
                expires,
                rights,
                key,
            }) => Ok(self.admit(principal, Credential::Jwt(key), Some(expires), rights)),
            Err(Refused::Expired) => {
                Err(Reason::CredentialsExpired.status("the token has expired; get a new one"))
            }
            Err(Refused::UnknownKey | Refused::Invalid) => Err(invalid()),
        }
    }

    /// Whom a certificate that was found good names. `None` if it names nobody.
    fn admit_certificate(self: &Arc<Self>, certificates: Certificates) -> Option<Admitted> {
        let (_, certificate) = X509Certificate::from_der(certificates.first()?).ok()?;
        let principal = named_by(&certificate)?;
        let end = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end));
        Some(self.admit(principal, Credential::Certificate(certificates), end, None))
    }

    fn admit(
        self: &Arc<Self>,
        principal: Arc<str>,
        credential: Credential,
        expires: Option<SystemTime>,
        claimed: Option<Rights>,
    ) -> Admitted {
        let policy = self.policy();
        let standing = Standing::new(policy, &principal, &credential, claimed.as_ref());
        let session = Arc::new(Session {
            identity: Arc::clone(self),
            principal,
            credential,
            expires,
            claimed,
            standing: Mutex::new(Arc::new(standing)),
        });
        Admitted {
            access: Access::new(Arc::<Session>::clone(&session)),
            session,
        }
    }
}

impl Policy {
    fn all_keys(&self) -> Keys {
        let mut keys = Keys::clone(&self.keys);
        self.fetched.iter().for_each(|fetched| keys.extend(fetched));
        keys
    }

    fn accepts(&self, credential: &Credential, principal: &str) -> bool {
        match credential {
            Credential::Token(hash) => {
                let owner = self.tokens.principal(hash);
                owner.is_some_and(|owner| **owner == *principal)
            }
            Credential::Jwt(key) => {
                let mut sets = self.fetched.iter().chain([&self.keys]);
                sets.any(|keys| keys.has(key))
            }
            Credential::Certificate(certificates) => self.vouches_for(certificates),
        }
    }

    fn vouches_for(&self, certificates: &[CertificateDer<'_>]) -> bool {
        let (Some(verifier), [own, others @ ..]) = (&self.verifier, certificates) else {
            return false;
        };
        let verified = verifier.verify_client_cert(own, others, UnixTime::now());
        verified.is_ok()
    }
}

impl Fetched {
    fn new(config: crate::jwt::JwksUrl) -> Result<Self, SecurityError> {
        Ok(Self {
            fetcher: Fetcher::new(config)?,
            last: tokio::sync::Mutex::default(),
        })
    }
}

/// What every bad credential is told: what is wrong with it is of use to attackers only.
fn invalid() -> Status {
    Reason::CredentialsInvalid.status("the credentials are not accepted")
}

/// The principal that a certificate names: its first URI or DNS name, else its common name.
fn named_by(certificate: &X509Certificate<'_>) -> Option<Arc<str>> {
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

// ===== impl Caller =====

impl Caller {
    /// The client of a connection, on which it showed `certificates`, which were found good.
    pub(crate) fn new(identity: Arc<Identity>, certificates: Option<Certificates>) -> Self {
        let by_certificate = certificates.and_then(|shown| identity.admit_certificate(shown));
        Self {
            identity,
            by_certificate,
            last: Mutex::default(),
        }
    }

    /// On whose behalf a call with these headers is made.
    ///
    /// # Errors
    /// The status to answer with when there are no credentials, or they are not accepted. A bad token is not
    /// made up for by a good certificate.
    pub(crate) async fn identify(&self, headers: &HeaderMap) -> Result<Admitted, Status> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let Some(header) = given.next() else {
            return self.by_certificate();
        };
        let token = header.to_str().ok().and_then(bearer);
        let token = token.filter(|token| token.len() <= MAX_TOKEN_BYTES);
        let (Some(token), None) = (token, given.next()) else {
            return Err(invalid());
        };
        let hash = digest(token.as_bytes());
        if let Some(admitted) = self.remembered(&hash) {
            return Ok(admitted);
        }
        let admitted = self.identity.admit_token(token, hash).await?;
        *self.last() = Some((hash, admitted.clone()));
        Ok(admitted)
    }

    fn by_certificate(&self) -> Result<Admitted, Status> {
        let admitted = self.by_certificate.clone().ok_or_else(|| {
            Reason::CredentialsMissing.status(
                "the call has no credentials; send a token as `authorization: Bearer TOKEN`",
            )
        })?;
        match admitted.access.ended() {
            None => Ok(admitted),
            Some(CloseReason::CredentialsExpired) => Err(Reason::CredentialsExpired
                .status("the certificate of this connection has expired; connect with a new one")),
            Some(_) => Err(invalid()),
        }
    }

    /// What the last token gave, if it is the same and still accepted.
    fn remembered(&self, hash: &Digest) -> Option<Admitted> {
        let last = self.last();
        let (last_hash, admitted) = last.as_ref()?;
        let is_same = bool::from(last_hash.ct_eq(hash));
        let admitted = is_same.then(|| admitted.clone())?;
        admitted.access.ended().is_none().then_some(admitted)
    }

    fn last(&self) -> MutexGuard<'_, Option<(Digest, Admitted)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The token of `Bearer TOKEN` (RFC 6750, section 2.1).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    let token = token.trim_start_matches(' ');
    (is_bearer && !token.is_empty()).then_some(token)
}

impl Admitted {
    /// Whether the principal may do what is neither publishing nor subscribing.
    pub(crate) fn may_administer(&self) -> bool {
        self.session.standing().rights.may_administer()
    }
}

// ===== impl Session =====

impl Session {
    fn standing(&self) -> Arc<Standing> {
        let policy = self.identity.policy();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&standing.policy, &policy) {
            let claimed = self.claimed.as_ref();
            *standing = Arc::new(Standing::new(
                policy,
                &self.principal,
                &self.credential,
                claimed,
            ));
        }
        Arc::clone(&standing)
    }
}

impl Standing {
    fn new(
        policy: Arc<Policy>,
        principal: &str,
        credential: &Credential,
        claimed: Option<&Rights>,
    ) -> Self {
        let mut rights = policy.rules.rights_of(principal);
        if let Some(claimed) = claimed {
            rights.extend(claimed);
        }
        Self {
            is_accepted: policy.accepts(credential, principal),
            rights,
            policy,
        }
    }
}

impl Authority for Session {
    fn principal(&self) -> &Arc<str> {
        &self.principal
    }

    fn may_publish(&self, topic: &Topic) -> bool {
        self.standing().rights.may_publish(topic)
    }

    fn may_subscribe(&self, filter: &Filter) -> bool {
        self.standing().rights.may_subscribe(filter)
    }

    fn may_be_client(&self, id: &ClientId) -> bool {
        self.standing().rights.may_be_client(&self.principal, id)
    }

    fn ended(&self) -> Option<CloseReason> {
        if self.expires.is_some_and(|end| end <= SystemTime::now()) {
            return Some(CloseReason::CredentialsExpired);
        }
        (!self.standing().is_accepted).then_some(CloseReason::CredentialsRevoked)
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut policy = self.identity.policy.subscribe();
        let expires = self.expires;
        Box::pin(async move {
            tokio::select! {
                // The session holds the sender, so there is no other end to it than a change.
                _ = policy.changed() => {}
                () = until(expires) => {}
            }
        })
    }
}

/// Waits for a time by the wall clock.
async fn until(time: Option<SystemTime>) {
    let Some(time) = time else {
        return std::future::pending().await;
    };
    while let Ok(left) = time.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        sleep(left.min(CLOCK_CHECK)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_follows_bearer() {
        for header in ["Bearer abc", "bearer abc", "BEARER  abc"] {
            assert_eq!(bearer(header), Some("abc"), "{header}");
        }
        for bad in ["", "abc", "Bearer", "Bearer ", "Basic abc", "Bearerabc"] {
            assert_eq!(bearer(bad), None, "{bad}");
        }
    }
}

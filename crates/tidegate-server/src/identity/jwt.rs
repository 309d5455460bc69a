//! JSON Web Tokens: their keys and their claims.
//!
//! # The key decides
//! Each key has one algorithm, which follows from its kind: HS256 for a secret, RS256 for an RSA key, ES256 for a P-256
//! key, EdDSA for an Ed25519 key. A token whose header names another algorithm is refused, so a public key is never
//! used as a secret, and `none` is never accepted (RFC 8725, section 3.1). Keys and addresses of keys in a header
//! (`jwk`, `jku`, `x5u`) are ignored. A header with `crit` is refused.
//!
//! # Claims
//! A token needs `iss` and `aud` as configured, `exp`, and the principal as `sub`. `nbf` is enforced if it is there.
//! Times need not be whole seconds.
//! The claim `tidegate` may grant rights, in the form of a [rule](crate::Rule) without principals: `{"publish":
//! {"allow": [], "deny": []}, "subscribe": {"allow": []}, "admin": false}`.

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, crypto,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use x509_parser::{
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
    },
    prelude::FromDer as _,
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

use super::{
    refusal::{Cause, quoted},
    rules::Rights,
    token::{ClaimError, Expected, Token},
};
use crate::{
    digest::{Digest, digest},
    files::SecurityError,
    network::pem,
    text,
};

/// The least bits of a key of RSA: the cryptography verifies with no shorter one.
const MIN_RSA_BITS: usize = 2_048;

/// The most keys of a set without a usable one that a message describes.
const MAX_SHOWN_KEYS: usize = 4;

/// The least bytes of a secret for HS256 (RFC 7518, section 3.2).
const MIN_SECRET_BYTES: usize = 32;

/// The JSON Web Tokens that are accepted.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// The keys that tokens may be signed with. No default: at least one.
    pub keys: Vec<JwtKeys>,
    /// The issuer that tokens must name, as the claim `iss`. No default.
    pub issuer: String,
    /// The audience that tokens must name, as the claim `aud`. No default.
    pub audience: String,
    /// The most that the issuer's clock may differ from this one. A token is accepted for this long after its expiry.
    /// Default: 5 s.
    pub leeway: Duration,
}

/// A source of keys for JSON Web Tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JwtKeys {
    /// A public key in PEM (`PUBLIC KEY`): RSA, P-256 or Ed25519.
    Pem(PathBuf),
    /// A shared secret for HS256: the bytes of a file, at least 32, without a newline at the end.
    Secret(PathBuf),
    /// A JSON Web Key Set in a file. Keys of other kinds are skipped.
    JwksFile(PathBuf),
    /// A JSON Web Key Set at an address.
    JwksUrl(JwksUrl),
}

/// A JSON Web Key Set at an address. While it cannot be fetched, the keys of the last fetch stay in force for
/// [`max_age`](Self::max_age). Secrets, and keys of kinds that the server does not use, are skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwksUrl {
    /// The address: `https`, or `http` on a loopback address. Redirects are not followed. No default.
    pub url: String,
    /// The time from one fetch to the next. Default: 5 min.
    pub refresh_interval: Duration,
    /// The least time from one fetch to the next when a token names an unknown key. Default: 10 s.
    pub unknown_key_interval: Duration,
    /// The time for which keys are trusted after the last fetch that succeeded: a key that its issuer has withdrawn
    /// must not stay good forever because the set cannot be fetched. `None` is forever. Default: 1 day.
    pub max_age: Option<Duration>,
    /// A file of the authorities, in PEM, that may sign the certificate of the address. `None` is those that the system
    /// trusts. Default: `None`.
    pub ca: Option<PathBuf>,
}

/// Keys that tokens may be signed with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys(Vec<Arc<Key>>);

/// A key and its one algorithm.
#[derive(Debug)]
struct Key {
    /// The name of the key in tokens, their `kid`. A key without a name is tried for every token.
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    /// The SHA-256 of the key, which tells it from other keys.
    fingerprint: Digest,
}

/// The claims of a verified token, and the key that signed it.
#[derive(Debug)]
pub(crate) struct VerifiedToken {
    pub(crate) principal: Arc<str>,
    /// Its expiry, with the leeway added.
    pub(crate) expires: SystemTime,
    /// The rights of its claim `tidegate`, if it has one.
    pub(crate) rights: Option<Rights>,
    /// The fingerprint of the key.
    pub(crate) key: Digest,
}

/// The error of a token that is not accepted.
#[derive(Debug)]
pub(crate) struct TokenError {
    pub(crate) kind: TokenErrorKind,
    /// For the log. The client is not told more than the kind, which would help attackers only.
    pub(crate) cause: Cause,
}

/// The answer that a token gets which is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenErrorKind {
    /// The token is good, but has expired.
    Expired,
    /// The token may be signed with a key that is not known.
    UnknownKey,
    /// Anything else.
    Invalid,
}

impl JwtConfig {
    /// Tokens of `issuer` for `audience`. Add the keys to [`keys`](Self::keys).
    #[must_use]
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        Self {
            keys: Vec::new(),
            issuer: issuer.into(),
            audience: audience.into(),
            leeway: Duration::from_secs(5),
        }
    }

    /// Verifies `token` with those of `keys` that may have signed it.
    pub(crate) fn verify(
        &self,
        keys: &Keys,
        token: &str,
        now: SystemTime,
    ) -> Result<VerifiedToken, TokenError> {
        let invalid = TokenError::of(TokenErrorKind::Invalid);
        let token = Token::parse(token).map_err(invalid)?;
        let key = keys.signer_of(&token)?;
        let expected = Expected {
            issuer: &self.issuer,
            audience: &self.audience,
            leeway: self.leeway,
            now,
        };
        let claims = token.claims(&expected).map_err(|error| match error {
            ClaimError::Expired(cause) => TokenError::of(TokenErrorKind::Expired)(cause),
            ClaimError::Invalid(cause) => invalid(cause),
        })?;
        Ok(VerifiedToken {
            principal: claims.principal.into(),
            expires: claims.expires,
            rights: claims.rights,
            key: key.fingerprint,
        })
    }
}

impl TokenError {
    fn of(kind: TokenErrorKind) -> impl Fn(Cause) -> Self + Copy {
        move |cause| Self { kind, cause }
    }
}

impl JwksUrl {
    /// The key set at `url`, with the default of every other field.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            refresh_interval: Duration::from_secs(5 * 60),
            unknown_key_interval: Duration::from_secs(10),
            max_age: Some(Duration::from_secs(24 * 3600)),
            ca: None,
        }
    }
}

impl JwtKeys {
    /// The path of the file. `None` for an address.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Pem(path) | Self::Secret(path) | Self::JwksFile(path) => Some(path),
            Self::JwksUrl(_) => None,
        }
    }

    /// Parses the keys in `content`.
    pub(crate) fn parse(&self, content: &[u8]) -> Result<Keys, SecurityError> {
        let (path, keys) = match self {
            Self::Pem(path) => {
                let der = pem::public_key(path, content)?;
                (&**path, Key::from_pem(content, &der).map(Keys::one))
            }
            Self::Secret(path) => (&**path, Key::from_secret(content).map(Keys::one)),
            Self::JwksFile(path) => (&**path, Keys::from_set(content, true)),
            Self::JwksUrl(set) => (Path::new(&set.url), Keys::from_set(content, false)),
        };
        keys.map_err(|problem| SecurityError::invalid(path, problem))
    }
}

// ===== impl Keys =====

impl Keys {
    fn one(key: Key) -> Self {
        Self(vec![Arc::new(key)])
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has(&self, fingerprint: &Digest) -> bool {
        self.0.iter().any(|key| key.fingerprint == *fingerprint)
    }

    pub(crate) fn fingerprints(&self) -> HashSet<Digest> {
        self.0.iter().map(|key| key.fingerprint).collect()
    }

    /// The keys that may have signed a token whose header names `id`.
    fn named<'a>(&'a self, id: Option<&str>) -> impl Iterator<Item = &'a Key> {
        let keys = self.0.iter().map(|key| &**key);
        keys.filter(move |key| id.is_none() || key.id.is_none() || key.id.as_deref() == id)
    }

    /// The key that signed a token.
    ///
    /// # Errors
    /// When none of these has. With a name, or without any key here, another fetch may bring the key.
    fn signer_of(&self, token: &Token<'_>) -> Result<&Key, TokenError> {
        let id = token.key.as_deref();
        let (mut tried, mut others) = (0, BTreeSet::new());
        let mut kind = match id.is_some() || self.is_empty() {
            true => TokenErrorKind::UnknownKey,
            false => TokenErrorKind::Invalid,
        };
        for key in self.named(id) {
            // The algorithm is that of the key, never that of the header.
            let names = names_of(key.algorithm);
            if names.contains(&&token.algorithm[..]) {
                tried += 1;
                let (signature, signed) = (token.signature, token.signed.as_bytes());
                // An error is a signature that is not in base64url.
                if crypto::verify(signature, signed, &key.key, key.algorithm).unwrap_or(false) {
                    return Ok(key);
                }
            } else {
                others.insert(names[0]);
            }
            // A key without a name may not be the one that the token names.
            if key.id.is_some() {
                kind = TokenErrorKind::Invalid;
            }
        }
        let named = id.map(|id| format!(" with the name {}", quoted(id)));
        let named = named.unwrap_or_default();
        let cause = match (tried, others.is_empty()) {
            (0, true) => Cause::new("unknown_key", format!("the server has no key{named}")),
            (0, false) => {
                let (algorithm, others) = (quoted(&token.algorithm), Vec::from_iter(others));
                Cause::new(
                    "algorithm",
                    format!(
                        "its header says {algorithm}, and the server's keys{named} are for {}",
                        others.join(" and ")
                    ),
                )
            }
            _ => Cause::new(
                "signature",
                format!("none of the server's keys{named} has signed it"),
            ),
        };
        Err(TokenError { kind, cause })
    }

    /// Parses a JSON Web Key Set. Entries that are not keys for signatures, of a kind that the server uses, are
    /// skipped.
    fn from_set(content: &[u8], with_secrets: bool) -> Result<Self, String> {
        // Editors and some servers put a mark there, which JSON does not have.
        let content = text::without_mark(content)?;
        let set: serde_json::Value = serde_json::from_slice(content)
            .map_err(|error| format!("not a JSON Web Key Set: {error}"))?;
        let Some(written) = set.get("keys").and_then(|keys| keys.as_array()) else {
            return Err(no_keys(&set));
        };
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for key in written {
            let parsed = serde_json::from_value(key.clone()).ok();
            let parsed = parsed.and_then(|key| Key::from_jwk(&key));
            match parsed.filter(|key| with_secrets || key.algorithm != Algorithm::HS256) {
                Some(key) => keys.push(Arc::new(key)),
                None => skipped.push(described_key(key)),
            }
        }
        if !keys.is_empty() {
            if !skipped.is_empty() {
                tracing::debug!(
                    used = keys.len(),
                    skipped = skipped.len(),
                    first_skipped = skipped[0],
                    "a key set has keys of kinds that the server does not use"
                );
            }
            return Ok(Self(keys));
        }
        let shown = &skipped[..skipped.len().min(MAX_SHOWN_KEYS)];
        let more = skipped.len() - shown.len();
        let what = match (shown.is_empty(), more) {
            (true, _) => "it has none at all".into(),
            (false, 0) => format!("it has: {}", shown.join("; ")),
            (false, more) => format!("it has: {}; and {more} more", shown.join("; ")),
        };
        Err(format!("contains no key for RS256, ES256 or EdDSA; {what}"))
    }
}

/// The words for JSON that is no key set.
fn no_keys(set: &serde_json::Value) -> String {
    match set.get("jwks_uri").and_then(|address| address.as_str()) {
        // Both addresses are on the same page of an issuer's manual.
        Some(address) => format!(
            "the configuration of an issuer, and not its key set; set the address that it gives: {}",
            quoted(address)
        ),
        None => "not a JSON Web Key Set: it has no list `keys`".into(),
    }
}

/// The kind of a key in a set, for a message.
fn described_key(key: &serde_json::Value) -> String {
    let parts = ["kty", "crv", "alg", "use"].into_iter().filter_map(|name| {
        let value = key.get(name)?.as_str()?;
        Some(format!("{name} {}", quoted(value)))
    });
    let parts: Vec<_> = parts.collect();
    match parts.is_empty() {
        true => "one without a kind".into(),
        false => parts.join(" "),
    }
}

impl Key {
    fn from_secret(content: &[u8]) -> Result<Self, String> {
        // A secret is any bytes, but hardly these, which the other side of the secret will not have.
        if text::has_mark(content) {
            return Err(
                "begins with a byte order mark, which would be part of the secret: save it without one"
                    .into(),
            );
        }
        // Whoever has the public key could sign with it.
        if content.trim_ascii_start().starts_with(b"-----BEGIN ") {
            return Err(
                "is PEM, and no secret: a public key goes into `auth.jwt.public_keys`, and a secret is random bytes, such as \
                 `openssl rand -base64 32` makes them"
                    .into(),
            );
        }
        let secret = content.strip_suffix(b"\n").unwrap_or(content);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if secret.len() < MIN_SECRET_BYTES {
            return Err(format!(
                "a secret needs at least {MIN_SECRET_BYTES} bytes; generate it at random"
            ));
        }
        Ok(Self {
            id: None,
            algorithm: Algorithm::HS256,
            key: DecodingKey::from_secret(secret),
            fingerprint: digest(secret),
        })
    }

    /// The key of a file, and of what is in it in DER.
    fn from_pem(content: &[u8], der: &[u8]) -> Result<Self, String> {
        let expected = "must be a public key of RSA with at least 2048 bits, P-256 or Ed25519";
        let content = text::without_mark(content)?;
        let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| expected)?;
        // The signatures of a shorter one would all be refused.
        if let Ok(PublicKey::RSA(key)) = info.parsed()
            && key.key_size() < MIN_RSA_BITS
        {
            return Err(format!("{expected}, and has {} bits", key.key_size()));
        }
        let curve = info.algorithm.parameters.as_ref();
        let curve = curve.and_then(|parameters| parameters.as_oid().ok());
        let kind = &info.algorithm.algorithm;
        let (algorithm, key) = if *kind == OID_PKCS1_RSAENCRYPTION {
            (Algorithm::RS256, DecodingKey::from_rsa_pem(content))
        } else if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256) {
            (Algorithm::ES256, DecodingKey::from_ec_pem(content))
        } else if *kind == OID_SIG_ED25519 {
            (Algorithm::EdDSA, DecodingKey::from_ed_pem(content))
        } else {
            return Err(format!("{expected}, not {kind}"));
        };
        Ok(Self {
            id: None,
            algorithm,
            key: key.map_err(|error| error.to_string())?,
            fingerprint: digest(der),
        })
    }

    fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
            _ => return None,
        };
        let common = &jwk.common;
        let is_for_signatures = !matches!(common.public_key_use, Some(PublicKeyUse::Encryption));
        let said = common.key_algorithm;
        let is_for_algorithm = said.is_none_or(|said| said == name_of(algorithm));
        if !(is_for_signatures && is_for_algorithm) {
            return None;
        }
        let key = DecodingKey::from_jwk(jwk).ok()?;
        let is_weak = algorithm == Algorithm::HS256
            && key
                .try_get_as_bytes()
                .is_ok_and(|secret| secret.len() < MIN_SECRET_BYTES);
        (!is_weak).then_some(())?;
        Some(Self {
            id: common.key_id.clone(),
            algorithm,
            key,
            fingerprint: digest(&serde_json::to_vec(&jwk.algorithm).ok()?),
        })
    }
}

/// The names of an algorithm in the header of a token.
fn names_of(algorithm: Algorithm) -> &'static [&'static str] {
    match algorithm {
        Algorithm::RS256 => &["RS256"],
        Algorithm::ES256 => &["ES256"],
        // The second is the name since RFC 9864.
        Algorithm::EdDSA => &["EdDSA", "Ed25519"],
        _ => &["HS256"],
    }
}

/// The name of an algorithm in a key set.
fn name_of(algorithm: Algorithm) -> KeyAlgorithm {
    match algorithm {
        Algorithm::RS256 => KeyAlgorithm::RS256,
        Algorithm::ES256 => KeyAlgorithm::ES256,
        Algorithm::EdDSA => KeyAlgorithm::EdDSA,
        _ => KeyAlgorithm::HS256,
    }
}

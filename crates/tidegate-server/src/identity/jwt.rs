//! JSON Web Tokens: who signed them, and what they say.
//!
//! # The key decides
//! Each key has one algorithm, which follows from what kind of key it is: a secret is for HS256, an RSA key for
//! RS256, a P-256 key for ES256, an Ed25519 key for EdDSA. A token whose header names another is refused, so a
//! public key is never taken for a secret, and `none` for nothing (RFC 8725, section 3.1). What a header says
//! about where to find a key (`jku`, `x5u`, `jwk`) is not read.
//!
//! # What a token must say
//! `iss` and `aud` as configured, `exp`, and as `sub` the principal. `nbf` is kept to if it is there. The claim
//! `tidegate` may grant rights, in the form of a [rule](crate::Rule) without principals:
//! `{"publish": {"allow": [], "deny": []}, "subscribe": {"allow": []}, "admin": false}`.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use x509_parser::{
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
    },
    pem::Pem,
    prelude::FromDer as _,
    x509::SubjectPublicKeyInfo,
};

use super::rules::Rights;
use crate::{
    digest::{Digest, digest},
    files::SecurityError,
};

/// Fewer bytes make no secret for HS256 (RFC 7518, section 3.2).
const MIN_SECRET_BYTES: usize = 32;

/// What JSON Web Tokens are accepted.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// Where the keys are that tokens may be signed with. No default: at least one.
    pub keys: Vec<JwtKeys>,
    /// Who must have issued them: the claim `iss`. No default.
    pub issuer: String,
    /// For whom they must be: the claim `aud`. No default.
    pub audience: String,
    /// How far the issuer's clock may be from this one. A token is accepted for so long after its end.
    /// Default: 5 s.
    pub leeway: Duration,
}

/// Where keys for JSON Web Tokens are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JwtKeys {
    /// A public key in PEM (`PUBLIC KEY`): RSA, P-256 or Ed25519.
    Pem(PathBuf),
    /// A shared secret for HS256: the bytes of the file, 32 or more, without the end of its last line.
    Secret(PathBuf),
    /// A JSON Web Key Set in a file. Keys of other kinds in it are left out.
    JwksFile(PathBuf),
    /// A JSON Web Key Set at an address.
    JwksUrl(JwksUrl),
}

/// A JSON Web Key Set at an address. While it cannot be had, the keys it had last stay for as long as they are trusted.
/// Secrets in it are left out, as are keys of kinds that are not known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwksUrl {
    /// Its address, which no token can change: `https`, or `http` on this machine. No default.
    pub url: String,
    /// How long after one look at it the next is taken. Default: 5 min.
    pub refresh_interval: Duration,
    /// A token of an unknown key has it looked at, too, but only so long after the last look. Default: 10 s.
    pub unknown_key_interval: Duration,
    /// How long its keys are trusted after they were fetched last: a key that its issuer withdrew must not be good
    /// forever where the set cannot be had. `None` is forever. Default: 1 day.
    pub max_age: Option<Duration>,
    /// Certificates in PEM of those who may vouch for it, in place of those that the system trusts.
    /// Default: `None`.
    pub ca: Option<PathBuf>,
}

/// Keys that tokens may be signed with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys(Vec<Arc<Key>>);

#[derive(Debug)]
struct Key {
    /// The name that tokens have for it. One without a name is tried for all tokens.
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    /// Tells it from others.
    fingerprint: Digest,
}

/// What a token said, and which key says that it did.
#[derive(Debug)]
pub(crate) struct VerifiedToken {
    pub(crate) principal: Arc<str>,
    pub(crate) expires: SystemTime,
    pub(crate) rights: Option<Rights>,
    pub(crate) key: Digest,
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenError {
    /// It is good, but for its age.
    Expired,
    /// It names a key that is not known.
    UnknownKey,
    /// Anything else. Which, is of use to attackers only; the log has it.
    Invalid,
}

#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    tidegate: Option<Rights>,
}

impl JwtConfig {
    /// Tokens of `issuer` for `audience`, without keys yet.
    #[must_use]
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        Self {
            keys: Vec::new(),
            issuer: issuer.into(),
            audience: audience.into(),
            leeway: Duration::from_secs(5),
        }
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = self.leeway.as_secs();
        validation
    }

    /// Checks `token` against those of `keys` that it may be signed with.
    pub(crate) fn verify(&self, keys: &Keys, token: &str) -> Result<VerifiedToken, TokenError> {
        let header = decode_header(token).map_err(|_| TokenError::Invalid)?;
        let mut refused = match header.kid.is_some() || keys.0.is_empty() {
            true => TokenError::UnknownKey,
            false => TokenError::Invalid,
        };
        for key in keys.named(header.kid.as_deref()) {
            match decode::<Claims>(token, &key.key, &self.validation(key.algorithm)) {
                Ok(token) => return self.accept(token.claims, key),
                Err(error) => {
                    tracing::debug!(%error, "a token was refused");
                    refused = match error.kind() {
                        ErrorKind::ExpiredSignature => return Err(TokenError::Expired),
                        // A key without a name may not be the one that the token names.
                        _ if key.id.is_none() && refused == TokenError::UnknownKey => refused,
                        _ => TokenError::Invalid,
                    };
                }
            }
        }
        Err(refused)
    }

    fn accept(&self, claims: Claims, key: &Key) -> Result<VerifiedToken, TokenError> {
        let end = Duration::from_secs(claims.exp).checked_add(self.leeway);
        let expires = end.and_then(|end| SystemTime::UNIX_EPOCH.checked_add(end));
        if claims.sub.is_empty() {
            return Err(TokenError::Invalid);
        }
        Ok(VerifiedToken {
            principal: claims.sub.into(),
            expires: expires.ok_or(TokenError::Invalid)?,
            rights: claims.tidegate,
            key: key.fingerprint,
        })
    }
}

impl JwksUrl {
    /// The key set at `url`, with default intervals.
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
    /// Its file, if it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Pem(path) | Self::Secret(path) | Self::JwksFile(path) => Some(path),
            Self::JwksUrl(_) => None,
        }
    }

    /// Makes keys of what is in the file.
    pub(crate) fn parse(&self, content: &[u8]) -> Result<Keys, SecurityError> {
        let keys = match self {
            Self::Pem(_) => Key::from_pem(content).map(Keys::one),
            Self::Secret(_) => Key::from_secret(content).map(Keys::one),
            Self::JwksFile(_) => Keys::from_set(content, true),
            Self::JwksUrl(_) => Keys::from_set(content, false),
        };
        let path = match self {
            Self::JwksUrl(set) => Path::new(&set.url),
            file => file.path().unwrap_or(Path::new("")),
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

    /// The keys that a token may be signed with whose header names `id`.
    fn named<'a>(&'a self, id: Option<&'a str>) -> impl Iterator<Item = &'a Key> {
        let keys = self.0.iter().map(|key| &**key);
        keys.filter(move |key| id.is_none() || key.id.is_none() || key.id.as_deref() == id)
    }

    /// Reads a JSON Web Key Set. What is no key for signatures of a known kind is left out.
    fn from_set(content: &[u8], with_secrets: bool) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(content)
            .map_err(|error| format!("it is no JSON Web Key Set: {error}"))?;
        let keys = set.keys.into_iter();
        let keys = keys.filter_map(|key| Key::from_jwk(&serde_json::from_value(key).ok()?));
        let keys = keys.filter(|key| with_secrets || key.algorithm != Algorithm::HS256);
        let keys = Self(keys.map(Arc::new).collect());
        if keys.0.is_empty() {
            return Err("it has no key for RS256, ES256 or EdDSA in it".into());
        }
        Ok(keys)
    }
}

impl Key {
    fn from_secret(content: &[u8]) -> Result<Self, String> {
        let secret = content.strip_suffix(b"\n").unwrap_or(content);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if secret.len() < MIN_SECRET_BYTES {
            return Err(format!(
                "a secret needs {MIN_SECRET_BYTES} bytes or more; make it at random"
            ));
        }
        Ok(Self {
            id: None,
            algorithm: Algorithm::HS256,
            key: DecodingKey::from_secret(secret),
            fingerprint: digest(secret),
        })
    }

    fn from_pem(content: &[u8]) -> Result<Self, String> {
        let expected = "it must be one public key in PEM: RSA, P-256 or Ed25519";
        let pem = Pem::iter_from_buffer(content).next();
        let pem = pem.and_then(Result::ok).ok_or(expected)?;
        if pem.label != "PUBLIC KEY" {
            return Err(format!("{expected}, not `{}`", pem.label));
        }
        let (_, info) = SubjectPublicKeyInfo::from_der(&pem.contents).map_err(|_| expected)?;
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
            fingerprint: digest(&pem.contents),
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

/// How a key set names one of the algorithms that are known here.
fn name_of(algorithm: Algorithm) -> KeyAlgorithm {
    match algorithm {
        Algorithm::RS256 => KeyAlgorithm::RS256,
        Algorithm::ES256 => KeyAlgorithm::ES256,
        Algorithm::EdDSA => KeyAlgorithm::EdDSA,
        _ => KeyAlgorithm::HS256,
    }
}

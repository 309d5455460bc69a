//! Identity over real sockets: methods and credentials, rules, expiry and withdrawal, keys, quotas of principals, and
//! the start of a server. This file has the helpers that they share.

mod expiry_and_withdrawal;
mod keys;
mod methods;
mod quotas;
mod rules;
mod startup;
mod tokens;

use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, crypto, encode};
use rcgen::{KeyPair, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData as _, RsaKeySize};
use serde_json::{Value, json};
use tidegate_server::{AuthConfig, JwtConfig, JwtKeys, QuotaConfig, ServerConfig, token_line};

use crate::{
    common::Running,
    pki::{Bearer, Folder},
};

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "tidegate";

const RULES: &str = "
    [[rule]]
    principals = ['alice']
    publish = { allow = ['orders.>', '$client.alice'], deny = ['orders.secret'] }
    subscribe = { allow = ['orders.*', 'orders.*.>'] }
    admin = true

    [[rule]]
    principals = ['bob']
    publish = { allow = ['orders.>'] }
    subscribe = { allow = ['orders.>', '$client.alice'] }
";

/// A pair of keys and what they sign with.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    /// In PEM.
    public: String,
    pair: KeyPair,
}

impl Signer {
    fn p256() -> Self {
        let pair = KeyPair::generate().unwrap();
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self::new(Algorithm::ES256, key, pair)
    }

    fn ed25519() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let key = EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self::new(Algorithm::EdDSA, key, pair)
    }

    fn rsa() -> Self {
        let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self::new(Algorithm::RS256, key, pair)
    }

    fn new(algorithm: Algorithm, key: EncodingKey, pair: KeyPair) -> Self {
        Self {
            algorithm,
            key,
            public: pair.public_key_pem(),
            pair,
        }
    }

    fn sign(&self, claims: &Value) -> String {
        encode(&Header::new(self.algorithm), claims, &self.key).unwrap()
    }

    fn sign_as(&self, id: &str, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(id.into());
        encode(&header, claims, &self.key).unwrap()
    }

    /// A token of these very texts.
    fn sign_text(&self, header: &str, claims: &str) -> String {
        let signed = [header, claims]
            .map(|part| base64url(part.as_bytes()))
            .join(".");
        let signature = crypto::sign(signed.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{signed}.{signature}")
    }

    /// Its public key as a JSON Web Key. For P-256 only.
    fn jwk(&self, id: &str) -> Value {
        use jsonwebtoken::jwk::Jwk;
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(id.into());
        assert!(!self.pair.der_bytes().is_empty());
        serde_json::to_value(jwk).unwrap()
    }
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    now.as_secs() as i64 + seconds
}

/// The claims of a good token of `principal`, which grant it what alice's rules do.
fn claims(principal: &str) -> Value {
    json!({
        "sub": principal,
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": in_seconds(600),
        "tidegate": {
            "publish": { "allow": ["orders.>"] },
            "subscribe": { "allow": ["orders.>"] },
            "admin": true,
        },
    })
}

fn with(mut claims: Value, name: &str, value: impl Into<Value>) -> Value {
    claims[name] = value.into();
    claims
}

fn without(mut claims: Value, name: &str) -> Value {
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn jwt(keys: Vec<JwtKeys>) -> JwtConfig {
    JwtConfig {
        keys,
        leeway: Duration::ZERO,
        ..JwtConfig::new(ISSUER, AUDIENCE)
    }
}

/// The tokens `alice-token` of alice, and so on.
fn tokens(principals: &[&str]) -> String {
    let lines = principals
        .iter()
        .map(|name| token_line(name, &format!("{name}-token")).unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

fn auth(folder: &Folder, jwt: Option<JwtConfig>) -> AuthConfig {
    AuthConfig {
        tokens: Some(folder.write("tokens", tokens(&["alice", "bob", "carol"]))),
        rules_file: Some(folder.write("rules.toml", RULES)),
        jwt,
        ..AuthConfig::default()
    }
}

/// A server that looks at all bad credentials: tests try more than are looked at otherwise.
async fn start(auth: AuthConfig) -> Running {
    let quotas = QuotaConfig {
        address_auth_failures: None,
        ..QuotaConfig::default()
    };
    Running::start(ServerConfig {
        auth,
        quotas,
        ..ServerConfig::default()
    })
    .await
}

async fn bearer(server: &Running, token: &str) -> Bearer {
    Bearer::new(server.endpoint().connect().await.unwrap(), Some(token))
}

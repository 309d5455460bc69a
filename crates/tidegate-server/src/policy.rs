//! What answers depend on, at one moment.

use std::sync::Arc;

use rustls::{
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};

use crate::{
    authorisation::Rules,
    jwt::Keys,
    tls::Certificates,
    tokens::{Digest, Tokens},
};

/// All that answers depend on.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) rules: Arc<Rules>,
    /// Keys from files.
    pub(crate) keys: Arc<Keys>,
    /// Keys from addresses, in the order of the configuration.
    pub(crate) fetched: Vec<Arc<Keys>>,
    /// Who vouches for clients' certificates.
    pub(crate) verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// What proves who calls.
#[derive(Debug)]
pub(crate) enum Credential {
    /// A token that a file lists.
    Token(Digest),
    /// The key that signed a JSON Web Token.
    Jwt(Digest),
    Certificate(Certificates),
}

impl Policy {
    pub(crate) fn all_keys(&self) -> Keys {
        let mut keys = Keys::clone(&self.keys);
        self.fetched.iter().for_each(|fetched| keys.extend(fetched));
        keys
    }

    /// Whether the credential still is one of `principal`.
    pub(crate) fn accepts(&self, credential: &Credential, principal: &str) -> bool {
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

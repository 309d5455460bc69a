//! The policy in force, and how it is replaced.

use std::sync::Arc;

use rustls::{
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};
use tokio::sync::watch;

use super::{jwt::Keys, rules::Rules, tokens::Tokens};
use crate::{digest::Digest, network::tls::Certificates};

/// The policy in force, which is replaced as a whole.
// Sessions share the sender, not a receiver: `changed` of a receiver returns at once when the sender is gone, and a
// session that waits for a change would spin.
#[derive(Debug)]
pub(crate) struct Policies(watch::Sender<Arc<Policy>>);

/// Everything that the answer to a call depends on, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) rules: Arc<Rules>,
    /// Keys from files, for JSON Web Tokens.
    pub(crate) keys: Arc<Keys>,
    /// Keys from addresses, for JSON Web Tokens, in the order of the configuration.
    pub(crate) fetched: Vec<Arc<Keys>>,
    /// The verifier of clients' certificates. `None` if clients have none.
    pub(crate) verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// The credential that a session began with, as later policies are asked about it.
#[derive(Debug)]
pub(crate) enum Credential {
    /// The digest of a token that a file lists.
    Token(Digest),
    /// The fingerprint of the key that signed a JSON Web Token.
    Jwt(Digest),
    /// The certificates of the connection.
    Certificate(Certificates),
}

// ===== impl Policies =====

impl Policies {
    pub(crate) fn new(policy: Policy) -> Self {
        Self(watch::Sender::new(Arc::new(policy)))
    }

    /// The policy in force.
    pub(crate) fn current(&self) -> Arc<Policy> {
        Arc::clone(&self.0.borrow())
    }

    /// A watch that is told of every policy after the one in force.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Policy>> {
        self.0.subscribe()
    }

    /// Puts a changed copy of the policy in its place.
    pub(crate) fn amend(&self, change: impl FnOnce(&mut Policy)) {
        // Under the lock of the watch, so that of two changes at once neither is lost.
        self.0.send_modify(|policy| {
            let mut new = Policy::clone(policy);
            change(&mut new);
            *policy = Arc::new(new);
        });
    }
}

// ===== impl Policy =====

impl Policy {
    /// All keys that JSON Web Tokens may be signed with.
    pub(crate) fn all_keys(&self) -> Keys {
        let mut keys = Keys::clone(&self.keys);
        self.fetched.iter().for_each(|fetched| keys.extend(fetched));
        keys
    }

    /// Whether the credential is accepted, and is one of `principal`.
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

    /// Whether the certificates are signed by an authority in force, are valid now and not revoked.
    fn vouches_for(&self, certificates: &[CertificateDer<'_>]) -> bool {
        let (Some(verifier), [own, others @ ..]) = (&self.verifier, certificates) else {
            return false;
        };
        let verified = verifier.verify_client_cert(own, others, UnixTime::now());
        verified.is_ok()
    }
}

//! The client at the other end of a connection, and its credentials.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use http::{HeaderMap, header::AUTHORIZATION};
use subtle::ConstantTimeEq as _;
use tidegate::{CloseReason, Reason};
use tonic::{Code, Status};

use super::{Authenticator, Refused, refusal::Cause, session::Authenticated};
use crate::{
    digest::{Digest, digest},
    network::{listener::PeerAddress, tls::Certificates},
    quotas::{Claim, OwnedConnection, Quotas},
};

/// The client at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    authenticator: Arc<Authenticator>,
    address: SocketAddr,
    /// The quotas that its calls and bad credentials count for.
    quotas: Arc<Quotas>,
    /// Counts the connection for its principal, as soon as it has one.
    owned: OwnedConnection,
    /// The principal of its certificate, if it has one.
    by_certificate: Option<Authenticated>,
    /// The digest of the last token that was accepted, and its principal.
    last: Mutex<Option<(Digest, Authenticated)>>,
}

impl Peer {
    /// The client of a connection from `address`, whose `certificates` the handshake verified.
    pub(crate) fn new(
        authenticator: Arc<Authenticator>,
        quotas: Arc<Quotas>,
        address: SocketAddr,
        certificates: Option<Certificates>,
    ) -> Self {
        let by_certificate =
            certificates.and_then(|shown| authenticator.authenticate_certificate(shown));
        let owned = OwnedConnection::new(&quotas, address);
        if let Some(owner) = &by_certificate {
            // If the principal has too many connections, its first call claims again, and is refused with the reason.
            let _ = owned.claim(owner.access.principal(), Claim::BeforeCalls);
        }
        Self {
            authenticator,
            address,
            quotas,
            owned,
            by_certificate,
            last: Mutex::default(),
        }
    }

    /// The principal of a call with these headers: that of its token, or without a token that of the certificate.
    ///
    /// # Errors
    /// The status to answer with: the credentials are missing, not accepted, or over the rate of bad ones, or the
    /// principal has too many connections. A good certificate does not make up for a bad token.
    pub(crate) async fn identify(
        &self,
        headers: &HeaderMap,
        claim: Claim,
    ) -> Result<Authenticated, Status> {
        let authenticated = self.authenticate(headers).await.map_err(|refused| {
            let Refused { status, cause } = refused;
            let log = self.authenticator.refusals();
            log.log(PeerAddress(self.address), &cause);
            status
        })?;
        // The principal of the certificate comes before that of the call.
        let owner = self.by_certificate.as_ref().unwrap_or(&authenticated);
        self.owned.claim(owner.access.principal(), claim)?;
        Ok(authenticated)
    }

    async fn authenticate(&self, headers: &HeaderMap) -> Result<Authenticated, Refused> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let Some(header) = given.next() else {
            return self.by_certificate();
        };
        let malformed = |text: &'static str| Refused::invalid(Cause::new("authorization", text));
        if given.next().is_some() {
            return Err(malformed("the call has more than one `authorization`"));
        }
        let token = header.to_str().ok().and_then(bearer);
        let token = token.ok_or_else(|| malformed("`authorization` is not `Bearer TOKEN`"))?;
        // As long as the headers may be: `http2.max_header_list_size` bounds the work of a token.
        let hash = digest(token.as_bytes());
        if let Some(authenticated) = self.remembered(&hash) {
            return Ok(authenticated);
        }
        // The lock is not held here: calls of one connection verify their tokens side by side.
        let authenticated = self.verify_token(token, hash).await?;
        *self.last() = Some((hash, authenticated.clone()));
        Ok(authenticated)
    }

    /// Verifies a token. Beyond the rate of bad ones from this address, only tokens that were accepted from it before
    /// are verified.
    async fn verify_token(&self, token: &str, hash: Digest) -> Result<Authenticated, Refused> {
        let (quotas, known_tokens) = (&self.quotas, self.authenticator.known_tokens());
        if !known_tokens.contains(self.address.ip(), hash) {
            let checked = quotas.check_auth_failures(self.address.ip(), Instant::now());
            checked.map_err(|status| Refused {
                status: status.into(),
                cause: Cause::new(
                    "rate",
                    "too many bad tokens came from this address, so new ones are not verified",
                ),
            })?;
        }
        let found = self.authenticator.authenticate_token(token, hash).await;
        match &found {
            Ok(_) => known_tokens.insert(self.address.ip(), hash),
            Err(refused) if refused.status.code() == Code::Unauthenticated => {
                known_tokens.remove(self.address.ip(), hash);
                quotas.note_auth_failure(self.address.ip(), Instant::now());
            }
            // The token may be good: its keys could not be fetched.
            Err(_) => {}
        }
        found
    }

    /// The principal of the certificate, for a call without a token.
    fn by_certificate(&self) -> Result<Authenticated, Refused> {
        let Some(authenticated) = self.by_certificate.clone() else {
            return Err(Refused {
                status: Reason::CredentialsMissing.status(
                    "the call has no credentials; send a token as `authorization: Bearer TOKEN`",
                ),
                cause: Cause::new(
                    "missing",
                    "the call has no `authorization`, and its connection no certificate that names a principal",
                ),
            });
        };
        match authenticated.access.ended() {
            None => Ok(authenticated),
            Some(CloseReason::CredentialsExpired) => Err(Refused {
                status: Reason::CredentialsExpired.status(
                    "the certificate of this connection has expired; connect with a new one",
                ),
                cause: Cause::new("expired", "the certificate of the connection has expired"),
            }),
            Some(_) => Err(Refused::invalid(Cause::new(
                "certificate",
                "the certificate of the connection is no longer accepted",
            ))),
        }
    }

    /// The principal of the last token, if this is the same token and it is still accepted.
    fn remembered(&self, hash: &Digest) -> Option<Authenticated> {
        let last = self.last();
        let (last_hash, authenticated) = last.as_ref()?;
        // In constant time, so that the time of a refusal tells nothing about the digest of a good token.
        let is_same = bool::from(last_hash.ct_eq(hash));
        let authenticated = is_same.then(|| authenticated.clone())?;
        authenticated
            .access
            .ended()
            .is_none()
            .then_some(authenticated)
    }

    fn last(&self) -> MutexGuard<'_, Option<(Digest, Authenticated)>> {
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

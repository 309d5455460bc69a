//! The client at the other end of a connection, and who it says it is.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use http::{HeaderMap, header::AUTHORIZATION};
use subtle::ConstantTimeEq as _;
use tidegate::{CloseReason, Reason};
use tonic::{Code, Status};

use super::{Authenticator, credentials_invalid, session::Authenticated};
use crate::{
    digest::{Digest, digest},
    network::tls::Certificates,
    quotas::{OwnedConnection, Quotas},
};

/// Longer tokens are not even hashed. Headers are bounded as a whole as well.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// The client at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    authenticator: Arc<Authenticator>,
    /// Where it is.
    address: IpAddr,
    /// Where it is counted.
    quotas: Arc<Quotas>,
    /// Counts the connection, as soon as it belongs to somebody.
    owned: Mutex<Option<OwnedConnection>>,
    /// What its certificate gives it.
    by_certificate: Option<Authenticated>,
    /// The last token that was accepted, and what it gives.
    last: Mutex<Option<(Digest, Authenticated)>>,
}

impl Peer {
    /// The client of a connection from `address`, on which it showed `certificates`, which were found good.
    pub(crate) fn new(
        authenticator: Arc<Authenticator>,
        quotas: Arc<Quotas>,
        address: IpAddr,
        certificates: Option<Certificates>,
    ) -> Self {
        let by_certificate =
            certificates.and_then(|shown| authenticator.authenticate_certificate(shown));
        let owner = by_certificate.as_ref();
        let owned = owner
            .and_then(|owner| OwnedConnection::claim_silently(&quotas, owner.access.principal()));
        Self {
            authenticator,
            address,
            quotas,
            owned: Mutex::new(owned),
            by_certificate,
            last: Mutex::default(),
        }
    }

    /// On whose behalf a call with these headers is made.
    ///
    /// # Errors
    /// The status to answer with when there are no credentials, or they are not accepted, or not looked at, or their
    /// principal has too many connections. A bad token is not made up for by a good certificate.
    pub(crate) async fn identify(&self, headers: &HeaderMap) -> Result<Authenticated, Status> {
        let authenticated = self.authenticate(headers).await?;
        self.assign_owner(&authenticated)?;
        Ok(authenticated)
    }

    /// Sees to it that the connection belongs to somebody.
    fn assign_owner(&self, authenticated: &Authenticated) -> Result<(), Status> {
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        if owned.is_none() {
            // That of the certificate, if it shows one, whose ever the first call is.
            let owner = self.by_certificate.as_ref().unwrap_or(authenticated);
            let principal = owner.access.principal();
            *owned = Some(OwnedConnection::claim(&self.quotas, principal)?);
        }
        Ok(())
    }

    async fn authenticate(&self, headers: &HeaderMap) -> Result<Authenticated, Status> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let Some(header) = given.next() else {
            return self.by_certificate();
        };
        let token = header.to_str().ok().and_then(bearer);
        let token = token.filter(|token| token.len() <= MAX_TOKEN_BYTES);
        let (Some(token), None) = (token, given.next()) else {
            return Err(credentials_invalid());
        };
        let hash = digest(token.as_bytes());
        if let Some(authenticated) = self.remembered(&hash) {
            return Ok(authenticated);
        }
        let authenticated = self.verify_token(token, hash).await?;
        *self.last() = Some((hash, authenticated.clone()));
        Ok(authenticated)
    }

    /// Finds out whose token it is, unless too many from here were bad and it was not found good before.
    async fn verify_token(&self, token: &str, hash: Digest) -> Result<Authenticated, Status> {
        let (quotas, known_tokens) = (&self.quotas, self.authenticator.known_tokens());
        if !known_tokens.contains(self.address, hash) {
            quotas.check_auth_failures(self.address, Instant::now())?;
        }
        let found = self.authenticator.authenticate_token(token, hash).await;
        match &found {
            Ok(_) => known_tokens.insert(self.address, hash),
            Err(status) if status.code() == Code::Unauthenticated => {
                known_tokens.remove(self.address, hash);
                quotas.note_auth_failure(self.address, Instant::now());
            }
            Err(_) => {}
        }
        found
    }

    fn by_certificate(&self) -> Result<Authenticated, Status> {
        let authenticated = self.by_certificate.clone().ok_or_else(|| {
            Reason::CredentialsMissing.status(
                "the call has no credentials; send a token as `authorization: Bearer TOKEN`",
            )
        })?;
        match authenticated.access.ended() {
            None => Ok(authenticated),
            Some(CloseReason::CredentialsExpired) => Err(Reason::CredentialsExpired
                .status("the certificate of this connection has expired; connect with a new one")),
            Some(_) => Err(credentials_invalid()),
        }
    }

    /// What the last token gave, if it is the same and still accepted.
    fn remembered(&self, hash: &Digest) -> Option<Authenticated> {
        let last = self.last();
        let (last_hash, authenticated) = last.as_ref()?;
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

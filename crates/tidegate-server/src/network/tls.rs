//! TLS by rustls, with certificates from files that are read again when they change.
//!
//! # Reloading
//! A new certificate serves new connections; open connections go on with the old one. If the files cannot be used, an
//! error is logged and the old ones stay in force: a half-written file must not stop the server, and a certificate that
//! is not valid now must not replace one that is.
//!
//! # Revocation
//! Lists of revoked certificates are read with the other files. New connections are checked against them in the
//! handshake, open ones whenever the files change, because calls and streams ask the verifier in force.
//!
//! # Sessions
//! Clients may resume sessions, from a cache that is replaced with the certificates and lists, so no session outlives a
//! revocation. Early data (0-RTT) stays off: it could be replayed.
//!
//! # Coalescing
//! The output of a connection is coalesced above TLS: the frames of one poll are encrypted together, in records of the
//! greatest size, which go to the socket together. Below TLS each small frame would be a record with a tag and a header
//! of its own.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use rustls::{
    ProtocolVersion, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::either::Either;

use super::{
    certificate::{self, Examined},
    expiry::{Notice, Notices},
    listener,
    metered::Metered,
    pem::{certificates, lists, private_key},
};
use crate::files::{Contents, Files, SecurityError};

/// HTTP/2 as ALPN names it (RFC 9113, section 3.2): the only protocol of the server.
const H2: &[u8] = b"h2";

/// The number of files of the server's own certificate, which are the first.
const OWN: usize = 2;

/// The files and rules of TLS.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The certificate chain in PEM, beginning with the server's own certificate. No default.
    pub certificate: PathBuf,
    /// The private key of the certificate in PEM. No default.
    pub key: PathBuf,
    /// The authorities that sign clients' certificates, in PEM. A client with such a certificate is the principal that
    /// the certificate names: its first URI or DNS name, else its common name. Default: `None`, clients have no
    /// certificates.
    pub client_ca: Option<PathBuf>,
    /// Lists of revoked certificates (RFC 5280, section 5), in PEM. If there is one, every authority in the chain of a
    /// client's certificate needs one, or the client is refused. A list stays valid after its next update was due.
    /// Default: none, and no certificate counts as revoked.
    pub client_crls: Vec<PathBuf>,
    /// Whether clients need a certificate. Default: required.
    pub client_auth: ClientAuth,
}

/// Whether clients need a certificate, where [`TlsConfig::client_ca`] is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientAuth {
    /// A client without a certificate gets no connection.
    #[default]
    Required,
    /// A client without a certificate needs a token for its calls. A bad certificate is refused.
    Optional,
}

/// The TLS of new connections, and the files that it comes from.
#[derive(Debug)]
pub(crate) struct Tls {
    config: TlsConfig,
    files: Files,
    /// The contents of the files that are in force.
    in_force: Mutex<Vec<Vec<u8>>>,
    /// Held to clone or replace it only, never during a handshake.
    current: Mutex<Current>,
    /// The notices of the certificate's expiry.
    notices: Mutex<Notices>,
}

/// The contents of the files, parsed.
#[derive(Debug, Clone)]
struct Current {
    server: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// The findings about the server's own certificate chain.
    own: Arc<Examined>,
    /// The faults of the authorities for clients.
    authorities: Arc<[String]>,
}

/// The socket of a connection.
pub(crate) type Socket = Metered<listener::Socket>;

/// The bytes of a connection, with TLS or without.
pub(crate) type Transport = Either<Socket, Box<TlsStream<Socket>>>;

/// The certificates of a client, beginning with its own.
pub(crate) type Certificates = Arc<[CertificateDer<'static>]>;

// ===== impl TlsConfig =====

impl TlsConfig {
    /// TLS with the certificate chain and the key in these files, for clients without certificates.
    #[must_use]
    pub fn new(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self {
            certificate: certificate.into(),
            key: key.into(),
            client_ca: None,
            client_crls: Vec::new(),
            client_auth: ClientAuth::default(),
        }
    }

    fn files(&self) -> Files {
        let files = [self.certificate.clone(), self.key.clone()];
        let clients = self.client_ca.iter().chain(self.crls()).cloned();
        Files::new(files.into_iter().chain(clients))
    }

    /// Reads the files, and checks that they can be used together.
    pub(crate) fn check(&self) -> Result<(), SecurityError> {
        let contents = self.files().read(true).expect("a forced read has contents");
        self.make(&whole(contents)?).map(|_| ())
    }

    /// The lists of revoked certificates. None without authorities for clients, which they would be about.
    fn crls(&self) -> &[PathBuf] {
        match self.client_ca {
            Some(_) => &self.client_crls,
            None => &[],
        }
    }

    /// Parses the contents of [`files`](Self::files), in their order.
    fn make(&self, contents: &[Vec<u8>]) -> Result<Current, SecurityError> {
        let [chain, key, ca @ ..] = contents else {
            return Err(SecurityError::Configuration(
                "TLS needs a certificate and a key",
            ));
        };
        let chain = certificates(&self.certificate, chain)?;
        let key = private_key(&self.key, key)?;
        let own = certificate::examine(&self.certificate, &chain)?;
        // Loaded once to see what is wrong with it: below, a key that cannot be used and one of another certificate are
        // the same error.
        let provider = provider();
        let loaded = provider
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(|error| {
                SecurityError::invalid(&self.key, certificate::unusable_key(&chain, &error))
            })?;
        certificate::check_key(&self.certificate, &chain, &*loaded, &self.key)?;
        let mut authorities = Vec::new();
        let verifier = match (&self.client_ca, ca) {
            (Some(path), [ca, crls @ ..]) => {
                let verifier = self.verifier(path, ca, crls)?;
                authorities = faults_of_roots(path, ca);
                Some(verifier)
            }
            _ => None,
        };
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has what these versions need");
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_single_cert(chain, key).map_err(|error| {
            SecurityError::invalid(&self.certificate, certificate::unusable(&error))
        })?;
        server.alpn_protocols = vec![H2.to_vec()];
        Ok(Current {
            server: Arc::new(server),
            verifier,
            own: Arc::new(own),
            authorities: authorities.into(),
        })
    }

    fn verifier(
        &self,
        path: &Path,
        ca: &[u8],
        crls: &[Vec<u8>],
    ) -> Result<Arc<dyn ClientCertVerifier>, SecurityError> {
        let roots = Arc::new(roots(path, ca)?);
        let mut builder =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider());
        for (path, crl) in self.crls().iter().zip(crls) {
            builder = builder.with_crls(revoked(path, crl, &roots)?);
        }
        let builder = match self.client_auth {
            ClientAuth::Required => builder,
            ClientAuth::Optional => builder.allow_unauthenticated(),
        };
        builder
            .build()
            .map_err(|error| SecurityError::invalid(path, error.to_string()))
    }
}

// ===== impl Tls =====

impl Tls {
    /// Reads the files.
    pub(crate) fn new(config: TlsConfig) -> Result<Self, SecurityError> {
        let files = config.files();
        let contents = whole(files.read(true).expect("a forced read has contents"))?;
        Ok(Self {
            current: Mutex::new(config.make(&contents)?),
            files,
            in_force: Mutex::new(contents),
            notices: Mutex::default(),
            config,
        })
    }

    /// The warnings about the files that are in force, each with the key of its setting. The notice of the certificate's
    /// expiry is not due again for a day.
    pub(crate) fn warnings(&self) -> Vec<(&'static str, String)> {
        let current = self.current();
        let now = SystemTime::now();
        let own = current.own.warnings.iter().cloned();
        let mut warnings: Vec<_> = own.map(|warning| ("tls.certificate", warning)).collect();
        if let Some(notice) = current.own.validity.notice(now) {
            // A warning is too little for what clients refuse: the next look at the clock makes it an error.
            if !notice.is_error {
                self.notices().note(&notice, now);
            }
            warnings.push(("tls.certificate", notice.text));
        }
        let authorities = current.authorities.iter().cloned();
        warnings.extend(authorities.map(|warning| ("tls.client_ca", warning)));
        warnings
    }

    /// The notice of the certificate's expiry, if one is due at `now`.
    pub(crate) fn due_notice(&self, now: SystemTime) -> Option<Notice> {
        let notice = self.current().own.validity.notice(now)?;
        self.notices().is_due(&notice, now).then_some(notice)
    }

    /// The expiry of the certificate, in seconds since 1970.
    pub(crate) fn expiry(&self) -> i64 {
        self.current().own.validity.until()
    }

    /// The files of certificates, keys and lists.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Reads the files again if they have changed, or in any case with `force`. Returns whether new ones are in force,
    /// and an error for each that is not.
    ///
    /// A file that cannot be used leaves its previous contents in force: a new list of revoked certificates must hold
    /// also while a key does not match its certificate.
    pub(crate) fn reload(&self, force: bool) -> (bool, Vec<SecurityError>) {
        let Some(contents) = self.files.read(force) else {
            return (false, Vec::new());
        };
        let mut errors = Vec::new();
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        let read = contents.into_iter().zip(in_force.iter());
        let new: Vec<_> = read
            .map(|(content, previous)| {
                content.unwrap_or_else(|error| {
                    errors.push(error);
                    previous.clone()
                })
            })
            .collect();
        // The certificate and its key go together, and so do authorities and lists.
        let mixed = |own: &[Vec<u8>], clients: &[Vec<u8>]| -> Vec<Vec<u8>> {
            own[..OWN].iter().chain(&clients[OWN..]).cloned().collect()
        };
        let attempts = [
            mixed(&new, &new),
            mixed(&in_force, &new),
            mixed(&new, &in_force),
        ];
        for contents in attempts {
            if contents == *in_force && !errors.is_empty() {
                // Nothing of it is new.
                return (false, errors);
            }
            let made = self.config.make(&contents);
            match made.and_then(|made| self.check_replacement(made)) {
                Ok(made) => {
                    *self.current.lock().unwrap_or_else(PoisonError::into_inner) = made;
                    *in_force = contents;
                    return (true, errors);
                }
                // The later attempts may fail for the same reason.
                Err(error) if errors.is_empty() => errors.push(error),
                Err(_) => {}
            }
        }
        (false, errors)
    }

    /// Refuses to replace a certificate that is valid now by one that is not.
    fn check_replacement(&self, made: Current) -> Result<Current, SecurityError> {
        let now = SystemTime::now();
        match made.own.validity.notice(now) {
            Some(notice) if notice.is_error && self.current().own.validity.contains(now) => {
                let problem = format!(
                    "{}; the previous one, which is valid, stays in force",
                    notice.text
                );
                Err(SecurityError::invalid(&self.config.certificate, problem))
            }
            _ => Ok(made),
        }
    }

    /// Whether clients may show certificates.
    pub(crate) fn asks_for_certificates(&self) -> bool {
        self.config.client_ca.is_some()
    }

    /// The verifier of clients' certificates that is in force. `None` if clients have none.
    pub(crate) fn verifier(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        self.current().verifier
    }

    fn notices(&self) -> MutexGuard<'_, Notices> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Current {
        let current = self.current.lock();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the handshake. The peer must choose HTTP/2 by ALPN: one that names no protocol may expect another server.
    pub(crate) async fn accept(&self, stream: Socket) -> io::Result<Transport> {
        let acceptor = TlsAcceptor::from(self.current().server);
        let stream = acceptor.accept(stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(H2) {
            let problem = "the peer did not choose h2 by ALPN";
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(Either::Right(Box::new(stream)))
    }
}

/// The contents of all files, or the first error.
fn whole(contents: Contents) -> Result<Vec<Vec<u8>>, SecurityError> {
    contents.into_iter().collect()
}

/// The cryptography of all TLS here: that of aws-lc.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The authorities that the system trusts. One that cannot be read is left out, with a warning.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "cannot read a certificate that the system trusts");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

/// The faults of a file of authorities that [`roots`] takes.
pub(crate) fn faults_of_roots(path: &Path, pem: &[u8]) -> Vec<String> {
    let certificates = certificates(path, pem).unwrap_or_default();
    certificate::authority_faults(pem, &certificates)
}

/// The authorities in a file.
pub(crate) fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, SecurityError> {
    let mut roots = RootCertStore::empty();
    for (i, certificate) in certificates(path, pem)?.into_iter().enumerate() {
        let added = roots.add(certificate);
        added.map_err(|error| {
            let number = i + 1;
            let problem =
                format!("certificate {number} of the file is not that of an authority: {error}");
            SecurityError::invalid(path, problem)
        })?;
    }
    Ok(roots)
}

/// The lists of revoked certificates in a file, checked for use with some of `roots`.
pub(crate) fn revoked(
    path: &Path,
    pem: &[u8],
    roots: &Arc<RootCertStore>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, SecurityError> {
    let lists = lists(path, pem)?;
    // The check is whether a verifier can be built with them. It needs some authority; which one makes no difference.
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
    match builder.with_crls(lists.clone()).build() {
        Ok(_) => Ok(lists),
        Err(error) => Err(SecurityError::invalid(path, error.to_string())),
    }
}

// ===== Transports =====

/// The certificates of the client, which the handshake verified.
pub(crate) fn client_certificates(transport: &Transport) -> Option<Certificates> {
    let Either::Right(stream) = transport else {
        return None;
    };
    stream.get_ref().1.peer_certificates().map(Arc::from)
}

/// The name of the protocol, for a log.
pub(crate) fn protocol(transport: &Transport) -> &'static str {
    let Either::Right(stream) = transport else {
        return "h2";
    };
    match stream.get_ref().1.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "h2 over TLS 1.2",
        Some(ProtocolVersion::TLSv1_3) => "h2 over TLS 1.3",
        _ => "h2 over TLS",
    }
}

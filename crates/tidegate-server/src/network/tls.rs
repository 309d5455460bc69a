//! TLS by rustls: certificates from files, read again when they change.
//!
//! # Reloading
//! A new certificate is for new connections; those that are there go on. Files that cannot be used leave what was
//! there before, and are logged as an error: a server must not stop for a file that is half written.
//!
//! # Revocation
//! Lists of revoked certificates are read with the rest. New connections are checked against them in the handshake,
//! those that are there whenever the files change, as calls and streams ask the verifier of the moment.
//!
//! # Sessions
//! Sessions are resumed from a cache that is as old as the certificates and lists, so none outlives a revocation. Early data (0-RTT) is off: it could be
//! replayed.
//!
//! # Where the bytes are gathered
//! Above TLS: what a poll of a connection writes is encrypted in records of the greatest size, and these go to the
//! socket together. Gathering below would leave a record, with its own tag and header, for each small frame.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::files::{Files, SecurityError};

/// The one protocol that is spoken (RFC 9113, section 3.2).
const H2: &[u8] = b"h2";

/// How the server speaks TLS.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The certificate chain in PEM, the server's own first. No default.
    pub certificate: PathBuf,
    /// Its private key in PEM. No default.
    pub key: PathBuf,
    /// Certificates in PEM of those who may vouch for clients. With it, a client that shows a certificate
    /// is the principal that the certificate names: its first URI or DNS name, else its common name.
    /// Default: `None`, nobody is asked for a certificate.
    pub client_ca: Option<PathBuf>,
    /// Lists in PEM of certificates that were revoked (RFC 5280, section 5). With any, every authority in the
    /// chain of a client's certificate needs one, or the client is refused. A list counts also when it should have
    /// been replaced by another. Default: none, nothing is taken for revoked.
    pub client_crls: Vec<PathBuf>,
    /// Whether clients must show one. Default: required.
    pub client_auth: ClientAuth,
}

/// Whether clients must show a certificate, where there is somebody to vouch for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientAuth {
    /// Without one there is no connection.
    #[default]
    Required,
    /// Without one, calls need a token. A bad one is refused all the same.
    Optional,
}

/// What new connections are accepted with.
#[derive(Debug)]
pub(crate) struct Tls {
    config: TlsConfig,
    files: Files,
    current: Mutex<Current>,
}

/// What was made of the files.
#[derive(Debug, Clone)]
struct Current {
    server: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// The bytes of a connection, with TLS or without.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The certificates that a client showed, its own first.
pub(crate) type Certificates = Arc<[CertificateDer<'static>]>;

impl TlsConfig {
    /// TLS with this certificate chain and key, for clients without certificates.
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

    /// Whether the files can be used together.
    pub(crate) fn check(&self) -> Result<(), SecurityError> {
        let contents = self
            .files()
            .read(true)
            .expect("a forced read has contents")?;
        self.make(&contents).map(|_| ())
    }

    /// Lists of revoked certificates, which say nothing where nobody vouches for clients.
    fn crls(&self) -> &[PathBuf] {
        match self.client_ca {
            Some(_) => &self.client_crls,
            None => &[],
        }
    }

    /// Makes of the files' contents what connections are accepted with.
    fn make(&self, contents: &[Vec<u8>]) -> Result<Current, SecurityError> {
        let [chain, key, ca @ ..] = contents else {
            return Err(SecurityError::Configuration(
                "TLS needs a certificate and a key",
            ));
        };
        let chain = certificates(&self.certificate, chain)?;
        let key = private_key(&self.key, key)?;
        let verifier = match (&self.client_ca, ca) {
            (Some(path), [ca, crls @ ..]) => Some(self.verifier(path, ca, crls)?),
            _ => None,
        };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has what these versions need");
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_single_cert(chain, key).map_err(|error| {
            let problem = format!("it does not go with {}: {error}", self.key.display());
            SecurityError::invalid(&self.certificate, problem)
        })?;
        server.alpn_protocols = vec![H2.to_vec()];
        Ok(Current {
            server: Arc::new(server),
            verifier,
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

impl Tls {
    pub(crate) fn new(config: TlsConfig) -> Result<Self, SecurityError> {
        let files = config.files();
        let contents = files.read(true).expect("a forced read has contents")?;
        Ok(Self {
            current: Mutex::new(config.make(&contents)?),
            files,
            config,
        })
    }

    /// Reads the files again if they have changed, or in any case with `force`. Returns whether it did.
    pub(crate) fn reload(&self, force: bool) -> Result<bool, SecurityError> {
        let Some(contents) = self.files.read(force) else {
            return Ok(false);
        };
        let new = self.config.make(&contents?)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(true)
    }

    /// Whether clients may show certificates.
    pub(crate) fn asks_for_certificates(&self) -> bool {
        self.config.client_ca.is_some()
    }

    /// Who vouches for clients now.
    pub(crate) fn verifier(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        self.current().verifier
    }

    fn current(&self) -> Current {
        let current = self.current.lock();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shakes hands. The peer must have chosen HTTP/2: a client that names no protocol does not know what
    /// it speaks to.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<Transport> {
        let acceptor = TlsAcceptor::from(self.current().server);
        let stream = acceptor.accept(stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(H2) {
            let problem = "the peer did not choose h2 by ALPN";
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(Transport::Tls(Box::new(stream)))
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Those whom the system trusts. What of them cannot be read is left out.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "cannot read a certificate that the system trusts");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

/// Those in a file.
pub(crate) fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, SecurityError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        let added = roots.add(certificate);
        added.map_err(|error| SecurityError::invalid(path, error.to_string()))?;
    }
    Ok(roots)
}

pub(crate) fn private_key(
    path: &Path,
    pem: &[u8],
) -> Result<PrivateKeyDer<'static>, SecurityError> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| SecurityError::invalid(path, "there is no private key in PEM in it"))
}

/// The lists of revoked certificates in a file, whatever stands in them.
pub(crate) fn lists(
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, SecurityError> {
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let lists = lists.ok().filter(|lists| !lists.is_empty());
    lists.ok_or_else(|| {
        SecurityError::invalid(path, "there is no certificate revocation list in PEM in it")
    })
}

/// The lists of revoked certificates in a file, which can be used.
pub(crate) fn revoked(
    path: &Path,
    pem: &[u8],
    roots: &Arc<RootCertStore>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, SecurityError> {
    let lists = lists(path, pem)?;
    // Whose lists they are makes no difference to whether they can be read, but some authority there must be.
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
    match builder.with_crls(lists.clone()).build() {
        Ok(_) => Ok(lists),
        Err(error) => Err(SecurityError::invalid(path, error.to_string())),
    }
}

pub(crate) fn certificates(
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(SecurityError::invalid(
            path,
            "there is no certificate in PEM in it",
        )),
    }
}

// ===== impl Transport =====

impl Transport {
    /// What the client showed.
    pub(crate) fn certificates(&self) -> Option<Certificates> {
        let Self::Tls(stream) = self else { return None };
        stream.get_ref().1.peer_certificates().map(Arc::from)
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

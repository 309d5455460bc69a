//! TLS of a connection. It is done here and not by tonic, which loses the alert by which a server refuses a client
//! certificate: with TLS 1.3 that comes after the handshake, when the connection is tonic's.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::{
    ClientConfig, Error as TlsError, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem, pem::PemObject as _},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::liveness::{Activity, Watched};

/// The protocol that a server must agree on (RFC 7301).
const ALPN: &[u8] = b"h2";

/// The words of an error by which a server has not agreed on it.
pub(crate) const NO_HTTP2: &str = "the server speaks TLS, but not HTTP/2 over it";

/// The TLS of all connections to one server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    /// The name that its certificate must have.
    name: ServerName<'static>,
}

/// A connection with TLS or without.
pub(crate) enum Transport<T> {
    Plain(Watched<T>, Activity),
    Tls(Box<TlsStream<Watched<T>>>, Activity),
}

impl Tls {
    /// Creates the TLS for a server by its host, as a URL has it. Without `authorities`, in PEM, it trusts those that the
    /// system trusts. `identity` is a chain of certificates and the private key of the first.
    pub(crate) fn new(
        host: &str,
        authorities: Option<&[u8]>,
        identity: Option<&(Vec<u8>, Vec<u8>)>,
    ) -> Result<Self, String> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| format!("no certificate can be for the host {host:?}"))?;
        let roots = match authorities {
            Some(pem) => given_roots(pem)?,
            None => native_roots()?,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(certificates(chain)?, private_key(key)?)
                .map_err(|error| {
                    format!("the client's certificate and its private key cannot be used: {error}")
                })?,
        };
        config.alpn_protocols = vec![ALPN.into()];
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    pub(crate) async fn connect<T>(
        self,
        socket: Watched<T>,
        activity: Activity,
    ) -> io::Result<Transport<T>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsConnector::from(self.config)
            .connect(self.name, socket)
            .await?;
        match stream.get_ref().1.alpn_protocol() {
            Some(ALPN) => Ok(Transport::Tls(Box::new(stream), activity)),
            _ => Err(io::Error::other(NO_HTTP2)),
        }
    }
}

fn given_roots(authorities: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities) {
        let certificate = certificate.map_err(|error| {
            format!("the authorities to trust are no certificates in PEM: {error}")
        })?;
        let added = roots.add(certificate);
        added.map_err(|error| format!("an authority to trust cannot be used: {error}"))?;
    }
    match roots.is_empty() {
        true => Err("the authorities to trust contain no certificate in PEM".into()),
        false => Ok(roots),
    }
}

fn native_roots() -> Result<RootCertStore, String> {
    let native = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(native.certs);
    match roots.is_empty() {
        true => Err(
            "this system trusts no authority: install its package of certificates, or give the authorities to trust"
                .into(),
        ),
        false => Ok(roots),
    }
}

fn certificates(chain: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain =
        chain.map_err(|error| format!("the client's certificate is not in PEM: {error}"))?;
    match chain.is_empty() {
        true => Err("the file of the client's certificate contains no certificate in PEM".into()),
        false => Ok(chain),
    }
}

fn private_key(key: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(key).map_err(|error| {
        let text = String::from_utf8_lossy(key);
        if text.contains("ENCRYPTED") {
            return "the client's private key is encrypted: decrypt it with `openssl pkey`".into();
        }
        match error {
            pem::Error::NoItemsFound => {
                "the file of the client's private key contains no private key in PEM".into()
            }
            error => format!("the client's private key is not in PEM: {error}"),
        }
    })
}

impl<T> Transport<T> {
    /// Keeps the error of TLS, since those who get it next keep its words at most.
    fn note(activity: &Activity, result: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        if let Poll::Ready(Err(error)) = &result
            && let Some(inner) = error.get_ref()
            && let Some(error) = inner.downcast_ref::<TlsError>()
        {
            activity.tls_failed(error.clone());
        }
        result
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Transport<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let (result, activity) = match self.get_mut() {
            Self::Plain(stream, activity) => (Pin::new(stream).poll_read(cx, buf), activity),
            Self::Tls(stream, activity) => {
                let result = Pin::new(stream).poll_read(cx, buf);
                (Self::note(activity, result), activity)
            }
        };
        let read = &buf.filled()[before..];
        if !read.is_empty() {
            activity.plain_bytes_read(read);
        }
        result
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream, _) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream, _) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream, _) => stream.is_write_vectored(),
            Self::Tls(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

//! The client's side of TLS, by rustls, and certificates for servers that the benchmark starts.
//!
//! # Sessions
//! No session is resumed. Every connection costs the server as much as the first connection of a new client.

use std::{
    fmt,
    fs::{DirBuilder, File, OpenOptions, remove_dir_all},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::Error;

/// The protocol to negotiate by ALPN (RFC 9113, section 3.2).
const H2: &[u8] = b"h2";

/// The credentials that a benchmark sends, and the certificates that it trusts.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The bearer token to send with each call. Default: none.
    pub token: Option<String>,
    /// Certificates to trust for a server at an `https` URL, in PEM. Default: `None`, those that the system trusts.
    pub ca: Option<Vec<u8>>,
    /// The client's certificate chain and its private key, in PEM. Default: none.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Opens TLS on a socket.
#[derive(Clone)]
pub(crate) struct Tls {
    connector: TlsConnector,
    /// The name that the server's certificate must have.
    name: ServerName<'static>,
}

/// A self-signed certificate for one server, in files that are removed on drop.
#[derive(Debug)]
pub(crate) struct MadeCertificate {
    folder: PathBuf,
    pem: String,
}

// ===== impl Credentials =====

impl Credentials {
    /// Credentials that trust only these certificates in PEM.
    pub(crate) fn trusting(pem: &str) -> Self {
        Self {
            ca: Some(pem.into()),
            ..Self::default()
        }
    }

    fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(pem) => {
                for certificate in certificates(pem)? {
                    roots.add(certificate).map_err(Error::credentials)?;
                }
            }
            // Certificates of the system that cannot be parsed are left out.
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        Ok(roots)
    }
}

/// Prints no secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Credentials")
            .field("has_token", &self.token.is_some())
            .field("has_ca", &self.ca.is_some())
            .field("has_identity", &self.identity.is_some())
            .finish()
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(Error::credentials(
            "a file that should have certificates in PEM has none",
        )),
    }
}

// ===== impl Tls =====

impl Tls {
    /// Creates a connector for a server whose certificate names `host`.
    ///
    /// # Errors
    ///
    /// [`Error::Credentials`] if the credentials cannot be used, [`Error::Invalid`] if `host` is no host name.
    pub(crate) fn new(host: &str, credentials: &Credentials) -> Result<Self, Error> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Error::credentials)?
            .with_root_certificates(credentials.roots()?);
        let mut config = match &credentials.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
                    Error::credentials("a file that should have a private key in PEM has none")
                })?;
                builder
                    .with_client_auth_cert(certificates(chain)?, key)
                    .map_err(Error::credentials)?
            }
        };
        config.alpn_protocols = vec![H2.to_vec()];
        config.resumption = Resumption::disabled();
        let host = host.trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            Error::Invalid(format!(
                "{host:?} is not a host name that a certificate can have"
            ))
        })?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            name,
        })
    }

    /// Performs the handshake.
    pub(crate) async fn connect(&self, socket: TcpStream) -> Result<TlsStream<TcpStream>, Error> {
        let handshake = self.connector.connect(self.name.clone(), socket).await;
        handshake.map_err(|error| Error::Tls(error.to_string()))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Tls").field(&self.name).finish()
    }
}

// ===== impl MadeCertificate =====

impl MadeCertificate {
    /// Makes a certificate for a host name or an address, in a new folder that only this user can read.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the files cannot be written.
    pub(crate) fn new(host: &str) -> Result<Self, Error> {
        let made = rcgen::generate_simple_self_signed([host.to_owned()])
            .map_err(|error| Error::Invalid(format!("cannot make a certificate: {error}")))?;
        let this = Self {
            folder: private_folder()?,
            pem: made.cert.pem(),
        };
        write(&this.certificate(), &this.pem)?;
        write(&this.key(), &made.signing_key.serialize_pem())?;
        Ok(this)
    }

    /// Returns the path of the certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }

    /// Returns the path of its key.
    pub(crate) fn key(&self) -> PathBuf {
        self.folder.join("key.pem")
    }

    /// Returns the certificate in PEM. It is its own authority.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }
}

impl Drop for MadeCertificate {
    fn drop(&mut self) {
        // This fails if something else has cleaned the folder of temporary files.
        let _ = remove_dir_all(&self.folder);
    }
}

fn private_folder() -> Result<PathBuf, Error> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!(
        "tidegate-bench-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Relaxed)
    );
    let folder = std::env::temp_dir().join(name);
    // This fails if the folder exists, so that no other user can have prepared it.
    let made = DirBuilder::new().mode(0o700).create(&folder);
    made.map_err(Error::system(format!("cannot make {}", folder.display())))?;
    Ok(folder)
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    let open = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    };
    open()
        .and_then(|mut file: File| file.write_all(text.as_bytes()))
        .map_err(Error::system(format!("cannot write {}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn made_key_is_private_and_is_removed_when_dropped() {
        let made = MadeCertificate::new("127.0.0.1").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&made.folder), mode(&made.key())), (0o700, 0o600));
        let credentials = Credentials::trusting(made.pem());
        assert_eq!(credentials.roots().unwrap().len(), 1);
        let folder = made.folder.clone();
        drop(made);
        assert!(!folder.exists());
    }

    #[test]
    fn invalid_certificates_and_names_are_refused() {
        let refused = |host, credentials: &Credentials| {
            let refused = Tls::new(host, credentials);
            refused.unwrap_err().to_string()
        };
        let none = refused("host", &Credentials::trusting("nothing"));
        assert!(none.contains("certificates in PEM"), "{none}");
        let made = MadeCertificate::new("127.0.0.1").unwrap();
        let credentials = Credentials::trusting(made.pem());
        let name = refused("no name", &credentials);
        assert!(name.contains("no name"), "{name}");
        let credentials = Credentials {
            identity: Some((made.pem().into(), b"nothing".to_vec())),
            ..credentials
        };
        let key = refused("[::1]", &credentials);
        assert!(key.contains("private key in PEM"), "{key}");
    }

    #[test]
    fn secrets_do_not_show() {
        let credentials = Credentials {
            token: Some("secret".into()),
            ..Credentials::trusting("secret")
        };
        assert!(!format!("{credentials:?}").contains("secret"));
    }
}

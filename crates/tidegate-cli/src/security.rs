//! TLS and credentials of the commands that connect to a server.

use std::{fs, path::PathBuf};

use clap::Args;
use tidegate_client::{Client, ClientBuilder};

use crate::exit::{Exit, Failure};

/// The client's credentials, and the certificates that it trusts.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS and credentials")]
pub(crate) struct CredentialArgs {
    /// Bearer token to send. Other users of this machine can see command lines: prefer the environment or a file.
    #[arg(
        long,
        global = true,
        env = "TIDEGATE_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,

    /// File with the bearer token to send.
    #[arg(long, global = true, value_name = "FILE", env = "TIDEGATE_TOKEN_FILE")]
    token_file: Option<PathBuf>,

    /// Certificates to trust as authorities for the server's certificate, in PEM, for an https:// URL [default: those
    /// that the system trusts].
    #[arg(long, global = true, value_name = "FILE", env = "TIDEGATE_TLS_CA")]
    tls_ca: Option<PathBuf>,

    /// The client's own certificate chain, in PEM.
    #[arg(long, global = true, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,

    /// The private key of that certificate, in PEM.
    #[arg(long, global = true, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
}

impl CredentialArgs {
    /// Returns the same credentials for a benchmark, which reads a token file once.
    #[cfg(target_os = "linux")]
    pub(crate) fn for_benchmark(&self) -> Result<tidegate_bench::Credentials, Failure> {
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(path)) => {
                let token = String::from_utf8_lossy(&read(path)?).into_owned();
                Some(token.trim_end().to_owned())
            }
            (None, None) => None,
        };
        let pair = self.tls_certificate.as_ref().zip(self.tls_key.as_ref());
        let identity =
            pair.map(|(certificate, key)| Ok::<_, Failure>((read(certificate)?, read(key)?)));
        Ok(tidegate_bench::Credentials {
            token,
            ca: self.tls_ca.as_ref().map(read).transpose()?,
            identity: identity.transpose()?,
        })
    }

    /// Returns a client for the server at `url`, with these credentials.
    pub(crate) fn client(&self, url: &str) -> Result<Client, Failure> {
        let mut client = Client::builder(url);
        if let Some(token) = &self.token {
            client = client.token(token);
        }
        if let Some(path) = &self.token_file {
            client = client.token_file(path);
        }
        Ok(self.with_certificates(client)?.connect_lazy()?)
    }

    fn with_certificates(&self, mut client: ClientBuilder) -> Result<ClientBuilder, Failure> {
        if let Some(path) = &self.tls_ca {
            client = client.tls_ca(read(path)?);
        }
        if let (Some(certificate), Some(key)) = (&self.tls_certificate, &self.tls_key) {
            client = client.tls_identity(read(certificate)?, read(key)?);
        }
        Ok(client)
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| {
        Failure::new(
            Exit::Credentials,
            format!("cannot read {}: {error}", path.display()),
        )
    })
}

//! TLS and credentials of the commands that connect to a server.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::Args;
use tidegate_client::{Client, ClientBuilder};

use crate::{
    environment,
    exit::{Exit, Failure},
    stdio,
};

/// Bytes of the largest file of certificates or keys.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The client's credentials, and the certificates that it trusts.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS and credentials")]
pub(crate) struct CredentialArgs {
    /// Bearer token to send. Other users of this machine can see command lines: prefer the environment or a file.
    /// [env: TIDEGATE_TOKEN]
    #[arg(long, global = true, conflicts_with = "token_file")]
    token: Option<String>,

    /// File with the bearer token to send. It is read for each call, so that a token can be renewed.
    /// [env: TIDEGATE_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Certificates to trust as authorities for the server's certificate, in PEM, for an https:// URL [default: those
    /// that the system trusts]. [env: TIDEGATE_TLS_CA]
    #[arg(long, global = true, value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// The client's own certificate chain, in PEM.
    #[arg(long, global = true, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,

    /// The private key of that certificate, in PEM.
    #[arg(long, global = true, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
}

/// Where the token comes from.
enum Token {
    Text(String),
    File(PathBuf),
}

impl CredentialArgs {
    /// Returns the same credentials for a benchmark of the server at `url`, or of one that it starts. It reads a token file
    /// once.
    #[cfg(target_os = "linux")]
    pub(crate) fn for_benchmark(
        &self,
        url: Option<&str>,
    ) -> Result<tidegate_bench::Credentials, Failure> {
        let token = match self.token()? {
            Some(Token::Text(token)) => Some(token),
            Some(Token::File(path)) => {
                let token = String::from_utf8_lossy(&read(&path)?).into_owned();
                Some(token.trim_start_matches('\u{feff}').trim_end().to_owned())
            }
            None => None,
        };
        let pair = self.tls_certificate.as_ref().zip(self.tls_key.as_ref());
        let identity =
            pair.map(|(certificate, key)| Ok::<_, Failure>((read(certificate)?, read(key)?)));
        Ok(tidegate_bench::Credentials {
            token,
            ca: self.authorities(url)?,
            identity: identity.transpose()?,
        })
    }

    /// Returns a client for the server at `url`, with these credentials.
    pub(crate) fn client(&self, url: &str) -> Result<Client, Failure> {
        let mut client = Client::builder(url);
        match self.token()? {
            Some(Token::Text(token)) => client = client.token(token),
            Some(Token::File(path)) => {
                if path
                    .metadata()
                    .is_ok_and(|file| !file.is_file() && !file.is_dir())
                {
                    let path = path.display();
                    stdio::report(format!(
                        "{path} is no regular file: the token is read from it once, and will not be renewed"
                    ));
                }
                if path.is_file() && tidegate_server::leads_to_descriptor(&path) {
                    let path = path.display();
                    stdio::report(format!(
                        "{path} is an open file of a process: a token that takes its place is not seen; name the file itself"
                    ));
                }
                client = client.token_file(path);
            }
            None => {}
        }
        Ok(self.with_certificates(client, url)?.connect_lazy()?)
    }

    /// The token of the command line, or else of the environment.
    fn token(&self) -> Result<Option<Token>, Failure> {
        if let Some(token) = &self.token {
            return Ok(Some(Token::Text(token.clone())));
        }
        if let Some(path) = &self.token_file {
            return Ok(Some(Token::File(path.clone())));
        }
        let token = environment::text(environment::TOKEN)?;
        match (token, environment::path(environment::TOKEN_FILE)) {
            (Some(_), Some(_)) => {
                let (token, file) = (environment::TOKEN, environment::TOKEN_FILE);
                let message = format!(
                    "the environment variables {token} and {file} are both set: unset one, or give --token or --token-file"
                );
                Err(Failure::new(Exit::Usage, message))
            }
            (Some(token), None) if token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(Some(Token::Text(token)))
            }
            (Some(_), None) => {
                let message = format!(
                    "the environment variable {} is no token: it must be printable ASCII without white space, a line end \
                     or a byte order mark; set it anew, or name the file of the token in {}",
                    environment::TOKEN,
                    environment::TOKEN_FILE
                );
                Err(Failure::new(Exit::Usage, message))
            }
            (None, path) => Ok(path.map(Token::File)),
        }
    }

    /// The authorities to trust: those of the command line, or else of the environment, if there is TLS.
    fn authorities(&self, url: Option<&str>) -> Result<Option<Vec<u8>>, Failure> {
        if let Some(path) = &self.tls_ca {
            return read(path).map(Some);
        }
        let Some(path) = environment::path(environment::TLS_CA) else {
            return Ok(None);
        };
        if url.is_none_or(|url| url.starts_with("http://")) {
            // It is for all servers of this user, of which this one needs none.
            let name = environment::TLS_CA;
            tracing::info!("{name} is set, and not used: the connection is without TLS");
            return Ok(None);
        }
        read(&path).map(Some)
    }

    fn with_certificates(
        &self,
        mut client: ClientBuilder,
        url: &str,
    ) -> Result<ClientBuilder, Failure> {
        if let Some(pem) = self.authorities(Some(url))? {
            client = client.tls_ca(pem);
        }
        if let (Some(certificate), Some(key)) = (&self.tls_certificate, &self.tls_key) {
            client = client.tls_identity(read(certificate)?, read(key)?);
        }
        Ok(client)
    }
}

/// Reads a file of certificates, a key or a token.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |problem: &dyn std::fmt::Display| {
        let message = format!("cannot read {}: {problem}", path.display());
        Failure::new(Exit::Credentials, message)
    };
    let file = File::open(path).map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed(&error))?;
    match bytes.len() as u64 {
        0 => Err(failed(&"it is empty")),
        size if size > MAX_FILE => Err(failed(&"it is too large for what it should hold")),
        _ => Ok(bytes),
    }
}

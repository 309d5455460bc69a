//! TLS, credentials and rules, of a server and of those who speak to one.

use std::{fs, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use tidegate_client::{Client, ClientBuilder};
use tidegate_server::{AuthConfig, ClientAuth, JwksUrl, JwtConfig, JwtKeys, TlsConfig};

use crate::{
    args::duration,
    exit::{Exit, Failure},
};

/// The certificate of a server, and who may call it.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS and credentials")]
pub(crate) struct SecurityArgs {
    /// The certificate chain in PEM, the server's own first. This file and all others here are read again when
    /// they change.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,

    /// Its private key in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,

    /// Certificates in PEM of those who may vouch for clients. A client's principal is the first URI or DNS
    /// name of its certificate, else its common name.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_client_ca: Option<PathBuf>,

    /// Whether clients must show a certificate.
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "required",
        requires = "tls_client_ca"
    )]
    tls_client_auth: ClientAuthArg,

    /// Bearer tokens by their hashes: lines as `tidegate token` prints them.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,

    #[command(flatten)]
    jwt: JwtArgs,

    /// What principals may do, in TOML. With credentials of any kind, everything is denied that no rule allows.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,

    /// Take credentials without TLS from beyond this machine, for everyone between to read.
    #[arg(long)]
    insecure: bool,
}

/// What JSON Web Tokens are accepted.
#[derive(Debug, Args)]
struct JwtArgs {
    /// A public key in PEM that tokens may be signed with: RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA). Can
    /// be given several times.
    #[arg(long, value_name = "FILE",  requires_all = ["jwt_issuer", "jwt_audience"])]
    jwt_public_key: Vec<PathBuf>,

    /// A shared secret of 32 bytes or more that tokens may be signed with (HS256). Can be given several times.
    #[arg(long, value_name = "FILE",  requires_all = ["jwt_issuer", "jwt_audience"])]
    jwt_secret: Vec<PathBuf>,

    /// A JSON Web Key Set: a file, or an https:// address, which is looked at every --jwt-refresh.
    #[arg(
        long,
        value_name = "FILE|URL", 
        requires_all = ["jwt_issuer", "jwt_audience"]
    )]
    jwt_keys: Vec<String>,

    /// How often a key set at an address is looked at. A token of an unknown key has it looked at as well, at
    /// most every 10 s.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    jwt_refresh: Duration,

    /// Certificates in PEM of those who may vouch for the address of a key set [default: whom the system
    /// trusts].
    #[arg(long, value_name = "FILE", requires = "jwt_keys")]
    jwt_keys_ca: Option<PathBuf>,

    /// Who must have issued a token: its claim `iss`.
    #[arg(long, value_name = "ISSUER", requires = "jwt_audience")]
    jwt_issuer: Option<String>,

    /// For whom a token must be: its claim `aud`.
    #[arg(long, value_name = "AUDIENCE", requires = "jwt_issuer")]
    jwt_audience: Option<String>,

    /// How far the issuer's clock may be from this one.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    jwt_leeway: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ClientAuthArg {
    /// Without one there is no connection.
    Required,
    /// Without one, calls need a token.
    Optional,
}

/// What a client shows of itself, and whom it trusts.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS and credentials")]
pub(crate) struct CredentialArgs {
    /// The bearer token to send. Others on this machine can see a command line; prefer the environment or a
    /// file.
    #[arg(
        long,
        env = "TIDEGATE_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,

    /// A file with the bearer token to send.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_TOKEN_FILE")]
    token_file: Option<PathBuf>,

    /// Certificates in PEM of those who may vouch for the server, for an https:// URL [default: whom the
    /// system trusts].
    #[arg(long, value_name = "FILE", env = "TIDEGATE_TLS_CA")]
    tls_ca: Option<PathBuf>,

    /// The client's own certificate chain in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,

    /// Its private key in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
}

impl SecurityArgs {
    pub(crate) fn tls(&self) -> Option<TlsConfig> {
        let (certificate, key) = (self.tls_certificate.clone()?, self.tls_key.clone()?);
        let mut tls = TlsConfig::new(certificate, key);
        tls.client_ca.clone_from(&self.tls_client_ca);
        tls.client_auth = match self.tls_client_auth {
            ClientAuthArg::Required => ClientAuth::Required,
            ClientAuthArg::Optional => ClientAuth::Optional,
        };
        Some(tls)
    }

    pub(crate) fn auth(&self) -> AuthConfig {
        AuthConfig {
            tokens: self.tokens.clone(),
            jwt: self.jwt.config(),
            rules_file: self.rules.clone(),
            insecure: self.insecure,
            ..AuthConfig::default()
        }
    }
}

impl JwtArgs {
    fn config(&self) -> Option<JwtConfig> {
        let (issuer, audience) = (self.jwt_issuer.as_ref()?, self.jwt_audience.as_ref()?);
        let mut jwt = JwtConfig::new(issuer, audience);
        jwt.leeway = self.jwt_leeway;
        let public = self.jwt_public_key.iter().cloned().map(JwtKeys::Pem);
        let secrets = self.jwt_secret.iter().cloned().map(JwtKeys::Secret);
        let sets = self.jwt_keys.iter().map(|set| self.key_set(set));
        jwt.keys = public.chain(secrets).chain(sets).collect();
        Some(jwt)
    }

    fn key_set(&self, place: &str) -> JwtKeys {
        if !place.contains("://") {
            return JwtKeys::JwksFile(place.into());
        }
        let mut set = JwksUrl::new(place);
        set.refresh_interval = self.jwt_refresh;
        set.ca.clone_from(&self.jwt_keys_ca);
        JwtKeys::JwksUrl(set)
    }
}

impl CredentialArgs {
    /// A client for the server at `url` that shows these credentials.
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

//! A key set at an address: fetching it.
//!
//! One request, over a connection of its own: `GET`, no redirects, a bounded answer in bounded time.

use std::{error::Error, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{client::conn::http1, rt};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    files::{self, SecurityError},
    jwt::{JwksUrl, JwtKeys, Keys},
    tls,
};

/// The largest key set that is read.
const MAX_BYTES: usize = 1 << 20;

/// How long all of it may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Fetches the key set at one address.
#[derive(Debug)]
pub(crate) struct Fetcher {
    config: JwksUrl,
    host: String,
    port: u16,
    uri: Uri,
    /// `None` without TLS.
    tls: Option<Arc<ClientConfig>>,
}

type Failure = Box<dyn Error + Send + Sync>;

impl Fetcher {
    /// Checks the address, and gets ready to trust whoever may vouch for it.
    pub(crate) fn new(config: JwksUrl) -> Result<Self, SecurityError> {
        let invalid = |problem: &str| SecurityError::invalid(&config.url, problem);
        let uri: Uri = config.url.parse().map_err(|_| invalid("it is not a URL"))?;
        let host = uri.host().ok_or_else(|| invalid("it names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let is_local = host == "localhost"
            || host
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        let (default_port, tls) = match uri.scheme_str() {
            Some("https") => (443, Some(trusting(config.ca.as_ref())?)),
            Some("http") if is_local => (80, None),
            Some("http") => {
                return Err(invalid(
                    "whoever is between could change the keys; use https",
                ));
            }
            _ => return Err(invalid("it must begin with https://")),
        };
        Ok(Self {
            port: uri.port_u16().unwrap_or(default_port),
            host,
            uri,
            tls,
            config,
        })
    }

    pub(crate) fn config(&self) -> &JwksUrl {
        &self.config
    }

    /// Fetches the keys.
    pub(crate) async fn fetch(&self) -> Result<Keys, SecurityError> {
        let fetched = timeout(TIMEOUT, self.get()).await;
        let failed = |problem: String| SecurityError::invalid(&self.config.url, problem);
        let content = fetched
            .map_err(|_| failed(format!("no answer within {TIMEOUT:?}")))?
            .map_err(|error| failed(error.to_string()))?;
        JwtKeys::JwksUrl(self.config.clone()).parse(&content)
    }

    async fn get(&self) -> Result<Bytes, Failure> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match &self.tls {
            None => self.exchange(TokioIo::new(stream)).await,
            Some(config) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let name = ServerName::try_from(self.host.clone())?;
                let stream = connector.connect(name, stream).await?;
                self.exchange(TokioIo::new(stream)).await
            }
        }
    }

    async fn exchange(
        &self,
        io: impl rt::Read + rt::Write + Unpin + Send + 'static,
    ) -> Result<Bytes, Failure> {
        let (mut sender, connection) = http1::handshake(io).await?;
        let authority = self.uri.authority().ok_or("it names no host")?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(header::HOST, authority.as_str())
            .header(header::ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())?;
        let answer = async {
            let response = sender.send_request(request).await?;
            if response.status() != StatusCode::OK {
                return Err(format!("the answer is {}", response.status()).into());
            }
            let body = Limited::new(response.into_body(), MAX_BYTES);
            Ok(body.collect().await?.to_bytes())
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            ended = connection => {
                ended?;
                // All of it has come, or the answer says what has not.
                answer.await
            }
        }
    }
}

fn trusting(ca: Option<&PathBuf>) -> Result<Arc<ClientConfig>, SecurityError> {
    let roots = match ca {
        Some(path) => tls::roots(path, &files::read(path)?)?,
        None => tls::system_roots(),
    };
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has what these versions need")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

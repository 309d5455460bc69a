//! Key sets at addresses: the fetch, and the time for which its keys are trusted.
//!
//! A fetch is one `GET` over a connection of its own. It follows no redirects, and bounds the size of the answer and
//! the time for it.

use std::{
    error::Error,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{client::conn::http1, rt};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    jwt::{JwksUrl, JwtKeys, Keys},
    policy::Policies,
};
use crate::{files::SecurityError, network::tls, reading::read_file};

/// The most bytes of a key set. One key has less than 1 KiB.
const MAX_BYTES: usize = 1 << 20;

/// The time that a fetch may take from the connect to the last byte.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The key sets at addresses, in the order of the configuration.
#[derive(Debug)]
pub(crate) struct KeySets {
    sets: Vec<KeySet>,
    failures: AtomicU64,
}

/// One key set, and the times of its fetches.
#[derive(Debug)]
struct KeySet {
    fetcher: Fetcher,
    /// The time of the last attempt. The lock is held during a fetch, so all calls that need the set wait for one
    /// answer.
    asked_at: tokio::sync::Mutex<Option<Instant>>,
    /// The time of the last fetch that succeeded.
    fetched_at: Mutex<Option<Instant>>,
}

/// The request for the key set at one address.
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

// ===== impl KeySets =====

impl KeySets {
    /// The key sets among `sources`, none of which has been fetched.
    pub(crate) fn new(sources: &[JwtKeys]) -> Result<Self, SecurityError> {
        let sets = sources.iter().filter_map(|source| match source {
            JwtKeys::JwksUrl(set) => Some(KeySet::new(set.clone())),
            _ => None,
        });
        Ok(Self {
            sets: sets.collect::<Result<_, _>>()?,
            failures: AtomicU64::new(0),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.sets.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Whether the keys of every set are trusted.
    pub(crate) fn are_trusted(&self) -> bool {
        self.sets.iter().all(KeySet::is_trusted)
    }

    /// The number of attempts that failed.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Fetches the key sets that were last asked for longer ago than `age` returns for them, one after the other, and
    /// puts their keys in force.
    pub(crate) async fn fetch(&self, policies: &Policies, age: impl Fn(&JwksUrl) -> Duration) {
        for (i, set) in self.sets.iter().enumerate() {
            let mut asked_at = set.asked_at.lock().await;
            let mut age = age(set.fetcher.config());
            if !set.is_trusted() {
                // Its tokens are refused, or soon will be, so it is as urgent as an unknown key.
                age = age.min(set.fetcher.config().unknown_key_interval);
            }
            if asked_at.is_some_and(|at| at.elapsed() < age) {
                continue;
            }
            // Set before the fetch: if the call that asks is cancelled, the next one must not ask again at once.
            *asked_at = Some(Instant::now());
            match set.fetcher.fetch().await {
                Ok(keys) => {
                    set.note_fetched();
                    store(policies, i, keys);
                }
                Err(error) => {
                    self.failures.fetch_add(1, Relaxed);
                    tracing::error!(%error, "cannot fetch a JSON Web Key Set; its previous keys stay in force while they are trusted");
                    if !set.is_trusted() {
                        self.distrust(policies, i);
                    }
                }
            }
        }
    }

    /// Takes the keys of a set out of force, which could not be fetched for longer than they are trusted.
    fn distrust(&self, policies: &Policies, i: usize) {
        if policies.current().fetched[i].is_empty() {
            return;
        }
        let url = &self.sets[i].fetcher.config().url;
        tracing::error!(
            url,
            "keys are no longer trusted, because they could not be fetched again; tokens that they signed are refused"
        );
        policies.amend(|policy| policy.fetched[i] = Arc::default());
    }
}

/// Puts the keys of a set in force.
fn store(policies: &Policies, i: usize, keys: Keys) {
    // A new policy makes every open call check its standing, so the same keys make none.
    if policies.current().fetched[i].fingerprints() != keys.fingerprints() {
        policies.amend(|policy| policy.fetched[i] = Arc::new(keys));
    }
}

impl KeySet {
    fn new(config: JwksUrl) -> Result<Self, SecurityError> {
        Ok(Self {
            fetcher: Fetcher::new(config)?,
            asked_at: tokio::sync::Mutex::default(),
            fetched_at: Mutex::default(),
        })
    }

    /// Whether the last fetch that succeeded was less than `max_age` ago.
    fn is_trusted(&self) -> bool {
        let fetched_at = *self
            .fetched_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let max_age = self.fetcher.config().max_age;
        fetched_at.is_some_and(|at| max_age.is_none_or(|max_age| at.elapsed() < max_age))
    }

    fn note_fetched(&self) {
        *self
            .fetched_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

// ===== impl Fetcher =====

impl Fetcher {
    /// Checks the address, and reads the authorities that may sign its certificate.
    pub(crate) fn new(config: JwksUrl) -> Result<Self, SecurityError> {
        let invalid = |problem: &str| SecurityError::invalid(&config.url, problem);
        let uri: Uri = config.url.parse().map_err(|_| invalid("not a URL"))?;
        let host = uri.host().ok_or_else(|| invalid("names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let is_local = host == "localhost"
            || host
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        let (default_port, tls) = match uri.scheme_str() {
            Some("https") => (443, Some(client_config(config.ca.as_ref())?)),
            Some("http") if is_local => (80, None),
            Some("http") => {
                return Err(invalid(
                    "anyone on the path could replace the keys; use https",
                ));
            }
            _ => return Err(invalid("must begin with https://")),
        };
        Ok(Self {
            port: uri.port_u16().unwrap_or(default_port),
            host,
            uri,
            tls,
            config,
        })
    }

    fn config(&self) -> &JwksUrl {
        &self.config
    }

    /// Fetches and parses the key set.
    async fn fetch(&self) -> Result<Keys, SecurityError> {
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
        let authority = self.uri.authority().ok_or("names no host")?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(header::HOST, authority.as_str())
            .header(header::ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())?;
        let answer = async {
            let response = sender.send_request(request).await?;
            if response.status() != StatusCode::OK {
                return Err(format!("the server answered {}", response.status()).into());
            }
            let body = Limited::new(response.into_body(), MAX_BYTES);
            Ok(body.collect().await?.to_bytes())
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            ended = connection => {
                ended?;
                // The whole answer may have come before the end. If not, it fails with the reason.
                answer.await
            }
        }
    }
}

/// TLS that trusts the authorities in `ca`, or those of the system.
fn client_config(ca: Option<&PathBuf>) -> Result<Arc<ClientConfig>, SecurityError> {
    let roots = match ca {
        Some(path) => tls::roots(path, &read_file(path)?)?,
        None => tls::system_roots(),
    };
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has what these versions need")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

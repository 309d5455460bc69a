//! Key sets at addresses: the fetch, and the time for which its keys are trusted.
//!
//! A fetch is one `GET` over a connection of its own. It follows no redirects: whoever could redirect it could choose the
//! keys, and the address that was configured is the one that is trusted. It uses no proxy. It bounds the size of the
//! answer and the time for it, and says at what it failed.

use std::{
    collections::BTreeSet,
    env, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri, header, response};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1, rt};
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    jwt::{JwksUrl, JwtKeys, Keys},
    policy::Policies,
    refusal::quoted,
};
use crate::{
    error::in_full,
    files::{Files, SecurityError, aside},
    network::tls,
};

/// The most bytes of a key set. One key has less than 1 KiB.
const MAX_BYTES: usize = 1 << 20;

/// The most bytes of an answer that is no key set. Its first words are quoted.
const MAX_REFUSAL_BYTES: usize = 4 << 10;

/// The time that a fetch may take from the look-up of the host to the last byte.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The name of the program to the server that it fetches from. Firewalls refuse requests without one.
const USER_AGENT: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"));

/// The variables by which other programs are told of a proxy.
const PROXY_VARIABLES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

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
    /// The authorities of a file, in place of those that `tls` trusts.
    authorities: Option<Arc<Authorities>>,
}

/// An answer that was read to its end.
struct Answer {
    head: response::Parts,
    body: Vec<u8>,
    /// Whether the body was longer than may be, and is cut.
    is_cut: bool,
}

/// The authorities in a file, which is read again when it has changed.
#[derive(Debug)]
struct Authorities {
    path: PathBuf,
    /// The faults that the file had when it was read first, for which it is taken all the same.
    faults: Vec<String>,
    file: Files,
    in_force: Mutex<Arc<ClientConfig>>,
}

// ===== impl KeySets =====

impl KeySets {
    /// The faults of the files of authorities, each once.
    pub(crate) fn faults_of_authorities(&self) -> BTreeSet<String> {
        let authorities = self
            .sets
            .iter()
            .filter_map(|set| set.fetcher.authorities.as_ref());
        authorities.flat_map(|file| file.faults.clone()).collect()
    }

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
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            // The address is logged.
            let problem = "holds a user or password; key sets are public, leave them out";
            let shown = config.url.rsplit('@').next().unwrap_or_default();
            return Err(SecurityError::invalid(shown, problem));
        }
        let host = uri.host().ok_or_else(|| invalid("names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let is_local = host == "localhost"
            || host
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        let mut authorities = None;
        let (default_port, tls) = match uri.scheme_str() {
            Some("https") => {
                let read = config.ca.as_deref().map(Authorities::new).transpose()?;
                authorities = read.map(Arc::new);
                let trusted = match &authorities {
                    Some(authorities) => authorities.in_force(),
                    None => client_config_of(tls::system_roots()),
                };
                (443, Some(trusted))
            }
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
            authorities,
            config,
        })
    }

    fn config(&self) -> &JwksUrl {
        &self.config
    }

    /// Fetches and parses the key set.
    async fn fetch(&self) -> Result<Keys, SecurityError> {
        let answer = self.get().await.map_err(|problem| {
            let proxy = PROXY_VARIABLES
                .into_iter()
                .find(|name| env::var_os(name).is_some());
            let problem = match proxy {
                Some(name) => format!("{problem} ({name} is set, and the server uses no proxy)"),
                None => problem,
            };
            SecurityError::invalid(&self.config.url, problem)
        })?;
        JwtKeys::JwksUrl(self.config.clone())
            .parse(&answer.body)
            .map_err(|error| match error {
                SecurityError::Invalid { path, problem } => {
                    SecurityError::invalid(path, format!("{problem}; {}", answer.described()))
                }
                other => other,
            })
    }

    /// The TLS of a fetch, with the authorities as they are now.
    async fn client_config(&self) -> Option<Arc<ClientConfig>> {
        let Some(authorities) = &self.authorities else {
            return self.tls.clone();
        };
        let authorities = Arc::clone(authorities);
        let read = aside(move || {
            authorities.read_again();
            authorities.in_force()
        });
        read.await.or_else(|| self.tls.clone())
    }

    /// Asks for the key set.
    ///
    /// # Errors
    /// The failure, and the way to correct it.
    async fn get(&self) -> Result<Answer, String> {
        let deadline = Instant::now() + TIMEOUT;
        let place = format!("{}:{}", self.host, self.port);
        let found = in_time(deadline, "for the address of the host", async {
            let found = lookup_host((self.host.as_str(), self.port)).await;
            found.map(Iterator::collect::<Vec<_>>)
        });
        let addresses = found
            .await?
            .map_err(|error| format!("cannot look up the host {}: {error}", self.host))?;
        let stream = in_time(
            deadline,
            "for a connection",
            TcpStream::connect(&addresses[..]),
        )
        .await?
        .map_err(|error| format!("cannot connect to {place}: {error}"))?;
        match self.client_config().await {
            None => self.exchange(TokioIo::new(stream), deadline).await,
            Some(config) => {
                let connector = TlsConnector::from(config);
                let name = ServerName::try_from(self.host.clone()).map_err(|_| {
                    format!("{} is no name that a certificate could have", self.host)
                })?;
                let handshake = connector.connect(name, stream);
                let stream = in_time(deadline, "for the TLS handshake", handshake)
                    .await?
                    .map_err(|error| format!("no TLS with {place}: {}", explained(&error)))?;
                self.exchange(TokioIo::new(stream), deadline).await
            }
        }
    }

    async fn exchange(
        &self,
        io: impl rt::Read + rt::Write + Unpin + Send + 'static,
        deadline: Instant,
    ) -> Result<Answer, String> {
        let of_http = |error: hyper::Error| {
            let told = in_full(&error);
            match error.is_parse() {
                true => format!("its answer is no HTTP/1.1 ({told}); is it a port for TLS?"),
                false => format!("the exchange failed: {told}"),
            }
        };
        let (mut sender, connection) = http1::handshake(io).await.map_err(of_http)?;
        let authority = self.uri.authority().ok_or("names no host")?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(header::HOST, authority.as_str())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, "application/json")
            .header(header::ACCEPT_ENCODING, "identity")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = async {
            let response = in_time(deadline, "for an answer", sender.send_request(request));
            let (head, body) = response.await?.map_err(of_http)?.into_parts();
            let max = match head.status {
                StatusCode::OK => MAX_BYTES,
                _ => MAX_REFUSAL_BYTES,
            };
            let read = in_time(deadline, "for the end of the answer", read(body, max)).await;
            match (head.status, read) {
                (StatusCode::OK, Ok(Ok((body, false)))) => Ok(Answer {
                    head,
                    body,
                    is_cut: false,
                }),
                (StatusCode::OK, Ok(Ok((_, true)))) => {
                    Err(format!("its answer is longer than {MAX_BYTES} bytes"))
                }
                (StatusCode::OK, Ok(Err(error))) => Err(of_http(error)),
                (StatusCode::OK, Err(problem)) => Err(problem),
                // The status says enough where the rest does not come.
                (_, read) => {
                    let (body, is_cut) = read.ok().and_then(Result::ok).unwrap_or_default();
                    Err(Answer { head, body, is_cut }.refusal())
                }
            }
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            ended = connection => {
                ended.map_err(of_http)?;
                // The whole answer may have come before the end. If not, it fails with the reason.
                answer.await
            }
        }
    }
}

// ===== impl Answer =====

impl Answer {
    /// The words for a status other than OK.
    fn refusal(&self) -> String {
        let status = self.head.status;
        let location = self.head.headers.get(header::LOCATION);
        match location.filter(|_| status.is_redirection()) {
            Some(location) => format!(
                "the server answered {status}, to {}, and redirects are not followed: set the address of the key set \
                 itself",
                quoted(&String::from_utf8_lossy(location.as_bytes()))
            ),
            None => format!("the server answered {status}; {}", self.described()),
        }
    }

    /// The words for the answer, so that whoever reads them knows who gave it.
    fn described(&self) -> String {
        let header = |name: header::HeaderName| described_header(&self.head.headers, &name);
        let about = format!(
            "{}{}",
            header(header::CONTENT_TYPE),
            header(header::CONTENT_ENCODING)
        );
        if self.body.trim_ascii().is_empty() {
            return format!("the answer is empty{about}");
        }
        // Pages begin with a lot of space, and a quotation is short.
        let words = String::from_utf8_lossy(&self.body);
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        let more = if self.is_cut { ", and more" } else { "" };
        format!("the answer begins with {}{more}{about}", quoted(&words))
    }
}

fn described_header(headers: &HeaderMap, name: &header::HeaderName) -> String {
    headers.get(name).map_or_else(String::new, |value| {
        format!(
            ", {name} {}",
            quoted(&String::from_utf8_lossy(value.as_bytes()))
        )
    })
}

/// Reads a body, and cuts it beyond `max` bytes. Returns whether there was more.
async fn read(mut body: Incoming, max: usize) -> Result<(Vec<u8>, bool), hyper::Error> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        let room = max - read.len();
        read.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            return Ok((read, true));
        }
    }
    Ok((read, false))
}

/// The output of `future`, or an error that says what was waited for.
async fn in_time<T>(
    deadline: Instant,
    what: &str,
    future: impl Future<Output = T>,
) -> Result<T, String> {
    let output = timeout_at(deadline, future).await;
    output.map_err(|_| format!("it took longer than {TIMEOUT:?} to wait {what}"))
}

/// The error of a handshake, with the way to correct it where it is known.
fn explained(error: &io::Error) -> String {
    let of_tls = error.get_ref().and_then(|error| error.downcast_ref());
    let hint = match of_tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "; no trusted authority signed its certificate: set `auth.jwt.key_set_ca` to one that did"
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "; use the name that its certificate has",
        Some(rustls::Error::InvalidMessage(_)) => "; does it speak TLS on this port?",
        _ => "",
    };
    format!("{error}{hint}")
}

// ===== impl Authorities =====

impl Authorities {
    /// Reads the file.
    fn new(path: &Path) -> Result<Self, SecurityError> {
        let file = Files::new([path.to_owned()]);
        let content = file.read(true).and_then(|mut contents| contents.pop());
        let content = content.expect("a forced read has contents")?;
        let roots = tls::roots(path, &content)?;
        Ok(Self {
            path: path.to_owned(),
            faults: tls::faults_of_roots(path, &content),
            file,
            in_force: Mutex::new(client_config_of(roots)),
        })
    }

    /// Reads the file again if it has changed. Blocks.
    fn read_again(&self) {
        let Some(content) = self
            .file
            .read(false)
            .and_then(|mut contents| contents.pop())
        else {
            return;
        };
        let read = content.and_then(|content| Ok((tls::roots(&self.path, &content)?, content)));
        match read {
            Ok((roots, content)) => {
                for fault in tls::faults_of_roots(&self.path, &content) {
                    tracing::warn!(setting = "auth.jwt.key_set_ca", "{fault}");
                }
                let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
                *in_force = client_config_of(roots);
            }
            Err(error) => tracing::error!(
                error = %error.with_cause(),
                "cannot read the authorities of a key set again; the previous ones stay in force"
            ),
        }
    }

    fn in_force(&self) -> Arc<ClientConfig> {
        let in_force = self.in_force.lock();
        Arc::clone(&in_force.unwrap_or_else(PoisonError::into_inner))
    }
}

/// TLS that trusts these authorities.
fn client_config_of(roots: RootCertStore) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has what these versions need")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, Issuer, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
    use tokio::{
        io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
        net::TcpListener,
        sync::oneshot,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const KEY: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn ok(body: &str) -> String {
        answer("200 OK", "", body)
    }

    fn answer(status: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}")
    }

    /// Reads a request, answers with `answer`, and holds the connection until the peer is gone.
    async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) -> String {
        let mut request = vec![0; 4 << 10];
        let length = stream.read(&mut request).await.unwrap_or(0);
        request.truncate(length);
        // The peer may be gone before it has read everything.
        let _ = stream.write_all(answer).await;
        let _ = stream.flush().await;
        let _ = stream.read(&mut [0]).await;
        String::from_utf8(request).unwrap()
    }

    /// Fetches from a server that gives `answer`. Returns the outcome and the request.
    async fn fetched(answer: impl Into<Vec<u8>>) -> (Result<Keys, String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys?a=b", listener.local_addr().unwrap());
        let answer = answer.into();
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = tell.send(serve(stream, &answer).await);
        });
        let fetcher = Fetcher::new(JwksUrl::new(url)).unwrap();
        let keys = fetcher.fetch().await.map_err(|error| error.to_string());
        (keys, told.await.unwrap())
    }

    #[track_caller]
    fn fails_with(found: Result<Keys, String>, causes: &[&str]) {
        let error = found.expect_err("fetched");
        for cause in causes {
            assert!(error.contains(cause), "{error:?} does not say {cause:?}");
        }
        assert!(
            error.len() < 800 && !error.contains(char::is_control),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_request_says_who_asks_and_for_what() {
        let (keys, request) = fetched(ok(KEY)).await;
        keys.unwrap();
        assert!(
            request.starts_with("GET /keys?a=b HTTP/1.1\r\nhost: 127.0.0.1:"),
            "{request}"
        );
        let agent = format!("\r\nuser-agent: tidegate/{}\r\n", env!("CARGO_PKG_VERSION"));
        assert!(request.contains(&agent), "{request}");
        assert!(
            request.contains("\r\naccept: application/json\r\n"),
            "{request}"
        );
    }

    #[tokio::test]
    async fn answers_in_other_clothes_are_taken() {
        let marked = format!("\u{feff}{KEY}");
        let chunked = format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{KEY}\r\n0\r\n\r\n",
            KEY.len()
        );
        for answer in [
            ok(&marked),
            chunked,
            answer("200 Fine", "content-type: text/plain\r\n", KEY),
        ] {
            fetched(answer).await.0.unwrap();
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_as_it_was_given() {
        let html = "content-type: text/html\r\n";
        let page = format!(
            "<html>\n\n  <title>Blocked\u{1b}[31m</title>{}",
            "x".repeat(100_000)
        );
        for (answer, causes) in [
            (
                answer("403 Forbidden", html, &page),
                &[
                    "403 Forbidden",
                    "<html> <title>Blocked",
                    "text/html",
                    "bytes more",
                ][..],
            ),
            (
                answer("503 Service Unavailable", "", ""),
                &["503", "is empty"],
            ),
            (answer("204 No Content", "", ""), &["204"]),
            (
                answer(
                    "302 Found",
                    "location: https://elsewhere.example/keys\r\n",
                    "moved",
                ),
                &[
                    "302 Found",
                    r#""https://elsewhere.example/keys""#,
                    "redirects are not followed",
                    "set the address",
                ],
            ),
            (answer("301 Moved Permanently", "", ""), &["301"]),
        ] {
            fails_with(fetched(answer).await.0, causes);
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_no_key_set_is_described() {
        let captive = answer(
            "200 OK",
            "content-type: text/html\r\n",
            "<!doctype html> Please log in",
        );
        let discovery = r#"{"issuer":"https://a","jwks_uri":"https://a.example/keys"}"#;
        let others =
            r#"{"keys":[{"kty":"EC","crv":"P-384"},{"kty":"RSA","use":"enc"},{"kty":7},9,8,7]}"#;
        for (answer, causes) in [
            (
                captive,
                &[
                    "not a JSON Web Key Set",
                    "<!doctype html> Please log in",
                    "text/html",
                ][..],
            ),
            (ok(""), &["not a JSON Web Key Set", "is empty"]),
            (ok("[]"), &["no list `keys`"]),
            (ok(r#"{"keys":{}}"#), &["no list `keys`"]),
            (
                ok(discovery),
                &["configuration of an issuer", "https://a.example/keys"],
            ),
            (ok(r#"{"keys":[]}"#), &["contains no key", "none at all"]),
            (
                ok(others),
                &[
                    "contains no key",
                    r#"kty "EC" crv "P-384""#,
                    r#"use "enc""#,
                    "and 2 more",
                ],
            ),
            (
                answer("200 OK", "content-encoding: gzip\r\n", "\u{1f}\u{8b}"),
                &["not a JSON Web Key Set", "content-encoding \"gzip\""],
            ),
            (ok(&"[".repeat(1 << 19)), &["recursion limit"]),
            (
                ok(&" ".repeat((1 << 20) + 1)),
                &["longer than 1048576 bytes"],
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n".to_owned() + KEY,
                &["the exchange failed"],
            ),
            ("SSH-2.0-OpenSSH_9.2\r\n".into(), &["no HTTP/1.1"]),
            (
                "\u{15}\u{3}\u{1}\u{0}\u{2}\u{2}F".into(),
                &["no HTTP/1.1", "port for TLS"],
            ),
        ] {
            fails_with(fetched(answer).await.0, causes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_is_given_up_and_told_where_it_stood() {
        for (given, cause) in [
            ("", "to wait for an answer"),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{",
                "to wait for the end of the answer",
            ),
            // A refusal is told without its body.
            (
                "HTTP/1.1 403 Forbidden\r\ncontent-length: 99\r\n\r\n<",
                "403 Forbidden",
            ),
        ] {
            fails_with(fetched(given).await.0, &[cause]);
        }
    }

    /// Fetches over TLS from a server whose certificate has this name.
    async fn fetched_by_tls(name: &str, is_trusted: bool) -> Result<Keys, String> {
        let authority = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&authority).unwrap();
        let issuer = Issuer::new(params, authority);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.into()]).unwrap();
        let chain = vec![params.signed_by(&key, &issuer).unwrap().der().clone()];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(stream, ok(KEY).as_bytes()).await;
            }
        });
        let mut fetcher =
            Fetcher::new(JwksUrl::new(format!("https://localhost:{port}/keys"))).unwrap();
        if is_trusted {
            let mut roots = RootCertStore::empty();
            roots.add(root.der().clone()).unwrap();
            fetcher.tls = Some(client_config_of(roots));
        }
        fetcher.fetch().await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_failed_handshake_is_told_with_its_cause() {
        fetched_by_tls("localhost", true).await.unwrap();
        let untrusted = fetched_by_tls("localhost", false).await;
        fails_with(untrusted, &["UnknownIssuer", "auth.jwt.key_set_ca"]);
        let other_name = fetched_by_tls("other.example", true).await;
        fails_with(other_name, &["not valid for name", "other.example"]);
        // A server without TLS.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream, ok(KEY).as_bytes()).await;
        });
        let fetcher = Fetcher::new(JwksUrl::new(format!("https://localhost:{port}/keys"))).unwrap();
        let plain = fetcher.fetch().await.map_err(|error| error.to_string());
        fails_with(plain, &["does it speak TLS"]);
    }

    #[tokio::test]
    async fn authorities_are_read_again_when_their_file_changes() {
        let pem = || {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params
                .self_signed(&KeyPair::generate().unwrap())
                .unwrap()
                .pem()
        };
        let path = env::temp_dir().join(format!("tidegate-authorities-{}", std::process::id()));
        std::fs::write(&path, pem()).unwrap();
        let mut set = JwksUrl::new("https://localhost/keys");
        set.ca = Some(path.clone());
        let fetcher = Fetcher::new(set).unwrap();
        let now = async || fetcher.client_config().await.unwrap();
        let first = now().await;
        assert!(Arc::ptr_eq(&first, &now().await), "it was not changed");
        std::fs::write(&path, "none").unwrap();
        assert!(Arc::ptr_eq(&first, &now().await), "the last good ones stay");
        std::fs::write(&path, pem()).unwrap();
        assert!(!Arc::ptr_eq(&first, &now().await), "the new ones hold");
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test]
    async fn a_host_that_cannot_be_reached_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        for (url, causes) in [
            (
                format!("http://{address}/"),
                &["cannot connect to 127.0.0.1:", "refused"][..],
            ),
            (
                "https://no-such-host.invalid/".into(),
                &["cannot look up the host no-such-host.invalid"],
            ),
        ] {
            let fetcher = Fetcher::new(JwksUrl::new(url)).unwrap();
            let failed = fetcher.fetch().await.map_err(|error| error.to_string());
            fails_with(failed, causes);
        }
    }

    #[test]
    fn an_address_that_cannot_be_used_is_refused() {
        for (url, cause) in [
            (
                "https://user:secret@issuer.example/keys",
                "holds a user or password",
            ),
            ("http://issuer.example/keys", "use https"),
            ("ftp://issuer.example/keys", "must begin with https://"),
            ("issuer.example", "must begin with https://"),
            ("https://", "not a URL"),
            ("", "not a URL"),
        ] {
            let error = Fetcher::new(JwksUrl::new(url)).unwrap_err().to_string();
            assert!(error.contains(cause), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}

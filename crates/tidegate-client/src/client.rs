//! The client: endpoint, credentials, connections and their settings.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;
use tidegate_proto::v1::{NewEvent, PublishRequest, PublishResponse};
use tonic::transport::Endpoint;

use crate::{
    Admin, Error, Publisher, PublisherOptions, SubscribeOptions, Subscription,
    connector::{Connection, Connector},
    credentials::Credentials,
    tls::Tls,
};

/// The connection's window, as a multiple of the stream's.
///
/// h2 charges `256 - length` for each unread DATA frame below 256 bytes, and closes the connection when half of its
/// window is used up. The smallest response takes more than 16 bytes, so a stream window of such responses is charged
/// less than 16 stream windows, which is half of 32: h2 never takes a reader that pauses for an attacker.
const CONNECTION_WINDOW_FACTOR: u32 = 32;

/// Longer than any connection lives: a time-out that does not happen.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A client of one server.
///
/// Cheap to clone. Clones share one connection for [`publish`](Self::publish) and [`admin`](Self::admin); every
/// [`Subscription`] and every [`Publisher`] opens its own.
#[derive(Clone, Debug)]
pub struct Client {
    connector: Connector,
    /// The connection for unary calls. Connects on first use, and again after it has broken.
    connection: Connection,
}

/// Settings of a [`Client`]. Every setting has a default.
#[derive(Clone)]
pub struct ClientBuilder {
    endpoint: String,
    stream_window: u32,
    connect_timeout: Duration,
    keep_alive_interval: Duration,
    keep_alive_timeout: Duration,
    max_message_bytes: usize,
    token: Option<String>,
    token_file: Option<PathBuf>,
    tls_ca: Option<Vec<u8>>,
    /// The chain of certificates, and the private key.
    tls_identity: Option<(Vec<u8>, Vec<u8>)>,
}

// ===== impl Client =====

impl Client {
    /// Creates a client for the server at `endpoint`, such as `http://127.0.0.1:50051`, with default settings.
    ///
    /// Connects on first use, and so succeeds if there is no server.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`] if `endpoint` is not an `http` or `https` URL, and no `unix:` and a path.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn connect_lazy(endpoint: impl Into<String>) -> Result<Self, Error> {
        Self::builder(endpoint).connect_lazy()
    }

    /// Returns the default settings for the server at `endpoint`, such as `http://127.0.0.1:50051`, or
    /// `unix:/run/tidegate.sock` for the file of a socket.
    pub fn builder(endpoint: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            endpoint: endpoint.into(),
            stream_window: 256 * 1024,
            connect_timeout: Duration::from_secs(10),
            keep_alive_interval: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(10),
            max_message_bytes: 64 * 1024 * 1024,
            token: None,
            token_file: None,
            tls_ca: None,
            tls_identity: None,
        }
    }

    /// Creates a subscription. It connects when it is first polled.
    ///
    /// Its first update, [`Update::Subscribed`](crate::Update::Subscribed), says that the server has registered it. A
    /// live subscription gets the events published after that: wait for it before you publish events that the
    /// subscription must see.
    ///
    /// ```no_run
    /// use tidegate_client::{Client, SubscribeOptions, Update};
    ///
    /// # async fn run() -> Result<(), tidegate_client::Error> {
    /// let client = Client::connect_lazy("http://127.0.0.1:50051")?;
    /// let mut orders = client.subscribe(SubscribeOptions::new(["orders.>"]).max_events(1_000));
    /// while let Some(update) = orders.next().await {
    ///     match update? {
    ///         Update::Event(event) => println!("{}: {:?}", event.topic, event.payload),
    ///         // This program fell more than 1,000 events behind, and the server dropped the oldest. Every event
    ///         // after the gap is newer than the events in it: rebuild state here, or accept the loss.
    ///         Update::Gap(gap) => eprintln!(
    ///             "lost {} events, sequences {} to {}: {:?}",
    ///             gap.count, gap.first_sequence, gap.last_sequence, gap.reason(),
    ///         ),
    ///         Update::Reconnecting { status, retry_in, .. } => {
    ///             eprintln!("{}; trying again in {retry_in:?}", status.message());
    ///         }
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn subscribe(&self, options: SubscribeOptions) -> Subscription {
        Subscription::new(self.connector.clone(), options)
    }

    /// Publishes one batch of events, in order. The server applies the whole batch or nothing. Never retried.
    ///
    /// The server limits a batch, by default to 1,000 events and 4 MiB, and each event to 1 MiB. Publishing does not
    /// wait for subscribers. The call has no deadline of its own, and waits for as long as the connection lives.
    ///
    /// ```no_run
    /// use tidegate_client::{Client, NewEvent};
    ///
    /// # async fn run() -> Result<(), tidegate_client::Error> {
    /// let client = Client::connect_lazy("http://127.0.0.1:50051")?;
    /// let response = client
    ///     .publish(vec![NewEvent {
    ///         topic: "orders.eu.created".into(),
    ///         payload: "order 17".into(),
    ///         ..NewEvent::default()
    ///     }])
    ///     .await?;
    /// println!("sequence {}", response.first_sequence);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::PermissionDenied`], [`Error::ResourceExhausted`] and the like if the server
    /// refused the batch: nothing of it is applied. After [`Error::Unavailable`] it is unknown whether the batch was
    /// applied: publish it again only if subscribers may see it twice.
    ///
    /// # Cancel safety
    /// Not cancel safe: the server may apply the batch after the future was dropped.
    pub async fn publish(&self, events: Vec<NewEvent>) -> Result<PublishResponse, Error> {
        self.connector
            .event_service(self.connection.clone())
            .publish(PublishRequest { events })
            .await
            .map(tonic::Response::into_inner)
            .map_err(Error::from_status)
    }

    /// Creates a publisher for many events, which it batches on one stream. It connects at once.
    ///
    /// ```no_run
    /// use tidegate_client::{Client, NewEvent, PublisherOptions};
    ///
    /// # async fn run() -> Result<(), tidegate_client::Error> {
    /// let client = Client::connect_lazy("http://127.0.0.1:50051")?;
    /// let mut publisher = client.publisher(PublisherOptions::default());
    /// for number in 0..100_000u32 {
    ///     let event = NewEvent {
    ///         topic: "numbers".into(),
    ///         payload: number.to_string().into(),
    ///         ..NewEvent::default()
    ///     };
    ///     if publisher.send(event).await.is_err() {
    ///         break; // `finish` returns the reason.
    ///     }
    /// }
    /// match publisher.finish().await {
    ///     Ok(count) => println!("{count} events published"),
    ///     Err(failure) => eprintln!("{failure}: {}", failure.error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn publisher(&self, options: PublisherOptions) -> Publisher {
        Publisher::new(self.connector.clone(), options)
    }

    /// Returns a client of the server's admin service, on the connection for unary calls.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.connector.admin_service(self.connection.clone()))
    }
}

// ===== impl ClientBuilder =====

impl ClientBuilder {
    /// Sets how many bytes the server may send on a stream before the client reads them. Default: 256 KiB; at most
    /// 2 GiB.
    ///
    /// The server can no longer drop these bytes when a reader falls behind. A larger window means older events for a
    /// slow reader; a smaller one means less throughput over long distances, which is the window divided by the
    /// round-trip time. The connection's window is 32 times as large. That costs no memory, since a connection carries
    /// one stream, and keeps h2 from closing the connection over many small frames.
    #[must_use]
    pub fn stream_window(mut self, bytes: u32) -> Self {
        self.stream_window = bytes;
        self
    }

    /// Sets how long connecting may take, TLS handshake and the first bytes of HTTP/2 included, which a server sends at once.
    /// Default: 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the HTTP/2 keepalive: the client pings when nothing has come for `interval` (default: 20 s), and drops a
    /// connection on which no byte moves for `timeout` (default: 10 s) beyond that. This detects peers that vanished
    /// without closing. A slow link is no reason to drop a connection, as long as bytes move on it.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keep_alive_interval = interval;
        self.keep_alive_timeout = timeout;
        self
    }

    /// Sets the largest message to accept from the server, in bytes. A larger one ends its stream, or
    /// its call, with [`Error::ResponseTooLarge`]. Default: 64 MiB,
    /// which is 64 times the largest event that a server accepts by default.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// Sets a bearer token to send with each call. Without TLS, anyone on the path can read and use it. Default: none.
    ///
    /// Excludes [`token_file`](Self::token_file).
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Sets a file with the bearer token to send. The client reads it for each call, so that a token can be renewed: a
    /// subscription whose token expires resumes with the token that the file has then. A path that is no regular file, such
    /// as a pipe, is read once, when the client is made. Default: none.
    ///
    /// Excludes [`token`](Self::token).
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token_file = Some(path.into());
        self
    }

    /// Sets the certificates to trust as authorities for the server's certificate, in PEM, for an `https` endpoint.
    /// Default: the certificates that the system trusts.
    #[must_use]
    pub fn tls_ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls_ca = Some(pem.into());
        self
    }

    /// Sets the client's own certificate chain and its private key, in PEM, for an `https` endpoint. Default: none.
    #[must_use]
    pub fn tls_identity(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.tls_identity = Some((certificate.as_ref().to_vec(), key.as_ref().to_vec()));
        self
    }

    /// Creates the client. It connects on first use, and so succeeds if there is no server.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`] if the endpoint is not an `http` or `https` URL, and no `unix:` and a path, and
    /// [`Error::InvalidCredentials`] if the token or the certificates cannot be used, or the token file cannot be read.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn connect_lazy(self) -> Result<Client, Error> {
        const MAX_WINDOW: u32 = (1 << 31) - 1;
        let stream_window = self.stream_window.min(MAX_WINDOW);
        let connection_window = stream_window
            .saturating_mul(CONNECTION_WINDOW_FACTOR)
            .min(MAX_WINDOW);
        let credentials = self.credentials()?;
        let endpoint = self.parse_endpoint()?;
        let server = endpoint.uri().clone();
        let tls = self.tls(&server)?;
        let endpoint = match tls {
            Some(_) => without_tls(&server).unwrap_or(endpoint),
            None => endpoint,
        };
        let endpoint = endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keep_alive_interval)
            // The answer to a ping waits behind all that was sent before it, so hyper would take a slow link for a
            // dead one. The connection itself decides, by its bytes.
            .keep_alive_timeout(NEVER)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(connection_window);
        let connector = Connector {
            endpoint,
            server,
            tls,
            credentials,
            max_message_bytes: self.max_message_bytes,
            keep_alive_interval: self.keep_alive_interval,
            life_limit: self
                .keep_alive_interval
                .saturating_add(self.keep_alive_timeout),
            socket_file: self.socket_file().map(Into::into),
        };
        Ok(Client {
            connection: connector.connect_lazy(),
            connector,
        })
    }

    fn credentials(&self) -> Result<Credentials, Error> {
        match (&self.token, &self.token_file) {
            (None, None) => Ok(Credentials::default()),
            (Some(token), None) => Credentials::token(token),
            (None, Some(path)) => Credentials::token_file(path),
            (Some(_), Some(_)) => {
                let problem = "both a token and a token file are set; give one of them";
                Err(Error::InvalidCredentials(problem.into()))
            }
        }
    }

    /// Returns the TLS for a server, if its address is of `https`.
    fn tls(&self, server: &Uri) -> Result<Option<Tls>, Error> {
        if server.scheme_str() == Some("http") {
            return match self.tls_ca.is_some() || self.tls_identity.is_some() {
                true => Err(Error::InvalidCredentials(
                    "certificates need an https endpoint, and this one is http".into(),
                )),
                false => Ok(None),
            };
        }
        let host = server.host().unwrap_or_default();
        let tls = Tls::new(host, self.tls_ca.as_deref(), self.tls_identity.as_ref());
        tls.map(Some).map_err(|problem| {
            Error::InvalidCredentials(format!("the certificates cannot be used: {problem}"))
        })
    }

    /// Path of the file of a socket, if the endpoint is one: `unix:/path`, or `unix:///path`.
    fn socket_file(&self) -> Option<&Path> {
        let path = self.endpoint.strip_prefix("unix:")?;
        Some(Path::new(path.strip_prefix("//").unwrap_or(path)))
    }

    fn parse_endpoint(&self) -> Result<Endpoint, Error> {
        let invalid = |reason: &str| Error::InvalidEndpoint {
            endpoint: self.endpoint.clone(),
            reason: reason.into(),
        };
        if let Some(path) = self.socket_file() {
            return match path.is_absolute() {
                // The name of the server is that of this machine: a path is none.
                true => Ok(Endpoint::from_static("http://localhost")),
                false => Err(invalid(
                    "it must have the whole path, such as unix:/run/tidegate.sock",
                )),
            };
        }
        let endpoint =
            Endpoint::from_shared(self.endpoint.clone()).map_err(|_| invalid("it is not a URL"))?;
        let uri = endpoint.uri();
        match uri.scheme_str() {
            Some("http" | "https") => {}
            _ => return Err(invalid("it must begin with https://, http:// or unix:")),
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(invalid("it has no host"));
        }
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(invalid(
                "it must have no user or password: a token says who the client is",
            ));
        }
        // Calls have paths of their own, so this one would be left out. A fragment is no part of what was parsed.
        if !["", "/"].contains(&uri.path()) || uri.query().is_some() || self.endpoint.contains('#')
        {
            return Err(invalid(
                "it must end with the host and the port: take the path away",
            ));
        }
        Ok(endpoint)
    }
}

/// The endpoint for tonic, which must not do TLS: the same address of `http`, with requests as to the address itself.
fn without_tls(server: &Uri) -> Option<Endpoint> {
    let authority = server.authority()?;
    let host = authority.host();
    let port = server.port_u16().unwrap_or(443);
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).ok()?;
    Some(endpoint.origin(server.clone()))
}

/// Never prints the token or the key.
impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("endpoint", &self.endpoint)
            .field("has_token", &self.token.is_some())
            .field("token_file", &self.token_file)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endpoints_are_checked_before_use() {
        for good in [
            "http://127.0.0.1:50051",
            "http://[::1]:1",
            "http://host",
            "http://host/",
            "https://host",
            "unix:/run/tidegate.sock",
            "unix:///run/tidegate.sock",
        ] {
            assert!(Client::connect_lazy(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "host",
            "127.0.0.1:50051",
            "https://",
            "ftp://host",
            "http://host:1/path",
            "https://host/path/",
            "http://host//",
            "http://host?query",
            "http://host/#fragment",
            "http://user@host",
            "https://user:password@host:1",
            "http://a b",
            "unix:",
            "unix:run/tidegate.sock",
            "unix://host/path",
        ] {
            let error = Client::connect_lazy(bad).unwrap_err();
            assert!(
                matches!(error, Error::InvalidEndpoint { .. }),
                "{bad}: {error}"
            );
        }
    }
    #[tokio::test]
    async fn credentials_are_checked_before_use() {
        let builder = || Client::builder("https://host");
        for (bad, problem) in [
            (builder().token("t").token_file("t"), "give one of them"),
            (builder().token("two words"), "printable ASCII"),
            (builder().token_file("/nowhere"), "/nowhere"),
            (builder().tls_ca("no certificate"), "certificates"),
            (builder().tls_identity("none", "none"), "certificates"),
            (Client::builder("http://host").tls_ca(""), "https"),
        ] {
            let error = bad.connect_lazy().expect_err(problem);
            assert!(error.to_string().contains(problem), "{problem}: {error}");
        }
        let shown = format!("{:?}", builder().token("secret"));
        assert!(!shown.contains("secret"), "{shown}");
    }
}

//! Addresses, connections and their settings.

use std::{fmt, future::Future, path::PathBuf, time::Duration};

use tidegate_proto::v1::{
    NewEvent, PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse,
    admin_service_client::AdminServiceClient, event_service_client::EventServiceClient,
};
use tonic::{
    Status, Streaming,
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    Admin, Error, Publisher, PublisherOptions, SubscribeOptions, Subscription,
    credentials::Credentials,
};

/// The connection's window, in stream windows.
///
/// h2 charges `256 - length` for each unread DATA frame below 256 bytes and closes the connection when half
/// of its window is used up. The smallest response takes more than 16 bytes, so a stream window of them costs
/// less than 16 windows, and a reader that pauses is never taken for an attacker.
const CONNECTION_WINDOW_FACTOR: u32 = 32;

/// Speaks to one server.
///
/// Cheap to clone. Clones share one connection for [`publish`](Self::publish); every subscription and every
/// [`Publisher`] opens its own.
#[derive(Clone, Debug)]
pub struct Client {
    /// Opens connections, with all settings applied.
    endpoint: Endpoint,
    /// Carries unary calls. Connects when first used, and again when it has broken.
    channel: Channel,
    credentials: Credentials,
    /// Larger messages from the server are refused.
    max_message_bytes: usize,
}

/// Calls the service, with credentials.
pub(crate) type Service = EventServiceClient<InterceptedService<Channel, Credentials>>;

/// Settings of a [`Client`], each with a default that suits most.
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
    tls_identity: Option<Identity>,
}

// ===== impl Client =====

impl Client {
    /// A client for the server at `endpoint`, such as `http://127.0.0.1:50051`, with default settings.
    ///
    /// Nothing is sent: the first use connects.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`] if `endpoint` is not an `http` or `https` URL.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn connect_lazy(endpoint: impl Into<String>) -> Result<Self, Error> {
        Self::builder(endpoint).connect_lazy()
    }

    /// Settings for the server at `endpoint`, such as `http://127.0.0.1:50051`.
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

    /// A subscription. It connects when it is first polled, and its stream has begun with
    /// [`Update::Subscribed`](crate::Update::Subscribed): wait for it before you publish what it is to see.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn subscribe(&self, options: SubscribeOptions) -> Subscription {
        Subscription::new(self.clone(), options)
    }

    /// Publishes one batch: all of it or, with an error, nothing. Never retried.
    ///
    /// The server limits a batch, by default to 1,000 events and 4 MiB, and each event to 1 MiB.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::ResourceExhausted`] and the like when the server refused the batch.
    /// After [`Error::Unavailable`] it is unknown whether the batch was applied: publish it again only if
    /// subscribers can bear to see it twice.
    ///
    /// # Cancel safety
    /// Not cancel safe: a dropped call may have been applied.
    pub async fn publish(&self, events: Vec<NewEvent>) -> Result<PublishResponse, Error> {
        self.service(self.channel.clone())
            .publish(PublishRequest { events })
            .await
            .map(tonic::Response::into_inner)
            .map_err(Error::from_status)
    }

    /// A publisher for many events, batched on one stream.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn publisher(&self, options: PublisherOptions) -> Publisher {
        Publisher::new(self.service(self.endpoint.connect_lazy()), options)
    }

    /// Speaks to the admin service of the server, over the connection for publishing.
    #[must_use]
    pub fn admin(&self) -> Admin {
        let channel = self.channel.clone();
        let service = AdminServiceClient::with_interceptor(channel, self.credentials.clone());
        Admin::new(service.max_decoding_message_size(self.max_message_bytes))
    }

    /// Opens a `Subscribe` stream on a new connection. Each attempt resolves the name again, and none is
    /// made on a connection that has died without saying so.
    pub(crate) fn open(
        &self,
        request: SubscribeRequest,
    ) -> impl Future<Output = Result<Streaming<SubscribeResponse>, Status>> + Send + 'static {
        let mut service = self.service(self.endpoint.connect_lazy());
        async move { Ok(service.subscribe(request).await?.into_inner()) }
    }

    /// Whether what the server no longer accepts may have been renewed.
    pub(crate) fn may_have_new_token(&self) -> bool {
        self.credentials.can_change()
    }

    fn service(&self, channel: Channel) -> Service {
        EventServiceClient::with_interceptor(channel, self.credentials.clone())
            .max_decoding_message_size(self.max_message_bytes)
    }
}

// ===== impl ClientBuilder =====

impl ClientBuilder {
    /// How many bytes the server may send ahead of a subscription that is not being read. Default: 256 KiB.
    ///
    /// These bytes are on their way and can no longer be dropped when a reader falls behind: a larger window
    /// means older events for a slow reader, a smaller one less throughput over long distances (window divided
    /// by round-trip time). The connection's window is 32 times as large, which costs no memory as one stream
    /// is all it carries, and keeps h2 from closing it over many small frames.
    #[must_use]
    pub fn stream_window(mut self, bytes: u32) -> Self {
        self.stream_window = bytes;
        self
    }

    /// How long connecting may take. Default: 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// HTTP/2 keepalive: a ping each `interval` (default 20 s), and a connection that does not answer within
    /// `timeout` (default 10 s) is broken. Finds peers that vanished without closing.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keep_alive_interval = interval;
        self.keep_alive_timeout = timeout;
        self
    }

    /// Larger messages from the server end a stream. Default: 64 MiB, far above what a server sends unless it
    /// was set to accept larger events.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// A bearer token to send with each call. Whoever is between can read and use it where there is no TLS.
    /// Default: none.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// A file with the bearer token to send. It is read for each call, so that a token can be renewed: a
    /// subscription whose token expires resumes with what the file has then. Default: none.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token_file = Some(path.into());
        self
    }

    /// Certificates in PEM of those who may vouch for the server, for an `https` endpoint. Default: those whom
    /// the system trusts.
    #[must_use]
    pub fn tls_ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls_ca = Some(pem.into());
        self
    }

    /// The client's own certificate chain and its key, in PEM, for an `https` endpoint. Default: none.
    #[must_use]
    pub fn tls_identity(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.tls_identity = Some(Identity::from_pem(certificate, key));
        self
    }

    /// The client. Nothing is sent: the first use connects.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`] if the endpoint is not an `http` or `https` URL, and
    /// [`Error::InvalidCredentials`] if the token or the certificates cannot be used.
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
        let endpoint = self
            .tls_endpoint()?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keep_alive_interval)
            .keep_alive_timeout(self.keep_alive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(connection_window);
        Ok(Client {
            channel: endpoint.connect_lazy(),
            endpoint,
            credentials,
            max_message_bytes: self.max_message_bytes,
        })
    }

    fn credentials(&self) -> Result<Credentials, Error> {
        match (&self.token, &self.token_file) {
            (None, None) => Ok(Credentials::default()),
            (Some(token), None) => Credentials::token(token),
            (None, Some(path)) => Credentials::token_file(path),
            (Some(_), Some(_)) => {
                let problem = "there is a token and a file with one; give one of them";
                Err(Error::InvalidCredentials(problem.into()))
            }
        }
    }

    /// The endpoint, with TLS if it is to have it.
    fn tls_endpoint(&self) -> Result<Endpoint, Error> {
        let endpoint = self.parse_endpoint()?;
        let has_certificates = self.tls_ca.is_some() || self.tls_identity.is_some();
        if endpoint.uri().scheme_str() == Some("http") {
            return match has_certificates {
                true => Err(Error::InvalidCredentials(
                    "certificates are for https endpoints, and this one is http".into(),
                )),
                false => Ok(endpoint),
            };
        }
        let mut tls = match &self.tls_ca {
            // Of none at all tonic makes a client that trusts nobody.
            Some(pem) if !has_certificate(pem) => {
                return Err(Error::InvalidCredentials(
                    "the certificates cannot be used: there is none in PEM among those that may vouch \
                     for the server"
                        .into(),
                ));
            }
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some(identity) = &self.tls_identity {
            tls = tls.identity(identity.clone());
        }
        let invalid = |error: tonic::transport::Error| {
            let cause = std::error::Error::source(&error);
            let problem = cause.map_or_else(|| error.to_string(), ToString::to_string);
            Error::InvalidCredentials(format!("the certificates cannot be used: {problem}"))
        };
        endpoint.tls_config(tls).map_err(invalid)
    }

    fn parse_endpoint(&self) -> Result<Endpoint, Error> {
        let invalid = |reason: &str| Error::InvalidEndpoint {
            endpoint: self.endpoint.clone(),
            reason: reason.into(),
        };
        let endpoint =
            Endpoint::from_shared(self.endpoint.clone()).map_err(|_| invalid("it is not a URL"))?;
        match endpoint.uri().scheme_str() {
            Some("http" | "https") => match endpoint.uri().host() {
                Some(host) if !host.is_empty() => Ok(endpoint),
                _ => Err(invalid("it names no host")),
            },
            _ => Err(invalid("it must begin with https:// or http://")),
        }
    }
}

/// Whether there is a certificate in PEM in it (RFC 7468, section 5).
fn has_certificate(pem: &[u8]) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    pem.windows(BEGIN.len()).any(|bytes| bytes == BEGIN)
}

/// Neither token nor key shows.
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
            "https://host",
        ] {
            assert!(Client::connect_lazy(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "host",
            "127.0.0.1:50051",
            "https://",
            "ftp://host",
            "http://a b",
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

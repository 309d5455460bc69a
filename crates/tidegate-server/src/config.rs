//! How the server behaves. Every default is written down here.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tidegate::{ClientIdPolicy, HistoryLimits, ServiceConfig, SweepRules};

use crate::{identity::AuthConfig, quotas::QuotaConfig, tls::TlsConfig};

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where to listen. Port 0 takes a free one. Default: `127.0.0.1:50051`.
    pub listen: SocketAddr,
    /// How much history is kept. Default: 10,000 events, 64 MiB, 5 minutes.
    pub history: HistoryLimits,
    /// What happens when a client id that is in use subscribes again. Default: the newest takes over.
    pub client_ids: ClientIdPolicy,
    /// The most bytes that events may hold: [`HubConfig::memory_budget`](tidegate::HubConfig). `None` is a
    /// quarter of what the machine has, or the control group allows. Default: `None`.
    pub memory_budget: Option<u64>,
    /// What is done about clients that do not read. Default: after 60 s they are stalled; those that asked
    /// to be disconnected are, the others are left parked; what was ended and takes no notice is reset after
    /// 5 s.
    pub sweep: SweepRules,
    /// Where to listen for HTTP, and answer `/metrics`, `/healthz` and `/readyz` to anyone. Port 0 takes a free
    /// one. Default: `None`, nowhere, because it asks nobody who they are.
    pub http: Option<SocketAddr>,
    /// Whether `tidegate.v1.AdminService` is served. Callers that must prove who they are need a rule with `admin`
    /// for it. `None` is only if they must, or `listen` is a loopback address. Default: `None`.
    pub admin: Option<bool>,
    /// How much one address, or one principal, may use. Default: as much as they like.
    pub quotas: QuotaConfig,
    /// What requests are accepted. The server sets its gate.
    pub service: ServiceConfig,
    /// The most connections at once; beyond, they are reset as they come. The server refuses to start if
    /// the process may not open as many files. `None` is as many as it may. Default: `None`.
    ///
    /// In either case the process's soft limit on open files is raised to the hard one.
    pub max_connections: Option<usize>,
    /// The most connections at once from one address: IPv4, or the first 64 bits of IPv6. Leave it out
    /// behind a proxy, from which all connections seem to come. Default: `None`, no cap.
    pub max_connections_per_address: Option<usize>,
    /// How old a connection may become, give or take a tenth by chance so that connections which began
    /// together do not end together. Then its streams are told where to resume, and it ends in good order.
    /// It is how clients find servers that were added behind a load balancer. Default: `None`, for ever.
    pub max_connection_age: Option<Duration>,
    /// How long a connection has to end when it has reached its age. Default: 30 s.
    pub max_connection_age_grace: Duration,
    /// The certificate to show, and whether to ask clients for theirs. Default: `None`, no TLS.
    pub tls: Option<TlsConfig>,
    /// Who may call, and what they may do. Default: nobody is asked, and everything is allowed.
    pub auth: AuthConfig,
    /// What connections may do.
    pub http2: Http2Config,
    /// How long connections have to end in good order. Default: 30 s.
    pub drain_timeout: Duration,
}

/// What one connection may do. hyper's own defaults are named where these differ.
#[derive(Debug, Clone)]
pub struct Http2Config {
    /// Streams open at once on one connection. Default: 256 (hyper: 200).
    pub max_concurrent_streams: u32,
    /// Streams that the peer may have reset before they were accepted. Beyond, the connection ends: the
    /// rapid reset attack, CVE-2023-44487. Default: 20.
    pub max_pending_accept_reset_streams: usize,
    /// Streams that may be reset for faults of the peer in the life of a connection. Beyond, it ends:
    /// CVE-2025-8671. Default: 1,024.
    pub max_local_error_reset_streams: usize,
    /// Bytes of a request's headers. Default: 16 KiB.
    pub max_header_list_size: u32,
    /// What a peer may send on one stream before it is read. Default: 256 KiB (hyper: 1 MiB).
    pub stream_window: u32,
    /// What a peer may send on one connection before it is read. Half of it is also h2's budget for frames
    /// below 256 bytes that are not read yet, beyond which it takes a peer for an attacker and ends the
    /// connection. Default: 4 MiB (hyper: 1 MiB), with which a stream may fill its window with frames of 30
    /// bytes, as publishers of small events do.
    pub connection_window: u32,
    /// What one stream may have buffered for sending: beyond recall when the client turns out to be
    /// slow. Default: 64 KiB, four chunks (hyper: 400 KiB).
    pub max_send_buffer: usize,
    /// How long a new connection may take to shake hands, where there is TLS, and to send the connection
    /// preface. Default: 5 s (hyper: for ever).
    pub preface_timeout: Duration,
    /// Silence after which the peer is asked for a sign of life. Default: 30 s (hyper: never).
    pub keep_alive_interval: Duration,
    /// How long it has to answer. Default: 10 s (hyper: 20 s).
    pub keep_alive_timeout: Duration,
    /// How long bytes sent may stay unacknowledged before the kernel ends the connection
    /// (`TCP_USER_TIMEOUT`, gRFC A18). Default: 40 s. A peer whose HTTP/2 window is open but which does
    /// not read its socket is not found by keep-alive alone, whose ping waits behind the data.
    pub tcp_user_timeout: Duration,
    /// How long a write to the socket may make no progress before the connection is ended. A peer that
    /// stops reading its socket cannot even be sent GOAWAY, and holds what is buffered for it until
    /// then. Default: 40 s.
    pub write_timeout: Duration,
    /// Bytes that the kernel may hold unsent for a connection before it asks for no more
    /// (`TCP_NOTSENT_LOWAT`). Default: 128 KiB.
    pub tcp_notsent_lowat: u32,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 50_051)),
            history: HistoryLimits::default(),
            client_ids: ClientIdPolicy::default(),
            memory_budget: None,
            sweep: SweepRules::default(),
            http: None,
            admin: None,
            quotas: QuotaConfig::default(),
            service: ServiceConfig::default(),
            max_connections: None,
            max_connections_per_address: None,
            max_connection_age: None,
            max_connection_age_grace: Duration::from_secs(30),
            tls: None,
            auth: AuthConfig::default(),
            http2: Http2Config::default(),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl ServerConfig {
    /// Whether the admin service is served.
    #[must_use]
    pub fn serves_admin(&self) -> bool {
        let is_guarded = self.asks_for_credentials() || self.listen.ip().is_loopback();
        self.admin.unwrap_or(is_guarded)
    }

    /// Whether callers must prove who they are.
    #[must_use]
    pub fn asks_for_credentials(&self) -> bool {
        let tls = self.tls.as_ref();
        self.auth.takes_tokens() || tls.is_some_and(|tls| tls.client_ca.is_some())
    }
}

impl Default for Http2Config {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 256,
            max_pending_accept_reset_streams: 20,
            max_local_error_reset_streams: 1_024,
            max_header_list_size: 16 << 10,
            stream_window: 256 << 10,
            connection_window: 4 << 20,
            max_send_buffer: 64 << 10,
            preface_timeout: Duration::from_secs(5),
            keep_alive_interval: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(10),
            tcp_user_timeout: Duration::from_secs(40),
            write_timeout: Duration::from_secs(40),
            tcp_notsent_lowat: 128 << 10,
        }
    }
}

//! How the server behaves. Every default is written down here.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tidegate::{ClientIdPolicy, HistoryLimits, ServiceConfig, SweepRules};
use tidegate_transport::Http2Config;

use crate::{identity::AuthConfig, network::tls::TlsConfig, quotas::QuotaConfig};

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
    /// It is how clients find servers that were added behind a load balancer. Default: `None`, forever.
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

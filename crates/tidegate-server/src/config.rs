//! The configuration of a server, with every default.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tidegate::{ClientIdPolicy, HistoryLimits, ServiceConfig, SweepRules};
use tidegate_transport::Http2Config;

use crate::{
    identity::AuthConfig,
    network::{listener::ListenAddress, tls::TlsConfig},
    quotas::QuotaConfig,
};

/// The configuration of a server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The address to listen on, or the path of a socket's file. Port 0 takes a free port. Default: `127.0.0.1:50051`.
    pub listen: ListenAddress,
    /// The most connections that wait in the kernel until the server accepts them; it lowers what is beyond its own limit
    /// (`net.core.somaxconn` on Linux). `None` is as many as it allows. Default: `None`.
    pub backlog: Option<u32>,
    /// The limits of history. Default: 10,000 events, 64 MiB or 5 minutes, whichever is reached first.
    pub history: HistoryLimits,
    /// The answer to a subscription under a client id that is in use. Default: the newest stream takes over.
    pub client_ids: ClientIdPolicy,
    /// The most bytes that events may hold: [`HubConfig::memory_budget`](tidegate::HubConfig). `None` is a quarter of
    /// the machine's memory, or of the least limit of the process and its control groups if that is less. Default:
    /// `None`.
    pub memory_budget: Option<u64>,
    /// The most bytes that the filters of all subscriptions may hold, besides the budget:
    /// [`HubConfig::max_filter_bytes`](tidegate::HubConfig). `None` is a quarter of the memory budget. Default: `None`.
    pub filter_budget: Option<u64>,
    /// The most work that the filters of one subscription may add to a search:
    /// [`HubConfig::max_filter_work`](tidegate::HubConfig). Default: 256.
    pub max_filter_work: u64,
    /// The treatment of clients that do not read. Default: a client is stalled after 60 s; it is disconnected if its
    /// subscription asked for that, and stays parked otherwise. A stream that was ended and whose peer takes no notice
    /// is reset after 5 s.
    pub sweep: SweepRules,
    /// The address of an HTTP listener for `/metrics`, `/healthz` and `/readyz`. Port 0 takes a free port. It answers
    /// anyone, without credentials. Default: `None`, no such listener.
    pub http: Option<SocketAddr>,
    /// Whether to serve `tidegate.v1.AdminService`. Where calls need credentials, it is for principals whose rule says
    /// `admin`. `None` serves it if calls need credentials or `listen` is a loopback address or a socket's file. Default: `None`.
    pub admin: Option<bool>,
    /// The quotas of each address and each principal. Default: none, except for bad credentials.
    pub quotas: QuotaConfig,
    /// The limits of requests. The server sets the gate itself. Default: [`ServiceConfig::default`].
    pub service: ServiceConfig,
    /// The most connections at once. The server resets further ones as they come, and refuses to start if the process
    /// may not open as many files. `None` is as many as the process may open. Default: `None`.
    ///
    /// In either case [`Server::bind`](crate::Server::bind) raises the process's soft limit on open files to the hard
    /// one.
    pub max_connections: Option<usize>,
    /// The most connections at once from one address: an IPv4 address, or the first 64 bits of an IPv6 address. Leave
    /// it out behind a proxy, whose address all connections have. Default: `None`, no limit.
    pub max_connections_per_address: Option<usize>,
    /// The age at which a connection ends, give or take a random tenth so that connections which began together do not
    /// end together. Its streams are told where to resume, and it ends in good order. This is how clients find servers
    /// that were added behind a load balancer. Default: `None`, no limit.
    pub max_connection_age: Option<Duration>,
    /// The time that a connection has to end after it has reached its age. Then it is cut. Default: 30 s.
    pub max_connection_age_grace: Duration,
    /// The certificate of the server, and whether clients need one. Default: `None`, no TLS.
    pub tls: Option<TlsConfig>,
    /// The credentials that calls need, and what they allow. Default: none needed, and everything is allowed.
    pub auth: AuthConfig,
    /// The limits of connections. Default: [`Http2Config::default`].
    pub http2: Http2Config,
    /// The time that connections have to end in good order in a drain. Then they are cut. Default: 30 s.
    pub drain_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 50_051)).into(),
            backlog: None,
            history: HistoryLimits::default(),
            client_ids: ClientIdPolicy::default(),
            memory_budget: None,
            filter_budget: None,
            max_filter_work: 256,
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
    /// Whether a server with this configuration serves the admin service.
    #[must_use]
    pub fn serves_admin(&self) -> bool {
        let is_guarded = self.asks_for_credentials() || self.listen.is_local();
        self.admin.unwrap_or(is_guarded)
    }

    /// The most bytes that filters may hold, where events may hold `memory_budget`.
    pub(crate) fn max_filter_bytes(&self, memory_budget: u64) -> u64 {
        self.filter_budget.unwrap_or(memory_budget / 4)
    }

    /// Whether calls need credentials: tokens, or certificates of clients.
    #[must_use]
    pub fn asks_for_credentials(&self) -> bool {
        let tls = self.tls.as_ref();
        self.auth.takes_tokens() || tls.is_some_and(|tls| tls.client_ca.is_some())
    }
}

//! The server: a listener, its connections, and the hub behind them.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use socket2::SockRef;
use tidegate::{CloseReason, Encoded, EventService, Hub, HubConfig, SweepRules, random_epoch};
use tidegate_transport::Acceptor;
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::{
    admission::{Admission, ConnectionStats},
    books::{Books, Doorkeeper},
    config::ServerConfig,
    connection::Connections,
    controls::{Controls, Live},
    descriptors::{TooFew, room_for_connections},
    files::SecurityError,
    http::HttpListener,
    identity::Identity,
    memory,
    quotas::Quotas,
    reload::Reloader,
    routes::Routes,
    tls::Tls,
};

/// How often history is looked through for what is too old, and subscriptions for what is stuck, unless
/// shorter times are asked for; and how often it is looked at how far everyone is behind.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A server that is bound to its address and not yet serving.
#[derive(Debug)]
pub struct Server {
    acceptor: Acceptor,
    local_addr: SocketAddr,
    admission: Admission,
    /// What of the admission's numbers has been logged.
    logged: ConnectionStats,
    hub: Hub<Encoded>,
    routes: Routes,
    connections: Arc<Connections>,
    controls: Controls,
    http: Option<HttpListener>,
    reloader: Reloader,
}

/// Why a server could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address could not be had.
    #[error("cannot listen on {address}: is another server running there? Port 0 takes a free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// The process may not open as many files as [`ServerConfig::max_connections`] needs.
    #[error(
        "the process may open {allowed} files, and {needed} are needed for so many connections: raise the \
         limit (`ulimit -Hn`, or LimitNOFILE= of systemd), or lower the cap on connections"
    )]
    Descriptors {
        /// How many it may open.
        allowed: usize,
        /// How many it needs.
        needed: usize,
    },
    /// Credentials would go over the network for everyone to read.
    #[error(
        "credentials would be sent to {address} without TLS, and whoever is between could use them: give a certificate and its key, listen on a loopback address, or say `insecure`"
    )]
    PlaintextCredentials {
        /// The address.
        address: SocketAddr,
    },
    /// Certificates, credentials or rules cannot be used.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// There is no randomness for an epoch.
    #[error("the operating system has no randomness to give")]
    Randomness(#[source] io::Error),
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections that ended in good order after the drain began.
    pub connections_drained: usize,
    /// Connections that were cut at the end of the drain time-out.
    pub connections_cut: usize,
    /// Streams that ended after the drain began, with their status or by their client.
    pub streams_drained: u64,
    /// Streams that took no notice of their end and were reset, or cut with their connection.
    pub streams_cut: u64,
}

impl Server {
    /// Binds the address and makes the hub, with a new epoch.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(config: ServerConfig) -> Result<Self, BindError> {
        let reloader = security(&config)?;
        let max_connections = room_for_connections(config.max_connections)?;
        let memory_budget = config.memory_budget.unwrap_or_else(memory::default_budget);
        warn_of_small_budget(memory_budget, &config);
        let epoch = random_epoch().map_err(BindError::Randomness)?;
        let hub = Hub::new(HubConfig {
            history: config.history,
            client_ids: config.client_ids,
            memory_budget,
            ..HubConfig::new(epoch)
        });
        let cannot_listen = |address| move |source| BindError::Listen { address, source };
        let listen = cannot_listen(config.listen);
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        let http = match config.http {
            Some(address) => {
                let bound = HttpListener::bind(address).await;
                Some(bound.map_err(cannot_listen(address))?)
            }
            None => None,
        };
        let admission = Admission::new(max_connections, config.max_connections_per_address);
        admission.observe_only(config.quotas.observe_only);
        let books = Arc::new(Books::new(Quotas::new(config.quotas)));
        let mut service = config.service.clone();
        service.gate = Some(Arc::new(Doorkeeper(Arc::clone(&books))));
        let events = EventService::new(hub.clone(), service);
        let controls = Controls::new(
            hub.clone(),
            events.clone(),
            admission.clone(),
            books,
            reloader.identity.clone(),
            memory_budget,
            &config,
        );
        let routes = Routes::new(events, reloader.identity.clone(), controls.clone(), &config);
        routes.set_serving(true).await;
        tracing::info!(
            %local_addr,
            epoch = format_args!("{epoch:016x}"),
            max_connections,
            "listening"
        );
        Ok(Self {
            acceptor: Acceptor::new(listener),
            local_addr,
            admission,
            logged: ConnectionStats::default(),
            hub,
            routes: routes.clone(),
            connections: Arc::new(Connections::new(
                config.http2,
                routes,
                reloader.tls.clone(),
                config.max_connection_age,
                config.max_connection_age_grace,
            )),
            controls,
            http,
            reloader,
        })
    }

    /// The address that is listened on, with its port.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The hub that is served: publish to it, or look at its numbers, from within the process.
    #[must_use]
    pub const fn hub(&self) -> &Hub<Encoded> {
        &self.hub
    }

    /// The address of the HTTP listener, with its port, if there is one.
    #[must_use]
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|http| http.local_addr)
    }

    /// Looks at the server and steers it, while it runs.
    #[must_use]
    pub const fn controls(&self) -> &Controls {
        &self.controls
    }

    /// The connections in numbers, to look at while the server runs.
    #[must_use]
    pub const fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Reads certificates, credentials and rules again, also while the server runs.
    #[must_use]
    pub const fn reloader(&self) -> &Reloader {
        &self.reloader
    }

    fn keep_up(&mut self) {
        let now = Instant::now();
        self.hub.expire_history(now);
        let swept = self.hub.sweep(&self.controls.live().sweep, now);
        if swept.closed + swept.reset > 0 {
            tracing::info!(
                closed = swept.closed,
                reset = swept.reset,
                "ended streams that were stuck"
            );
        }
        self.log_refusals();
    }

    /// Logs how many connections were refused since the last time: a flood must not become one of logs.
    fn log_refusals(&mut self) {
        let now = self.admission.stats();
        let full = now.refused - self.logged.refused;
        let by_address = now.refused_by_address - self.logged.refused_by_address;
        if full + by_address > 0 {
            let open = now.open;
            tracing::warn!(full, by_address, open, "refused connections");
            self.logged = now;
        }
    }

    /// Serves a connection in a task of its own, if it is let in.
    fn begin(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        tasks: &TaskTracker,
        cut: &Arc<AtomicUsize>,
    ) {
        let admitted = match self.admission.admit(peer.ip()) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                tracing::debug!(%peer, %refusal, "connection refused");
                // Closed with a reset, which leaves nothing to wait for. If it fails, it is closed anyhow.
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
        };
        let connections = Arc::clone(&self.connections);
        let cut = Arc::clone(cut);
        tasks.spawn(async move {
            // Made in here: a future that is made outside and awaited within is held twice over.
            if connections.serve(stream, peer).await {
                cut.fetch_add(1, Relaxed);
            }
            drop(admitted);
        });
    }

    /// Serves until `stop` is done or [`Controls::drain`] is called, then drains. Dropping the future cuts everything
    /// at once.
    pub async fn serve(mut self, stop: impl Future<Output = ()>) -> DrainReport {
        let tasks = TaskTracker::new();
        let cut = Arc::new(AtomicUsize::new(0));
        let _fresh = self.reloader.keep_fresh();
        let _cut_when_dropped = self.connections.cut.clone().drop_guard();
        let controls = self.controls.clone();
        let _http_until_the_end = self.http.take().map(|http| {
            let serving = tokio::spawn(http.serve(controls.clone()));
            AbortOnDropHandle::new(serving)
        });
        let mut stop = pin!(stop);
        let mut upkeep = time::interval(upkeep_interval(&controls.live().sweep));
        let mut looks = time::interval(UPKEEP_INTERVAL);
        loop {
            tokio::select! {
                (stream, peer) = self.acceptor.accept() => self.begin(stream, peer, &tasks, &cut),
                _ = upkeep.tick() => self.keep_up(),
                _ = looks.tick() => controls.keep_up(Instant::now()),
                () = &mut stop => break,
                () = controls.draining() => break,
            }
        }
        let Self {
            acceptor,
            hub,
            routes,
            connections,
            ..
        } = self;
        controls.drain();
        let Live {
            sweep,
            drain_timeout,
        } = controls.live();
        routes.set_serving(false).await;
        drop(acceptor);
        let open = tasks.len();
        let before = hub.stats();
        let cut_streams = drain(&hub, &connections, &tasks, &sweep, drain_timeout).await;
        let connections_cut = cut.load(Relaxed);
        let streams_cut = cut_streams + (hub.stats().reset - before.reset);
        DrainReport {
            connections_drained: open - connections_cut,
            connections_cut,
            streams_drained: before.subscriptions.saturating_sub(streams_cut),
            streams_cut,
        }
    }
}

impl From<TooFew> for BindError {
    fn from(TooFew { allowed, needed }: TooFew) -> Self {
        Self::Descriptors { allowed, needed }
    }
}

/// Reads certificates, credentials and rules.
pub(crate) fn security(config: &ServerConfig) -> Result<Reloader, BindError> {
    let tls = config.tls.clone().map(Tls::new).transpose()?.map(Arc::new);
    let auth = &config.auth;
    let is_open = tls.is_none() && !config.listen.ip().is_loopback();
    if auth.takes_tokens() && is_open && !auth.insecure {
        let address = config.listen;
        return Err(BindError::PlaintextCredentials { address });
    }
    let identity = Identity::new(auth.clone(), tls.as_deref())?;
    Ok(Reloader { tls, identity })
}

/// Warns of a memory budget that cannot hold what may be published at once: of such a publish only the end is there
/// when it has been stored, and nothing of what was before.
fn warn_of_small_budget(budget: u64, config: &ServerConfig) {
    let max_publish = config.service.publish.max_batch_bytes as u64;
    if budget < max_publish {
        tracing::warn!(
            budget,
            max_publish,
            "the memory budget is less than one publish may have, which then displaces everything: raise memory_budget, \
             or lower limits.max_publish_bytes"
        );
    }
}

/// Short enough to see a stall soon after it is one.
fn upkeep_interval(rules: &SweepRules) -> Duration {
    let shortest = rules
        .stall_timeout
        .unwrap_or(UPKEEP_INTERVAL)
        .min(rules.reset_grace)
        / 4;
    shortest.clamp(Duration::from_millis(10), UPKEEP_INTERVAL)
}

/// Ends every stream and then every connection, in good order as long as there is time. Returns how many
/// streams were cut then.
async fn drain(
    hub: &Hub<Encoded>,
    connections: &Connections,
    tasks: &TaskTracker,
    rules: &SweepRules,
    timeout: Duration,
) -> u64 {
    let streams = hub.stats().subscriptions;
    tracing::info!(connections = tasks.len(), streams, ?timeout, "draining");
    // A client that is slow still gets its status, if it reads within half of the time.
    let rules = SweepRules {
        reset_grace: rules.reset_grace.max(timeout / 2),
        ..*rules
    };
    hub.close(CloseReason::ShuttingDown);
    connections.drain.cancel();
    tasks.close();
    tokio::select! {
        () = tasks.wait() => return 0,
        () = time::sleep(timeout) => {}
        () = sweep_for_ever(hub, &rules) => {}
    }
    let streams = hub.stats().subscriptions;
    let connections_left = tasks.len();
    tracing::warn!(
        connections = connections_left,
        streams,
        "cutting what did not end in time"
    );
    connections.cut.cancel();
    tasks.wait().await;
    streams
}

/// Resets streams that take no notice of their end, so that others of their connection need not wait for the
/// time-out.
async fn sweep_for_ever(hub: &Hub<Encoded>, rules: &SweepRules) {
    let mut ticks = time::interval(upkeep_interval(rules));
    loop {
        ticks.tick().await;
        hub.sweep(rules, Instant::now());
    }
}

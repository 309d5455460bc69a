//! The server: a listener, its connections, and the hub that they share.

use std::{
    future::Future,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tidegate::{CloseReason, Encoded, EventService, Hub, HubConfig, SweepRules, random_epoch};
use tokio::{sync::Mutex, time};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::{
    config::ServerConfig,
    connection::Connections,
    error::BindError,
    network::{
        admission::{Admission, ConnectionStats},
        listener::{self, LOCAL_PEER, ListenAddress, Listener, PeerAddress, Socket},
    },
    operations::{
        controls::{Controls, LiveConfig},
        http::HttpListener,
        reload::Reloader,
    },
    prepare::{Prepared, Warning},
    quotas::{
        Quotas,
        subscribers::{QuotaGate, Subscribers},
    },
    routes::Routes,
    stage::Stage,
};

/// The longest time between two sweeps for old events and stuck subscriptions, and the time between two samples of the
/// subscriptions' lags.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The name of the sweeps and samples among the work whose panics are counted.
const UPKEEP: &str = "upkeep";

/// A server that is bound to its address and not yet serving.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    listening: ListenAddress,
    admission: Admission,
    /// The counts of refused connections that have been logged.
    logged: ConnectionStats,
    hub: Hub<Encoded>,
    routes: Routes,
    connections: Arc<Connections>,
    controls: Controls,
    http: Option<HttpListener>,
    reloader: Reloader,
}

/// The end of a server in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections that ended in good order within the drain time-out.
    pub connections_drained: usize,
    /// Connections that were cut when the drain time-out was over.
    pub connections_cut: usize,
    /// Streams that ended after the drain began: the server sent their status, or their client left.
    pub streams_drained: u64,
    /// Streams whose client took no notice of their end, so that the server reset them or cut their connection.
    pub streams_cut: u64,
    /// Whether the drain was begun by [`Controls::drain`], as a call of `tidegate.v1.AdminService.Drain` begins it, and
    /// not by the future given to [`Server::serve`]. Whoever stopped the process does not want it back; a call over the
    /// network wants it emptied, and somebody has to start it again.
    pub is_by_controls: bool,
}

impl Server {
    /// Reads the files that `config` names, binds its addresses, and makes a hub with a new epoch. Connections queue in
    /// the kernel from then on, and are accepted once [`serve`](Self::serve) is called.
    ///
    /// Raises the process's soft limit on open files to the hard one.
    ///
    /// # Errors
    /// [`BindError`], when an address is taken, a file cannot be used, or the process may open too few files.
    pub async fn bind(config: ServerConfig) -> Result<Self, BindError> {
        let Prepared {
            reloader,
            max_connections,
            memory,
            warnings,
        } = Prepared::new(&config)?;
        for Warning { key, message } in &warnings {
            tracing::warn!(setting = key, "{message}");
        }
        let memory_budget = memory.bytes;
        let epoch = random_epoch().map_err(BindError::Randomness)?;
        let hub = Hub::new(HubConfig {
            history: config.history,
            client_ids: config.client_ids,
            memory_budget,
            max_filter_work: config.max_filter_work,
            max_filter_bytes: config.max_filter_bytes(memory_budget),
            ..HubConfig::new(epoch)
        });
        let cannot_listen = |address| move |source| BindError::Listen { address, source };
        let (listener, listening) = listen(&config.listen, config.backlog).await?;
        let http = match config.http {
            Some(address) => {
                let bound = HttpListener::bind(address);
                Some(bound.map_err(cannot_listen(address))?)
            }
            None => None,
        };
        let admission = Admission::new(max_connections, config.max_connections_per_address);
        admission.set_observe_only(config.quotas.observe_only);
        let subscribers = Arc::new(Subscribers::new(Quotas::new(
            config.quotas,
            config.client_ids,
        )));
        let mut service = config.service.clone();
        service.gate = Some(Arc::new(QuotaGate(Arc::clone(&subscribers))));
        let events = EventService::new(hub.clone(), service);
        let controls = Controls::new(
            hub.clone(),
            events.clone(),
            admission.clone(),
            subscribers,
            (reloader.authenticator.clone(), reloader.tls.clone()),
            memory_budget,
            &config,
        );
        let routes = Routes::new(
            events,
            reloader.authenticator.clone(),
            controls.clone(),
            &config,
        );
        routes.set_serving(true);
        tracing::info!(
            address = %listening,
            epoch = format_args!("{epoch:016x}"),
            max_connections,
            memory_budget,
            memory_budget_is = memory.source,
            "listening"
        );
        Ok(Self {
            listener,
            listening,
            admission: admission.clone(),
            logged: ConnectionStats::default(),
            hub,
            routes: routes.clone(),
            connections: Arc::new(Connections::new(
                config.http2,
                routes,
                reloader.tls.clone(),
                config.max_connection_age,
                config.max_connection_age_grace,
                Arc::clone(admission.traffic()),
            )),
            controls,
            http,
            reloader,
        })
    }

    /// The address that the server listens on, with the port that it got. `[::]:0` if it listens on the file of a
    /// socket: see [`listening`](Self::listening).
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        match &self.listening {
            ListenAddress::Tcp(address) => *address,
            ListenAddress::Unix(_) => LOCAL_PEER,
        }
    }

    /// Where the server listens, with the port that it got.
    #[must_use]
    pub const fn listening(&self) -> &ListenAddress {
        &self.listening
    }

    /// The hub behind the event service. You can publish to it and read its numbers from within the process.
    #[must_use]
    pub const fn hub(&self) -> &Hub<Encoded> {
        &self.hub
    }

    /// The address of the HTTP listener, with the port that it got. `None` without [`ServerConfig::http`].
    #[must_use]
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|http| http.local_addr)
    }

    /// A handle that reads the server's state and steers it, also while it runs.
    #[must_use]
    pub const fn controls(&self) -> &Controls {
        &self.controls
    }

    /// A handle that reads the numbers of connections, also while the server runs.
    #[must_use]
    pub const fn admission(&self) -> &Admission {
        &self.admission
    }

    /// A handle that reads certificates, credentials, keys and rules again, also while the server runs.
    #[must_use]
    pub const fn reloader(&self) -> &Reloader {
        &self.reloader
    }

    /// Drops old events, ends stuck streams, and logs refused connections.
    fn upkeep(&mut self) {
        let now = Instant::now();
        self.hub.expire_history(now);
        let rules = self.controls.live().sweep;
        let swept = self.hub.sweep(&rules, now);
        let publishers = self.controls.sweep_publish_streams(rules.stall_timeout);
        if publishers > 0 {
            tracing::warn!(
                publishers,
                "reset publish streams whose clients did not read the answers: a client has to read them while it sends"
            );
        }
        if swept.closed + swept.reset > 0 {
            tracing::info!(
                closed = swept.closed,
                reset = swept.reset,
                "ended stuck streams"
            );
        }
        self.log_refusals();
    }

    /// Logs the connections that were refused since the last time, in one line: a flood of connections must not become
    /// a flood of logs.
    fn log_refusals(&mut self) {
        let now = self.admission.stats();
        let full = now.refused - self.logged.refused;
        let by_address = now.refused_by_address - self.logged.refused_by_address;
        if full + by_address > 0 {
            let open = now.open;
            tracing::warn!(full, by_address, open, "connections refused");
            self.logged = now;
        }
    }

    /// Serves a connection in a task of its own, or resets it if a limit is reached. Adds it to `cut` if it ends by
    /// being cut.
    fn spawn_connection(
        &self,
        socket: Socket,
        peer: SocketAddr,
        tasks: &TaskTracker,
        cut: &Arc<AtomicUsize>,
    ) {
        let permit = match self.admission.admit(peer.ip()) {
            Ok(permit) => permit,
            Err(refusal) => {
                tracing::debug!(peer = %PeerAddress(peer), %refusal, "connection refused");
                // A reset instead of a close.
                listener::reset(socket);
                return;
            }
        };
        let connections = Arc::clone(&self.connections);
        tasks.spawn(connections.serve(socket, peer, permit, Arc::clone(cut)));
    }

    /// Serves until `stop` is done or [`Controls::drain`] is called, then drains, within
    /// [`ServerConfig::drain_timeout`] as the [`Controls`] have it then.
    ///
    /// # Cancel safety
    /// Dropping the future cuts every connection at once, without a status for its streams.
    pub async fn serve(mut self, stop: impl Future<Output = ()>) -> DrainReport {
        let tasks = TaskTracker::new();
        let cut = Arc::new(AtomicUsize::new(0));
        let _refresh = self.reloader.spawn_refresh(self.controls.clone());
        let _cut_when_dropped = CutOnDrop(Arc::clone(&self.connections));
        let controls = self.controls.clone();
        let _http_until_the_end = self.http.take().map(|http| {
            let serving = tokio::spawn(serve_http(http, controls.clone()));
            AbortOnDropHandle::new(serving)
        });
        controls.panics().watch(UPKEEP);
        let mut stop = pin!(stop);
        let mut sweeps = time::interval(upkeep_interval(&controls.live().sweep));
        let mut samples = time::interval(UPKEEP_INTERVAL);
        let mut batch = Vec::new();
        let is_by_controls = loop {
            tokio::select! {
                () = self.listener.accept_batch(&mut batch) => {
                    for (stream, peer) in batch.drain(..) {
                        self.spawn_connection(stream, peer, &tasks, &cut);
                    }
                }
                _ = sweeps.tick() => controls.panics().guard(UPKEEP, || self.upkeep()),
                _ = samples.tick() => {
                    controls.panics().guard(UPKEEP, || controls.upkeep(Instant::now()));
                }
                () = &mut stop => break false,
                () = controls.draining() => break true,
            }
        };
        let Self {
            listener,
            hub,
            routes,
            connections,
            ..
        } = self;
        // `stop` may have begun it; the HTTP listener and the admin service read it from the controls.
        controls.drain();
        let LiveConfig {
            sweep,
            drain_timeout,
        } = controls.live();
        // First the health, so that load balancers send nothing new, then the listener.
        routes.set_serving(false);
        drop(listener);
        let open = tasks.len();
        let before = hub.stats();
        let cut_streams = drain(&hub, &controls, &connections, &tasks, &sweep, drain_timeout).await;
        let connections_cut = cut.load(Relaxed);
        let streams_cut = cut_streams + (hub.stats().reset - before.reset);
        DrainReport {
            connections_drained: open - connections_cut,
            connections_cut,
            streams_drained: before.subscriptions.saturating_sub(streams_cut),
            streams_cut,
            is_by_controls,
        }
    }
}

/// Listens on `address`. Returns it with the port that it got.
async fn listen(
    address: &ListenAddress,
    backlog: Option<u32>,
) -> Result<(Listener, ListenAddress), BindError> {
    let bound = Listener::bind(address, backlog).await.and_then(|listener| {
        let address = match &listener {
            Listener::Tcp(acceptor) => ListenAddress::Tcp(acceptor.local_addr()?),
            Listener::Unix(_) => address.clone(),
        };
        Ok((listener, address))
    });
    bound.map_err(|source| match address {
        ListenAddress::Tcp(address) => BindError::Listen {
            address: *address,
            source,
        },
        ListenAddress::Unix(path) => BindError::ListenUnix {
            path: path.clone(),
            source,
        },
    })
}

/// Serves HTTP forever. The listener outlives a panic of the task that accepts its connections.
async fn serve_http(http: HttpListener, controls: Controls) {
    let http = Arc::new(Mutex::new(http));
    let serve = || {
        let (http, controls) = (Arc::clone(&http), controls.clone());
        async move { http.lock().await.serve(controls).await }
    };
    controls.supervise("http", serve).await;
}

/// The time between two sweeps: a quarter of the shortest time that they enforce, from 10 ms to [`UPKEEP_INTERVAL`].
fn upkeep_interval(rules: &SweepRules) -> Duration {
    let shortest = rules
        .stall_timeout
        .unwrap_or(UPKEEP_INTERVAL)
        .min(rules.reset_grace)
        / 4;
    shortest.clamp(Duration::from_millis(10), UPKEEP_INTERVAL)
}

/// Ends every stream and every connection in good order, and after `timeout` cuts those that are left. Returns the
/// number of streams that were cut.
async fn drain(
    hub: &Hub<Encoded>,
    controls: &Controls,
    connections: &Connections,
    tasks: &TaskTracker,
    rules: &SweepRules,
    timeout: Duration,
) -> u64 {
    let streams = hub.stats().subscriptions;
    tracing::info!(connections = tasks.len(), streams, ?timeout, "draining");
    // Half of the time for slow clients to read their status, the other half for their connections to end.
    let rules = SweepRules {
        reset_grace: rules.reset_grace.max(timeout / 2),
        ..*rules
    };
    hub.close(CloseReason::ShuttingDown);
    connections.stages.advance(Stage::Draining);
    tasks.close();
    tokio::select! {
        () = tasks.wait() => return 0,
        () = time::sleep(timeout) => {}
        () = sweep_forever(hub, controls, &rules) => {}
    }
    let streams = hub.stats().subscriptions;
    let connections_left = tasks.len();
    tracing::warn!(
        connections = connections_left,
        streams,
        "drain timeout reached: cutting the remaining connections"
    );
    connections.stages.advance(Stage::Cut);
    tasks.wait().await;
    streams
}

/// Cuts the connections when it is dropped.
struct CutOnDrop(Arc<Connections>);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.stages.advance(Stage::Cut);
    }
}

/// Resets streams whose client takes no notice of their end, so that their connections need not wait for the time-out.
async fn sweep_forever(hub: &Hub<Encoded>, controls: &Controls, rules: &SweepRules) {
    let mut ticks = time::interval(upkeep_interval(rules));
    loop {
        ticks.tick().await;
        hub.sweep(rules, Instant::now());
        controls.sweep_publish_streams(Some(rules.reset_grace));
    }
}

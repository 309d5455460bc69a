//! The one handle that reads the state of a running server and steers it.

use std::{
    fmt,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use tidegate::{
    ChunkStats, ClientId, Encoded, EventService, Filter, Hub, Limits, PublishStream, Stats,
    SubscriptionInfo, SweepRules,
};
use tokio_util::sync::CancellationToken;

use super::{
    drops::{DropTotals, Drops},
    lags::{Histograms, Lags, index},
    supervision::Panics,
};
use crate::{
    config::ServerConfig,
    identity::Authenticator,
    network::{
        admission::{Admission, ConnectionStats},
        tls::Tls,
    },
    quotas::{
        QuotaCount, Quotas,
        subscribers::{Subscriber, Subscribers},
    },
};

/// A handle that reads the state of a running server and steers it. Cheap to clone; all clones are of the same server.
#[derive(Debug, Clone)]
pub struct Controls {
    shared: Arc<Shared>,
}

/// The numbers of a server at one moment. Counts are from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// The numbers of the hub.
    pub hub: Stats,
    /// Events that open subscriptions have lost and were not told of, as of the last sample: the server looks about once a
    /// second, if it has an HTTP listener or serves the admin service.
    pub pending_loss: u64,
    /// Events that subscriptions have lost, told of it or not, as of the last sample. Losses of a subscription that ends
    /// after it are not in here.
    pub dropped: u64,
    /// The chunks that subscriptions shared, or that were made for one.
    pub chunks: ChunkStats,
    /// The numbers of connections.
    pub connections: ConnectionStats,
    /// Calls of `PublishStream` that are open.
    pub publish_streams: u64,
    /// Calls of `PublishStream` that were reset because their client did not read the answers.
    pub publish_streams_stalled: u64,
    /// The refusals of each quota.
    pub quotas: Vec<QuotaCount>,
    /// Streams of subscriptions that have begun.
    pub streams_begun: u64,
    /// Streams of subscriptions that have ended, by the name of the reason. `CLIENT_LEFT` counts those that the server
    /// did not end.
    pub streams_ended: Vec<(&'static str, u64)>,
    /// Calls whose credentials were missing or not accepted, where calls need credentials.
    pub auth_failures: u64,
    /// Attempts to fetch a JSON Web Key Set that failed.
    pub key_fetch_failures: u64,
    /// The expiry of the server's certificate, in seconds since 1970. `None` without TLS.
    pub certificate_expiry: Option<i64>,
    /// Panics of the server's work in the background, by its name. The work goes on after each.
    pub task_panics: Vec<(&'static str, u64)>,
    /// Lines of the log that were lost. `None` if nobody counts them: see [`Controls::count_lost_log_lines`].
    pub lost_log_lines: Option<u64>,
    /// The most bytes that events may hold: [`ServerConfig::memory_budget`], or its default.
    pub memory_budget: u64,
    /// Whether the server is ready for new calls: no drain has begun.
    pub is_ready: bool,
    /// The time since [`Server::bind`](crate::Server::bind).
    pub uptime: Duration,
}

/// The state of one subscription at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionState {
    /// Its state in the hub: client, principal, backlog, losses.
    pub info: SubscriptionInfo,
    /// The remote address of its connection.
    pub address: Option<SocketAddr>,
    /// The filters that it asked for.
    pub filters: Arc<[Filter]>,
    /// Its limits in force.
    pub limits: Limits,
    /// The time at which it began.
    pub since: SystemTime,
    /// The index of its next event.
    pub next_index: u64,
    /// The time that its backlog takes to be delivered. The server samples it every second, so it is exact to about a
    /// second.
    pub lag: Duration,
}

/// The settings that [`Controls::apply`] replaces and the server reads again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LiveConfig {
    pub(crate) sweep: SweepRules,
    pub(crate) drain_timeout: Duration,
}

#[derive(Debug)]
struct Shared {
    hub: Hub<Encoded>,
    events: EventService,
    admission: Admission,
    subscribers: Arc<Subscribers>,
    /// `None` if calls need no credentials.
    authenticator: Option<Arc<Authenticator>>,
    /// `None` without TLS.
    tls: Option<Arc<Tls>>,
    live: Mutex<LiveConfig>,
    lags: Mutex<Lags>,
    drops: Mutex<Drops>,
    histograms: Histograms,
    auth_failures: AtomicU64,
    panics: Panics,
    lost_log_lines: OnceLock<LogLosses>,
    /// Cancelled when a drain begins.
    drain: CancellationToken,
    memory_budget: u64,
    /// The time at which the server was made, by the clock that never goes back and by the wall clock.
    started: (Instant, SystemTime),
    /// Whether anyone can read lags: over HTTP or the admin service. If not, they are not sampled.
    is_watched: bool,
}

/// Tells how many lines of the log were lost.
struct LogLosses(Box<dyn Fn() -> u64 + Send + Sync>);

// ===== impl Controls =====

impl Controls {
    pub(crate) fn new(
        hub: Hub<Encoded>,
        events: EventService,
        admission: Admission,
        subscribers: Arc<Subscribers>,
        (authenticator, tls): (Option<Arc<Authenticator>>, Option<Arc<Tls>>),
        memory_budget: u64,
        config: &ServerConfig,
    ) -> Self {
        let shared = Shared {
            hub,
            events,
            admission,
            subscribers,
            authenticator,
            tls,
            live: Mutex::new(LiveConfig::of(config)),
            lags: Mutex::default(),
            drops: Mutex::default(),
            histograms: Histograms::default(),
            auth_failures: AtomicU64::new(0),
            panics: Panics::default(),
            lost_log_lines: OnceLock::new(),
            drain: CancellationToken::new(),
            memory_budget,
            started: (Instant::now(), SystemTime::now()),
            is_watched: config.http.is_some() || config.serves_admin(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The numbers at this moment. They are read one after the other, so they may be of slightly different moments.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        let Shared {
            hub,
            events,
            admission,
            subscribers,
            ..
        } = &*self.shared;
        let DropTotals { pending, dropped } = self.drops().totals();
        ServerStats {
            hub: hub.stats(),
            pending_loss: pending,
            dropped,
            chunks: events.chunk_stats(),
            publish_streams: events.open_publish_streams() as u64,
            publish_streams_stalled: events.stalled_publish_streams(),
            connections: admission.stats(),
            quotas: subscribers.quotas.counts().into(),
            streams_begun: subscribers.begun(),
            streams_ended: subscribers.endings(),
            auth_failures: self.shared.auth_failures.load(Relaxed),
            key_fetch_failures: self
                .shared
                .authenticator
                .as_ref()
                .map_or(0, |authenticator| authenticator.fetch_failures()),
            certificate_expiry: self.shared.tls.as_ref().map(|tls| tls.expiry()),
            task_panics: self.shared.panics.all(),
            lost_log_lines: self.shared.lost_log_lines.get().map(|count| (count.0)()),
            memory_budget: self.shared.memory_budget,
            is_ready: self.is_ready(),
            uptime: self.shared.started.0.elapsed(),
        }
    }

    /// All calls of `PublishStream` that are open, in the order in which they began.
    #[must_use]
    pub fn publish_streams(&self) -> Vec<PublishStream> {
        self.shared.events.publish_streams()
    }

    /// Resets the publish streams whose client has not read for the stall timeout. Returns their number.
    pub(crate) fn sweep_publish_streams(&self, stall_timeout: Option<Duration>) -> u64 {
        let events = &self.shared.events;
        events.sweep_publish_streams(stall_timeout, Instant::now())
    }

    /// All subscriptions, in the order in which they began.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<SubscriptionState> {
        let now = Instant::now();
        let infos = self.shared.hub.subscriptions();
        let mut lags = self.lags();
        lags.sample(&infos, now);
        let states = infos.into_iter().filter_map(|info| {
            let subscriber = self.shared.subscribers.subscriber(info.id)?;
            let lag = lags.of(info.id, now);
            Some(SubscriptionState::new(info, subscriber, lag))
        });
        states.collect()
    }

    /// Ends every stream of a client with [`Reason::Disconnected`](tidegate::Reason), which tells it not to come back
    /// by itself. Returns the number of streams.
    #[must_use = "the client may have no stream"]
    pub fn disconnect(&self, client: &ClientId) -> usize {
        self.shared.hub.disconnect(client)
    }

    /// Begins the drain of the server, as the end of the future given to [`Server::serve`](crate::Server::serve) does.
    /// Returns false if one had begun before.
    pub fn drain(&self) -> bool {
        let began = self.is_ready();
        self.shared.drain.cancel();
        began
    }

    /// Whether the server is ready for new calls: no drain has begun.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.shared.drain.is_cancelled()
    }

    /// Counts a call whose credentials were missing or not accepted.
    pub(crate) fn note_auth_failure(&self) {
        self.shared.auth_failures.fetch_add(1, Relaxed);
    }

    /// Puts in force the settings of `config` that can change while the server runs: the history limits, the sweep
    /// rules, the drain time-out, and all quotas. Other settings are ignored.
    ///
    /// Of [`max_connections_per_address`](ServerConfig::max_connections_per_address) it only changes whether it is
    /// observed or enforced: [`observe_only`](crate::QuotaConfig::observe_only).
    pub fn apply(&self, config: &ServerConfig) {
        let shared = &self.shared;
        *self.live_mut() = LiveConfig::of(config);
        shared
            .hub
            .set_history_limits(config.history, Instant::now());
        shared.subscribers.quotas.set(config.quotas);
        shared
            .admission
            .set_observe_only(config.quotas.observe_only);
    }

    /// Runs a task of the program beside the server, until this future is dropped or the task ends by itself. If it
    /// panics, that is logged and counted by its name, and `begin` makes another after a pause.
    pub async fn supervise<F>(&self, task: &'static str, begin: impl FnMut() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.shared.panics.supervise(task, begin).await;
    }

    /// Has the lines of the log that were lost among the metrics. `lost` returns their number so far, and is called at
    /// each scrape. Only the first call counts.
    pub fn count_lost_log_lines(&self, lost: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.shared.lost_log_lines.set(LogLosses(Box::new(lost)));
    }

    pub(crate) fn panics(&self) -> &Panics {
        &self.shared.panics
    }

    /// The time at which the server was made.
    pub(crate) fn started(&self) -> SystemTime {
        self.shared.started.1
    }

    pub(crate) fn hub(&self) -> &Hub<Encoded> {
        &self.shared.hub
    }

    pub(crate) fn quotas(&self) -> &Arc<Quotas> {
        &self.shared.subscribers.quotas
    }

    pub(crate) fn subscribers(&self) -> &Arc<Subscribers> {
        &self.shared.subscribers
    }

    pub(crate) fn histograms(&self) -> &Histograms {
        &self.shared.histograms
    }

    pub(crate) fn live(&self) -> LiveConfig {
        *self.live_mut()
    }

    /// Waits until [`drain`](Self::drain) is called.
    pub(crate) async fn draining(&self) {
        self.shared.drain.cancelled().await;
    }

    /// Samples the lag and the losses of every subscription, if anyone can read them, and lets the quotas forget idle
    /// users.
    pub(crate) fn upkeep(&self, now: Instant) {
        self.shared.subscribers.quotas.upkeep(now);
        if !self.shared.is_watched {
            return;
        }
        let infos = self.shared.hub.subscriptions();
        self.drops().sample(&infos);
        let mut lags = self.lags();
        lags.sample(&infos, now);
        for info in &infos {
            let lag = lags.of(info.id, now);
            let waiting = info.backlog - info.pending_loss - info.pending_conflation;
            self.shared.histograms.observe(waiting, lag);
        }
    }

    fn live_mut(&self) -> MutexGuard<'_, LiveConfig> {
        let live = self.shared.live.lock();
        live.unwrap_or_else(PoisonError::into_inner)
    }

    fn drops(&self) -> MutexGuard<'_, Drops> {
        let drops = self.shared.drops.lock();
        drops.unwrap_or_else(PoisonError::into_inner)
    }

    fn lags(&self) -> MutexGuard<'_, Lags> {
        let lags = self.shared.lags.lock();
        lags.unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LogLosses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLosses")
    }
}

impl LiveConfig {
    const fn of(config: &ServerConfig) -> Self {
        Self {
            sweep: config.sweep,
            drain_timeout: config.drain_timeout,
        }
    }
}

impl SubscriptionState {
    fn new(info: SubscriptionInfo, subscriber: Subscriber, lag: Duration) -> Self {
        Self {
            next_index: index(&info),
            info,
            address: subscriber.address,
            filters: subscriber.filters,
            limits: subscriber.limits,
            since: subscriber.since,
            lag,
        }
    }
}

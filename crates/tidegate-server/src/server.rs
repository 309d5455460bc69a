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

use tidegate::{CloseReason, Encoded, EventService, Hub, HubConfig, SweepRules, random_epoch};
use tokio::{net::TcpListener, time};
use tokio_util::task::TaskTracker;

use crate::{accept::Acceptor, config::ServerConfig, connection::Connections, memory};

/// How often history is looked through for what is too old, and subscriptions for what is stuck, unless
/// shorter times are asked for.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A server that is bound to its address and not yet serving.
#[derive(Debug)]
pub struct Server {
    acceptor: Acceptor,
    local_addr: SocketAddr,
    hub: Hub<Encoded>,
    connections: Connections,
    sweep: SweepRules,
    drain_timeout: Duration,
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
}

impl Server {
    /// Binds the address and makes the hub, with a new epoch.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(config: ServerConfig) -> Result<Self, BindError> {
        let epoch = random_epoch().map_err(BindError::Randomness)?;
        let hub = Hub::new(HubConfig {
            history: config.history,
            client_ids: config.client_ids,
            memory_budget: config.memory_budget.unwrap_or_else(memory::default_budget),
            ..HubConfig::new(epoch)
        });
        let listen = |source| BindError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        let service = EventService::new(hub.clone(), config.service);
        tracing::info!(%local_addr, epoch = format_args!("{epoch:016x}"), "listening");
        Ok(Self {
            acceptor: Acceptor::new(listener),
            local_addr,
            hub,
            connections: Connections::new(config.http2, service),
            sweep: config.sweep,
            drain_timeout: config.drain_timeout,
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

    fn keep_up(&self) {
        let now = Instant::now();
        self.hub.expire_history(now);
        let swept = self.hub.sweep(&self.sweep, now);
        if swept.closed + swept.reset > 0 {
            tracing::info!(
                closed = swept.closed,
                reset = swept.reset,
                "ended streams that were stuck"
            );
        }
    }

    /// Serves until `stop` is done, then drains. Dropping the future cuts everything at once.
    pub async fn serve(mut self, stop: impl Future<Output = ()>) -> DrainReport {
        let tasks = TaskTracker::new();
        let cut = Arc::new(AtomicUsize::new(0));
        let _cut_when_dropped = self.connections.cut.clone().drop_guard();
        let mut stop = pin!(stop);
        let mut upkeep = time::interval(upkeep_interval(&self.sweep));
        loop {
            tokio::select! {
                stream = self.acceptor.accept() => {
                    let connection = self.connections.clone().serve(stream);
                    let cut = Arc::clone(&cut);
                    tasks.spawn(async move {
                        if connection.await {
                            cut.fetch_add(1, Relaxed);
                        }
                    });
                }
                _ = upkeep.tick() => self.keep_up(),
                () = &mut stop => break,
            }
        }
        let Self {
            acceptor,
            hub,
            connections,
            drain_timeout,
            ..
        } = self;
        drop(acceptor);
        let open = tasks.len();
        drain(&hub, &connections, &tasks, drain_timeout).await;
        let connections_cut = cut.load(Relaxed);
        DrainReport {
            connections_drained: open - connections_cut,
            connections_cut,
        }
    }
}

/// Short enough to see a stall soon after it is one.
fn upkeep_interval(rules: &SweepRules) -> Duration {
    let shortest = rules
        .stall_timeout
        .unwrap_or(UPKEEP_INTERVAL)
        .min(rules.grace)
        / 4;
    shortest.clamp(Duration::from_millis(10), UPKEEP_INTERVAL)
}

/// Ends every stream and then every connection, in good order as long as there is time.
async fn drain(
    hub: &Hub<Encoded>,
    connections: &Connections,
    tasks: &TaskTracker,
    timeout: Duration,
) {
    tracing::info!(connections = tasks.len(), ?timeout, "draining");
    hub.close(CloseReason::ShuttingDown);
    connections.drain.cancel();
    tasks.close();
    if time::timeout(timeout, tasks.wait()).await.is_err() {
        tracing::warn!(
            connections = tasks.len(),
            "cutting connections that did not end in time"
        );
        connections.cut.cancel();
        tasks.wait().await;
    }
}

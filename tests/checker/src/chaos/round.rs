//! One round: from an empty server to the checks.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tidegate::{Encoded, Hub};
use tidegate_server::{DrainReport, Server, ServerConfig};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Counts, Options,
    client::Actor,
    plan::{Link, Plan, Scenario},
    publisher, typed,
    world::World,
};
use crate::{
    check::{Rules, Tally, check, check_clean_up, check_memory},
    proxy::Proxy,
    record::Client,
    truth::Truth,
    violation::{Fault, Location, Violation},
};

/// The publishers of a round, by their ways to the server, and whether they publish large events.
const PUBLISHERS: [(Link, bool); 4] = [
    (Link::Direct, false),
    (Link::Direct, false),
    (Link::Faulty, false),
    (Link::Direct, true),
];

/// How long a server may take to notice that all clients are gone.
const PATIENCE: Duration = Duration::from_secs(15);

/// The time between two readings of the bytes that a server holds.
const SAMPLING: Duration = Duration::from_millis(20);

/// A running server.
struct Running {
    hub: Hub<Encoded>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<DrainReport>,
}

/// Runs the round with this seed. The inner result is that of the checks.
pub(crate) async fn run(
    seed: u64,
    options: Options,
    counts: &Arc<Counts>,
) -> io::Result<Result<Tally, Violation>> {
    let plan = Plan::new(seed, options.scale);
    let server = Running::start(&plan.server).await?;
    let proxy = Proxy::start(server.address, seed, Arc::clone(&counts.faults)).await?;
    let slow = Proxy::start_slow(server.address, seed, Arc::clone(&counts.faults)).await?;
    let healthy = plan
        .clients
        .iter()
        .filter(|client| client.behavior.is_healthy())
        .count();
    let world = Arc::new(World {
        started: Instant::now(),
        address: watch::channel(server.address).0,
        proxy: proxy.address(),
        slow: slow.address(),
        hubs: Mutex::new(vec![server.hub.clone()]),
        truth: Mutex::new(Truth::default()),
        finish: watch::channel(None).0,
        progress: (0..healthy).map(|_| AtomicU64::new(0)).collect(),
        clients: plan.clients.len(),
        counts: Arc::clone(counts),
    });
    let mut clients = JoinSet::new();
    for (number, client) in plan.clients.iter().enumerate() {
        // The healthy clients come first in the plan.
        let healthy = client.behavior.is_healthy().then_some(number);
        clients.spawn(Actor::new(client.clone(), healthy, Arc::clone(&world)).run());
    }
    let stop = CancellationToken::new();
    let mut publishers = JoinSet::new();
    for (number, (link, is_large)) in (1..).zip(PUBLISHERS) {
        let publisher = publisher::PublisherPlan {
            number,
            batch: options.batch,
            link,
            largest: is_large.then_some(plan.largest_event),
            seed: seed.wrapping_mul(8).wrapping_add(number),
        };
        let publishing = publisher::publish(Arc::clone(&world), publisher, stop.clone());
        publishers.spawn(publishing);
    }
    let typed = tokio::spawn(typed::run(
        seed,
        Scenario::of(seed),
        options.scale,
        Arc::clone(counts),
        stop.clone(),
    ));
    let watching = tokio::spawn(watch_memory(Arc::clone(&world), plan.memory_bound));

    sleep(options.round / 2).await;
    let next = Running::start(&plan.server).await?;
    proxy.retarget(next.address);
    slow.retarget(next.address);
    world.begin_epoch(next.address, next.hub.clone());
    counts.restarts.fetch_add(1, Relaxed);
    let drained = server.stop().await;
    sleep(options.round / 2).await;

    stop.cancel();
    let published = publishers.join_all().await;
    proxy.stop().await;
    slow.stop().await;
    world
        .finish
        .send_replace(Some(tidegate_proto::v1::Position {
            epoch: next.hub.position().epoch,
            sequence: next.hub.position().sequence,
        }));
    let clients: Vec<Client> = clients.join_all().await.into_iter().flatten().collect();
    let left = next.stop_when_empty().await;
    let typed = typed.await.expect("it does not panic");
    watching.abort();
    let held = watching.await.unwrap_or(Ok(()));

    let truth = std::mem::take(&mut *world.truth.lock().expect("no holder panics"));
    let checks = || {
        published.into_iter().collect::<Result<(), _>>()?;
        drained?;
        left?;
        held?;
        let mut tally = check_records(truth, &clients, plan.rules)?;
        tally.add(&typed?);
        Ok(tally)
    };
    Ok(checks())
}

fn check_records(mut truth: Truth, clients: &[Client], rules: Rules) -> Result<Tally, Violation> {
    let streams = clients.iter().flat_map(|client| &client.streams);
    truth.resolve(streams.flat_map(crate::record::Stream::deliveries))?;
    check(&truth, clients, rules)
}

async fn watch_memory(world: Arc<World>, bound: u64) -> Result<(), Violation> {
    let mut sampling = interval(SAMPLING);
    loop {
        sampling.tick().await;
        let held = world.hub().stats().retained_bytes;
        world.counts.held.fetch_max(held, Relaxed);
        check_memory(held, bound)?;
    }
}

impl Running {
    async fn start(config: &ServerConfig) -> io::Result<Self> {
        let server = Server::bind(config.clone())
            .await
            .map_err(io::Error::other)?;
        let (hub, address) = (server.hub().clone(), server.local_addr());
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server.serve(async { _ = stopped.await }));
        Ok(Self {
            hub,
            address,
            stop,
            served,
        })
    }

    /// Drains the server, and checks that nothing is left in it.
    async fn stop(self) -> Result<(), Violation> {
        let _ = self.stop.send(());
        let ended = timeout(PATIENCE, self.served).await;
        if ended.is_err() {
            return Err(Violation::CleanUp(Fault::new(
                Location::Server,
                "servers that did not end",
                0,
                1,
            )));
        }
        nobody_left(&self.hub).await
    }

    /// Waits until the server has noticed that all clients are gone, and then drains.
    async fn stop_when_empty(self) -> Result<(), Violation> {
        nobody_left(&self.hub).await?;
        self.stop().await
    }
}

/// Waits until no subscription is left, and checks that nothing else is. The server has no event for that, so this
/// polls.
async fn nobody_left(hub: &Hub<Encoded>) -> Result<(), Violation> {
    let empty = async {
        while hub.stats().subscriptions > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let _ = timeout(PATIENCE, empty).await;
    check_clean_up(&hub.stats())
}

//! The publishers of a round.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use fastrand::Rng;
use tidegate_proto::v1::{NewEvent, PublishRequest, event_service_client::EventServiceClient};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::{
    plan::{AREAS, ITEMS, KINDS, LARGE, Link},
    world::World,
};
use crate::violation::{Fault, Location, Violation};

/// The time between two batches.
const PACE: Duration = Duration::from_millis(2);

/// The time between two large events: about a megabyte a second.
const LARGE_PACE: Duration = Duration::from_millis(400);

/// The bytes of the smallest large event.
const LEAST_LARGE: usize = 64 << 10;

/// Events that healthy clients may be behind before publishers wait for them.
const WINDOW: u64 = 16_000;

/// How long a healthy client may be behind by more than that.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// One event in 1,000 is larger than a chunk, and one in 1,000 goes to one client.
const RARE: u32 = 1_000;

/// The plan of a publisher.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PublisherPlan {
    /// The number that distinguishes its events from those of other publishers.
    pub(crate) number: u64,
    /// Events in a batch, on average.
    pub(crate) batch: usize,
    /// The way to the server. Through the proxy, it does not always get its answers.
    pub(crate) link: Link,
    /// The most bytes of an event, if it publishes large ones, one at a time.
    pub(crate) largest: Option<usize>,
    pub(crate) seed: u64,
}

/// Publishes until `stop`, as fast as `batch` events every [`PACE`] and the healthy clients allow.
pub(crate) async fn publish(
    world: Arc<World>,
    plan: PublisherPlan,
    stop: CancellationToken,
) -> Result<(), Violation> {
    let mut rng = Rng::with_seed(plan.seed);
    let mut next = plan.number << 48;
    let mut client = connect(&world, plan);
    let time = plan.largest.map_or(PACE, |_| LARGE_PACE);
    let mut pace = interval(time);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waited = 0;
    while !stop.is_cancelled() {
        pace.tick().await;
        if world.behind() > WINDOW {
            waited += 1;
            if time * waited > PATIENCE {
                return Err(Violation::Isolation(Fault::new(
                    Location::Publisher,
                    "a healthy client is behind and makes no progress",
                    0,
                    world.behind(),
                )));
            }
            continue;
        }
        waited = 0;
        let count = match plan.largest {
            Some(_) => 1,
            None => rng.usize(1..=plan.batch * 2),
        };
        let events: Vec<_> = (0..count)
            .map(|i| {
                next += 1;
                match plan.largest {
                    Some(largest) => large_event(&world, &mut rng, next, largest),
                    None => event(&world, &mut rng, next, i == 0),
                }
            })
            .collect();
        let prepared: Vec<_> = {
            let mut truth = world.truth.lock().expect("no holder panics");
            events.iter().map(|event| truth.prepare(event)).collect()
        };
        let published = timeout(ANSWER, client.publish(PublishRequest { events })).await;
        let truth = || world.truth.lock().expect("no holder panics");
        if let Ok(Ok(answer)) = published {
            truth().acknowledge(&prepared, answer.get_ref())?;
            world.counts.published.fetch_add(count as u64, Relaxed);
        } else {
            truth().leave_open(prepared);
            world.counts.unanswered.fetch_add(count as u64, Relaxed);
            client = connect(&world, plan);
        }
    }
    Ok(())
}

fn connect(world: &World, plan: PublisherPlan) -> EventServiceClient<Channel> {
    let address = world.address(plan.link);
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URL");
    EventServiceClient::new(endpoint.connect_lazy())
}

/// Returns a large event. Most are nearer to the smallest than to the largest.
fn large_event(world: &World, rng: &mut Rng, number: u64, largest: usize) -> NewEvent {
    let doublings = (largest / LEAST_LARGE).max(1).ilog2();
    let least = LEAST_LARGE << rng.u32(0..=doublings);
    let size = rng.usize(least..=(2 * least).max(least + 1)).min(largest);
    NewEvent {
        topic: format!("{LARGE}.{}", rng.u32(0..ITEMS)),
        payload: payload(world, number, size).into(),
        ..NewEvent::default()
    }
}

fn payload(world: &World, number: u64, size: usize) -> Vec<u8> {
    let mut payload = Vec::with_capacity(size);
    payload.extend(number.to_le_bytes());
    payload.extend(world.now().to_le_bytes());
    payload.resize(size, number as u8);
    payload
}

/// Returns an event. One in 1,000 goes to a single client, unless it is `for_all`.
fn event(world: &World, rng: &mut Rng, number: u64, for_all: bool) -> NewEvent {
    let size = match rng.u32(0..RARE) {
        0 => rng.usize(17_000..40_000),
        _ => 16 + rng.usize(0..32),
    };
    let payload = payload(world, number, size);
    let to_one = rng.u32(0..RARE) == 0 && !for_all;
    let (area, item, kind) = (
        rng.u32(0..AREAS),
        rng.u32(0..ITEMS),
        rng.usize(0..KINDS.len()),
    );
    let topic = match to_one {
        true => format!("$client.c{}", rng.usize(0..world.clients)),
        false => format!("a{area}.i{item}.{}", KINDS[kind]),
    };
    let key = match rng.bool() {
        true => format!("k{}", rng.u32(0..16)),
        false => String::new(),
    };
    NewEvent {
        topic,
        key,
        payload: payload.into(),
        ..NewEvent::default()
    }
}

/// Returns the time at which the event with this payload was published, on the clock of the world.
pub(crate) fn published_at(payload: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*payload.get(8..)?.first_chunk()?))
}

//! Clients of every behavior.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use fastrand::Rng;
use http::uri::PathAndQuery;
use tidegate::{Encoded, Hub};
use tidegate_proto::v1::{Position, SubscribeRequest};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::{Request, Status, Streaming, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

use super::{
    plan::{Behavior, ClientPlan, Link},
    publisher::published_at,
    world::World,
};
use crate::{
    lean::{Response, SubscribeResponse},
    record::{Client, Ending, Stream},
};

/// How long a stream may be silent: three heartbeat intervals.
const SILENCE: Duration = Duration::from_secs(3);

/// How long a slow link may take for a response.
const LONG_SILENCE: Duration = Duration::from_secs(60);

/// How long a client may take to read to the end, once nothing is published any more.
const FINISH: Duration = Duration::from_secs(20);

/// The pause after a failure to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// The stream windows, in bytes. With the small one, which is the default of HTTP/2, a pause in reading soon stops the
/// server.
const SMALL_WINDOW: u32 = 65_535;
const LARGE_WINDOW: u32 = 1 << 20;
/// The stream window of slow links, where the answer to a ping would wait behind a larger one for seconds, and of
/// clients that rest within a release, which is more than this.
const TINY_WINDOW: u32 = 16 << 10;

/// The connection's window, as a multiple of the stream's. `tidegate-client` has the same: with a smaller one, h2 takes
/// a pause over many small events for an attack, and closes the reader's connection.
const CONNECTION_WINDOW_FACTOR: u32 = 32;

/// The next action of a client.
enum Next {
    Resume,
    TakeOver(Box<Incoming>),
    Vanish,
    Done,
}

type Incoming = Streaming<SubscribeResponse>;

/// A recorded stream, or a task that reads a stream to its end.
enum Recorded {
    Here(Box<Stream>),
    Elsewhere(JoinHandle<Stream>),
}

/// A client while it runs.
pub(crate) struct Actor {
    plan: ClientPlan,
    /// Its number among the healthy clients, if it is one.
    healthy: Option<usize>,
    world: Arc<World>,
    rng: Rng,
    finish: watch::Receiver<Option<Position>>,
    /// The time by which it must have read to the end.
    deadline: Option<Instant>,
}

impl Actor {
    pub(crate) fn new(plan: ClientPlan, healthy: Option<usize>, world: Arc<World>) -> Self {
        Self {
            rng: Rng::with_seed(plan.seed),
            finish: world.finish.subscribe(),
            plan,
            healthy,
            world,
            deadline: None,
        }
    }

    /// Runs until every published event has arrived, and returns the records: one client for each name that it had.
    pub(crate) async fn run(mut self) -> Vec<Client> {
        let mut clients = Vec::new();
        let mut streams = Vec::new();
        let mut request = self.request(0, None);
        loop {
            let mut stream = Stream::new(request.clone());
            let next = self.stream(&mut stream).await;
            if let Some(position) = stream.position() {
                request = self.request(clients.len(), Some(position));
            }
            // Else nothing was settled, and it asks for the same again.
            let has_begun = stream.epoch().is_some();
            match next {
                Next::TakeOver(incoming) => {
                    let hub = stream.epoch().and_then(|epoch| self.world.hub_of(epoch));
                    let old = tokio::spawn(read_to_the_end(*incoming, stream, hub));
                    streams.push(Recorded::Elsewhere(old));
                    continue;
                }
                _ => streams.push(Recorded::Here(Box::new(stream))),
            }
            match next {
                Next::Done => break,
                Next::Vanish => {
                    clients.push(
                        self.client(clients.len(), std::mem::take(&mut streams))
                            .await,
                    );
                    request = self.request(clients.len(), None);
                }
                _ if !has_begun => sleep(PAUSE).await,
                _ => {}
            }
        }
        clients.push(self.client(clients.len(), streams).await);
        clients
    }

    async fn client(&self, life: usize, recorded: Vec<Recorded>) -> Client {
        let mut streams = Vec::new();
        for stream in recorded {
            streams.push(match stream {
                Recorded::Here(stream) => *stream,
                Recorded::Elsewhere(reading) => reading.await.expect("reading does not panic"),
            });
        }
        Client {
            name: self.name(life),
            is_healthy: self.plan.behavior.is_healthy(),
            is_disturbed: !self.plan.behavior.is_healthy(),
            streams,
        }
    }

    fn name(&self, life: usize) -> String {
        match life {
            0 => self.plan.name.clone(),
            _ => format!("{}-{life}", self.plan.name),
        }
    }

    fn request(&mut self, life: usize, position: Option<Position>) -> SubscribeRequest {
        let may_replay = position.is_none() && !self.plan.behavior.is_healthy();
        let (position, replay_last) = match self.plan.behavior {
            // Few, many, or more than there are.
            Behavior::Replaying if may_replay && self.rng.bool() => (Some(self.old_position()), 0),
            Behavior::Replaying if may_replay => (None, 1 << self.rng.u32(0..19)),
            _ if may_replay && self.rng.bool() => (None, self.rng.u32(1..5_000)),
            _ => (position, 0),
        };
        SubscribeRequest {
            client_id: self.name(life),
            filters: self.plan.filters.clone(),
            limits: Some(self.plan.limits),
            resume_after: position,
            replay_last,
            heartbeat_interval: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            min_interval: (self.plan.min_interval > 0).then(|| prost_types::Duration {
                seconds: i64::from(self.plan.min_interval / 1_000),
                nanos: (self.plan.min_interval % 1_000) as i32 * 1_000_000,
            }),
        }
    }

    /// Returns a position of the current epoch that is some or many events old.
    fn old_position(&mut self) -> Position {
        let head = self.world.hub().position();
        Position {
            epoch: head.epoch,
            sequence: head.sequence.saturating_sub(1 << self.rng.u32(4..20)),
        }
    }

    fn is_finishing(&self) -> bool {
        self.finish.borrow().is_some()
    }

    /// Opens a stream and reads it.
    async fn stream(&mut self, stream: &mut Stream) -> Next {
        let link = match self.is_finishing() {
            true => Link::Direct,
            false => self.plan.behavior.link(),
        };
        let address = self.world.address(link);
        let window = match self.plan.behavior {
            Behavior::Healthy => LARGE_WINDOW,
            Behavior::Conflating => TINY_WINDOW,
            _ if link == Link::Slow => TINY_WINDOW,
            _ => SMALL_WINDOW,
        };
        let opening = subscribe(address, window, stream.request.clone());
        match in_time(SILENCE, async { opening.await.map(Some) }).await {
            Ok(incoming) => self.read(incoming, stream, link).await,
            Err(ending) => {
                stream.end(ending);
                self.after(stream)
            }
        }
    }

    async fn read(&mut self, mut incoming: Incoming, stream: &mut Stream, link: Link) -> Next {
        let silence = match link {
            Link::Slow => LONG_SILENCE,
            _ => SILENCE,
        };
        let mut hub = None;
        let mut responses = 0u32;
        let until = self.rng.u32(5..3_000);
        loop {
            if self.is_finishing() && (link != Link::Direct || self.is_done(stream)) {
                stream.end(Ending::Cancelled);
                return self.after(stream);
            }
            let message = tokio::select! {
                message = in_time(silence, incoming.message()) => message,
                Ok(()) = self.finish.changed() => continue,
            };
            let response = match message {
                Ok(message) => message.response,
                Err(ending) => {
                    stream.end(ending);
                    return self.after(stream);
                }
            };
            stream.record(response.as_ref(), || head(hub.as_ref()));
            hub = hub.or_else(|| self.world.hub_of(stream.epoch()?));
            self.count(response.as_ref(), stream);
            responses += 1;
            if self.is_finishing() {
                continue;
            }
            match self.plan.behavior {
                Behavior::Slow => sleep(Duration::from_micros(self.rng.u64(0..20_000))).await,
                Behavior::Stalling if self.rng.u32(0..200) == 0 => {
                    sleep(Duration::from_millis(self.rng.u64(50..2_000))).await;
                }
                // In the middle of a release, which is more than a window.
                Behavior::Conflating if is_batch(response.as_ref()) && self.rng.u32(0..4) == 0 => {
                    sleep(Duration::from_millis(self.rng.u64(50..400))).await;
                }
                Behavior::Conflating
                    if is_heartbeat(response.as_ref()) && self.rng.u32(0..3) == 0 =>
                {
                    stream.end(Ending::Cancelled);
                    return Next::Resume;
                }
                Behavior::Replaying if stream.has_caught_up() && responses > until / 10 => {
                    stream.end(Ending::Cancelled);
                    return Next::Vanish;
                }
                Behavior::Vanishing if responses > until => {
                    stream.end(Ending::Cancelled);
                    return Next::Vanish;
                }
                Behavior::Reconnecting if responses > until => {
                    stream.end(Ending::Cancelled);
                    return Next::Resume;
                }
                Behavior::TakingOver if responses > until => {
                    return Next::TakeOver(Box::new(incoming));
                }
                _ => {}
            }
        }
    }

    /// Returns the action after the end of a stream.
    fn after(&mut self, stream: &mut Stream) -> Next {
        let Some(end) = *self.finish.borrow() else {
            return Next::Resume;
        };
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + FINISH);
        let in_epoch = stream.epoch() == Some(end.epoch);
        if self.is_done(stream) || Instant::now() > deadline && in_epoch {
            // If it is late, the checker finds the events that never came.
            stream.complete(end.sequence);
            return Next::Done;
        }
        match Instant::now() > deadline + FINISH {
            true => Next::Done,
            false => Next::Resume,
        }
    }

    /// Whether the stream has reached the end, or is too late.
    fn is_done(&mut self, stream: &Stream) -> bool {
        let Some(end) = *self.finish.borrow() else {
            return false;
        };
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + FINISH);
        let reached = stream.position().is_some_and(|position| {
            position.epoch == end.epoch && position.sequence >= end.sequence
        });
        reached && stream.epoch() == Some(end.epoch) && stream.has_caught_up()
            || Instant::now() > deadline
    }

    fn count(&self, response: Option<&Response>, stream: &Stream) {
        let counts = &self.world.counts;
        match response {
            Some(Response::Batch(batch)) => {
                counts.slots.fetch_add(batch.events.len() as u64, Relaxed);
                if self.plan.behavior.is_healthy()
                    && let Some(at) = batch
                        .events
                        .first()
                        .and_then(|event| published_at(&event.payload))
                {
                    counts
                        .latency
                        .fetch_max(self.world.now().saturating_sub(at), Relaxed);
                }
            }
            Some(Response::Gap(gap)) => {
                counts.slots.fetch_add(gap.count, Relaxed);
            }
            _ => {}
        }
        if let Some(healthy) = self.healthy {
            self.world.advance(healthy, stream.position());
        }
    }
}

/// Reads a stream to its end, after another has taken over.
async fn read_to_the_end(
    mut incoming: Incoming,
    mut stream: Stream,
    hub: Option<Hub<Encoded>>,
) -> Stream {
    loop {
        match in_time(SILENCE, incoming.message()).await {
            Ok(message) => stream.record(message.response.as_ref(), || head(hub.as_ref())),
            Err(ending) => stream.end(ending),
        }
        if stream.has_ended() {
            return stream;
        }
    }
}

const fn is_batch(response: Option<&Response>) -> bool {
    matches!(response, Some(Response::Batch(_)))
}

const fn is_heartbeat(response: Option<&Response>) -> bool {
    matches!(response, Some(Response::Heartbeat(_)))
}

/// Waits for the next item of a stream. Returns the end of the stream instead, if it ended or is silent for too long.
async fn in_time<T>(
    silence: Duration,
    coming: impl Future<Output = Result<Option<T>, Status>>,
) -> Result<T, Ending> {
    match timeout(silence, coming).await {
        Ok(Ok(Some(come))) => Ok(come),
        Ok(Ok(None)) => Err(Ending::Finished),
        Ok(Err(status)) => Err(Ending::from(&status)),
        Err(_) => Err(Ending::Cancelled),
    }
}

/// Returns the newest sequence, including a publish that is in progress: its events in the feeds may have dropped
/// others before the hub states its new position.
fn head(hub: Option<&Hub<Encoded>>) -> u64 {
    let Some(hub) = hub else { return 0 };
    // Takes the publish lock, and so waits until that publish is over.
    let _ = hub.stats();
    hub.position().sequence
}

/// Opens a connection of its own with one stream.
async fn subscribe(
    address: SocketAddr,
    window: u32,
    request: SubscribeRequest,
) -> Result<Incoming, Status> {
    const METHOD: &str = "/tidegate.v1.EventService/Subscribe";
    let unavailable = |error: &dyn std::error::Error| Status::unavailable(error.to_string());
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|error| unavailable(&error))?;
    let channel = endpoint
        .initial_stream_window_size(window)
        .initial_connection_window_size(window * CONNECTION_WINDOW_FACTOR)
        .connect()
        .await
        .map_err(|error| unavailable(&error))?;
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|error| unavailable(&error))?;
    let codec = ProstCodec::<SubscribeRequest, SubscribeResponse>::default();
    let path = PathAndQuery::from_static(METHOD);
    Ok(grpc
        .server_streaming(Request::new(request), path, codec)
        .await?
        .into_inner())
}

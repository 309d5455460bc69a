//! A typed hub in the process, and subscriptions with predicates that come and go while others publish.
//!
//! A subscription in the process has no `Subscribed`, no indexes and no `CaughtUp`. Its records have all three: the
//! position at which it began, indexes by count, and the end of its replay before the first event beyond that position.

use std::{
    future::pending,
    num::NonZero,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use fastrand::Rng;
use futures_util::StreamExt as _;
use tidegate::{
    ClientId, GapReason as CoreReason, HistoryLimits, Limits, Overflow,
    typed::{Hub, Predicate, Publication, Shared, Subscription},
};
use tidegate_proto::v1::{
    CaughtUp, Gap, GapReason, NewEvent, Position, PublishResponse, SubscribeRequest, Subscribed,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Counts,
    plan::{AREAS, ITEMS, KINDS, Scenario, filters},
};
use crate::{
    check::{Rules, Tally, check, check_clean_up, check_memory},
    lean::{Batch, Event, Response},
    record::{Client, Ending, Stream},
    truth::{LAST, Remainder, Truth, filter_matches},
    violation::Violation,
};

/// Publishers of the hub.
const PUBLISHERS: u64 = 2;

/// The time between two batches of a publisher, and the most events of a batch.
const PACE: Duration = Duration::from_millis(4);
const BATCH: usize = 12;

/// Events that arrive as one batch of the records.
const CHUNK: usize = 64;

/// Predicates that several subscriptions have, by divisor and remainder.
const POOL: [Remainder; 4] = [
    Remainder {
        divisor: 1,
        remainder: 0,
    },
    Remainder {
        divisor: 2,
        remainder: 1,
    },
    Remainder {
        divisor: 5,
        remainder: 3,
    },
    Remainder {
        divisor: 64,
        remainder: 9,
    },
];

/// How long a client may take to read to the end, once nothing is published any more.
const FINISH: Duration = Duration::from_secs(20);

/// The bytes of the budget, and those that may be held beside it: a chunk and an event for each subscription.
const SMALL_BUDGET: u64 = 512 << 10;
const BESIDE: u64 = 1 << 20;

/// A message of the hub, or a gap in the place of one.
#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(bytes = "bytes", tag = "2")]
    padding: bytes::Bytes,
    #[prost(message, optional, tag = "3")]
    gap: Option<Gap>,
}

/// How a subscriber behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Reads all the time.
    Healthy,
    /// Rests after each chunk, with small limits.
    Slow,
    /// Rests as well, and conflates.
    Conflating,
    /// Leaves soon and resumes, each time with a predicate of its own that says the same.
    Returning,
    /// Leaves soon for good. Another comes instead, with another predicate.
    Passing,
}

/// How many subscribers there are of each manner, at scale 1.
const POPULATION: [(Manner, usize); 5] = [
    (Manner::Healthy, 2),
    (Manner::Slow, 1),
    (Manner::Conflating, 1),
    (Manner::Returning, 1),
    (Manner::Passing, 2),
];

/// The state that publishers and subscribers share.
struct Room {
    hub: Hub<Value>,
    truth: Mutex<Truth>,
    /// One of each of [`POOL`].
    pool: Vec<Predicate<Value>>,
    has_small_budget: bool,
    counts: Arc<Counts>,
}

/// A subscriber while it runs.
struct Actor {
    room: Arc<Room>,
    name: String,
    manner: Manner,
    filters: Vec<String>,
    /// Its predicate, and the place of that in the pool, if it is shared.
    remainder: Remainder,
    pooled: Option<usize>,
    limits: Limits,
    rng: Rng,
    /// The last sequence, once nothing more is published.
    finished: watch::Receiver<Option<u64>>,
}

/// Runs a hub until `stop`, and checks everything.
pub(crate) async fn run(
    seed: u64,
    scenario: Scenario,
    scale: usize,
    counts: Arc<Counts>,
    stop: CancellationToken,
) -> Result<Tally, Violation> {
    let mut rng = Rng::with_seed(seed);
    let may_evict = scenario == Scenario::SmallBudget;
    let history = scenario.history() / 20;
    let mut hub = Hub::<Value>::builder().history(HistoryLimits {
        max_events: history,
        max_bytes: 1 << 30,
        max_age: Duration::from_secs(3_600),
    });
    if may_evict {
        hub = hub.memory_budget(SMALL_BUDGET);
    }
    let room = Arc::new(Room {
        hub: hub.build(),
        truth: Mutex::default(),
        pool: POOL.into_iter().map(predicate).collect(),
        has_small_budget: may_evict,
        counts,
    });
    let (finish, finished) = watch::channel(None);
    let mut actors = JoinSet::new();
    let manners = POPULATION
        .iter()
        .flat_map(|(manner, count)| std::iter::repeat_n(*manner, count * scale));
    for (number, manner) in manners.enumerate() {
        let actor = Actor::new(number, manner, &mut rng, &room, &finished);
        actors.spawn(actor.run());
    }
    let mut publishers = JoinSet::new();
    for number in 1..=PUBLISHERS {
        publishers.spawn(publish(Arc::clone(&room), number, rng.fork(), stop.clone()));
    }
    let published = publishers.join_all().await;
    // One event of each topic, so that every subscription has a last one.
    let last = topics().map(|topic| (topic, "last".to_owned(), LAST, 0));
    let ended = room.publish(last.collect());
    finish.send_replace(Some(room.head()));
    let clients: Vec<Client> = actors.join_all().await.into_iter().flatten().collect();
    let stats = room.hub.stats();

    published.into_iter().collect::<Result<(), _>>()?;
    ended?;
    check_clean_up(&stats)?;
    let rules = Rules {
        history_events: (!may_evict).then_some(history as u64),
        may_evict,
    };
    check(
        &room.truth.lock().expect("no holder panics"),
        &clients,
        rules,
    )
}

fn topics() -> impl Iterator<Item = String> {
    let items = move |area| (0..ITEMS).map(move |item| (area, item));
    (0..AREAS)
        .flat_map(items)
        .flat_map(|(area, item)| KINDS.map(|kind| format!("a{area}.i{item}.{kind}")))
}

fn predicate(remainder: Remainder) -> Predicate<Value> {
    Predicate::new(move |value: &Value| remainder.matches(value.number))
}

// ===== impl Room =====

impl Room {
    /// Publishes a batch of events, by topic, key, number and bytes of padding.
    fn publish(&self, batch: Vec<(String, String, u64, usize)>) -> Result<(), Violation> {
        let mut prepared = Vec::new();
        let mut publications = Vec::new();
        let mut truth = self.truth.lock().expect("no holder panics");
        for (topic, key, number, padding) in batch {
            let value = Value {
                number,
                padding: vec![number as u8; padding].into(),
                gap: None,
            };
            prepared.push(truth.prepare(&NewEvent {
                topic: topic.clone(),
                key: key.clone(),
                payload: payload(&value).into(),
                ..NewEvent::default()
            }));
            let publication = Publication::new(value).topic(topic);
            publications.push(match key.is_empty() {
                true => publication,
                false => publication.key(key),
            });
        }
        // Not held while publishing, so that publishers meet.
        drop(truth);
        let published = self
            .hub
            .publish_all(publications)
            .expect("the topics are valid, and the hub is open");
        let answer = PublishResponse {
            epoch: published.epoch,
            first_sequence: published.first_sequence,
            last_sequence: published.last_sequence,
            count: prepared.len() as u32,
            ..PublishResponse::default()
        };
        let mut truth = self.truth.lock().expect("no holder panics");
        self.counts
            .published
            .fetch_add(prepared.len() as u64, Relaxed);
        truth.acknowledge(&prepared, &answer)
    }

    fn count(&self, slots: u64) {
        self.counts.slots.fetch_add(slots, Relaxed);
        self.counts.typed.fetch_add(slots, Relaxed);
    }

    /// Returns the newest sequence, including a publish that is in progress.
    fn head(&self) -> u64 {
        // Takes the publish lock.
        let _ = self.hub.stats();
        self.hub.position().sequence
    }
}

/// Returns the payload by which the checker knows a value: its number, and what else it has.
fn payload(value: &Value) -> Vec<u8> {
    [&value.number.to_le_bytes()[..], &value.padding].concat()
}

async fn publish(
    room: Arc<Room>,
    publisher: u64,
    mut rng: Rng,
    stop: CancellationToken,
) -> Result<(), Violation> {
    let mut next = publisher << 48;
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.is_cancelled() {
        pace.tick().await;
        let count = rng.usize(1..=BATCH);
        let batch = (0..count).map(|_| {
            next += 1;
            let (area, item) = (rng.u32(0..AREAS), rng.u32(0..ITEMS));
            let kind = KINDS[rng.usize(0..KINDS.len())];
            let key = match rng.bool() {
                true => format!("k{}", rng.u32(0..8)),
                false => String::new(),
            };
            let padding = rng.usize(0..200);
            (format!("a{area}.i{item}.{kind}"), key, next, padding)
        });
        room.publish(batch.collect())?;
        let bound = SMALL_BUDGET + BESIDE;
        if room.has_small_budget {
            check_memory(room.hub.stats().retained_bytes, bound)?;
        }
    }
    Ok(())
}

// ===== impl Actor =====

impl Actor {
    fn new(
        number: usize,
        manner: Manner,
        rng: &mut Rng,
        room: &Arc<Room>,
        finished: &watch::Receiver<Option<u64>>,
    ) -> Self {
        let pooled = (manner != Manner::Passing && rng.bool()).then(|| rng.usize(0..POOL.len()));
        Self {
            room: Arc::clone(room),
            name: format!("typed{number}"),
            manner,
            filters: filters(rng),
            remainder: pooled.map_or_else(|| any_remainder(rng), |at| POOL[at]),
            pooled,
            limits: Limits {
                max_events: power_of_two(match manner {
                    Manner::Healthy => 16,
                    _ => rng.u32(4..12),
                }),
                max_bytes: power_of_two(match manner {
                    Manner::Healthy => 26,
                    _ => rng.u32(14..20),
                }),
                overflow: match manner {
                    Manner::Conflating => Overflow::Conflate,
                    _ => Overflow::DropOldest,
                },
            },
            rng: rng.fork(),
            finished: finished.clone(),
        }
    }

    async fn run(mut self) -> Vec<Client> {
        let mut clients: Vec<Client> = Vec::new();
        let mut streams = Vec::new();
        let mut position = None;
        loop {
            let name = match clients.len() {
                0 => self.name.clone(),
                life => format!("{}-{life}", self.name),
            };
            let (stream, is_done) = self.stream(&name, position).await;
            position = stream.position();
            streams.push(stream);
            // One that began now would have nothing to come.
            let is_done = is_done || self.manner == Manner::Passing && self.is_finished();
            if is_done || self.manner == Manner::Passing {
                clients.push(Client {
                    name,
                    is_healthy: self.manner == Manner::Healthy && !self.room.has_small_budget,
                    is_disturbed: false,
                    streams: std::mem::take(&mut streams),
                });
                position = None;
                self.remainder = any_remainder(&mut self.rng);
            }
            if is_done {
                return clients;
            }
        }
    }

    fn is_finished(&self) -> bool {
        self.finished.borrow().is_some()
    }

    /// Subscribes and reads. Returns whether it has read to the end.
    async fn stream(&mut self, name: &str, position: Option<Position>) -> (Stream, bool) {
        let own;
        let predicate = match self.pooled {
            Some(at) => &self.room.pool[at],
            None => {
                own = predicate(self.remainder);
                &own
            }
        };
        let client_id = ClientId::new(name).expect("the name is a token");
        let subscription = self
            .room
            .hub
            .subscribe()
            .client_id(client_id)
            .topics(self.filters.iter().map(String::as_str))
            .limits(self.limits)
            .resume_after(position.map(|position| tidegate::Position {
                epoch: position.epoch,
                sequence: position.sequence,
            }))
            .matching(predicate)
            .on_loss(|gap| {
                Some(Value {
                    gap: Some(wire_gap(gap)),
                    ..Value::default()
                })
            })
            .open()
            .expect("nothing of it is refused");
        let record = Record::new(self, &subscription, position);
        self.read(subscription, record).await
    }

    async fn read(
        &mut self,
        subscription: Subscription<Value>,
        mut record: Record,
    ) -> (Stream, bool) {
        let until = self.rng.usize(1..200);
        let mut chunks = subscription.ready_chunks(CHUNK);
        let mut deadline = None;
        for number in 0.. {
            let end = *self.finished.borrow();
            if end.is_some() {
                deadline.get_or_insert_with(|| Instant::now() + FINISH);
            }
            if end.is_some_and(|end| record.has_read_to(end)) {
                return (record.complete(), true);
            }
            let chunk = tokio::select! {
                chunk = chunks.next() => chunk,
                Ok(()) = self.finished.changed(), if end.is_none() => continue,
                () = late(deadline) => None,
            };
            let Some(chunk) = chunk else {
                // The checker finds what never came.
                record.last = self.room.head();
                return (record.complete(), true);
            };
            for item in chunk {
                match item {
                    Ok(item) => record.item(&item, &self.room),
                    Err(status) => record.stream.end(Ending::from(&status)),
                }
            }
            record.flush();
            if record.stream.has_ended() {
                return (record.stream, false);
            }
            match self.manner {
                _ if end.is_some() => {}
                Manner::Slow | Manner::Conflating => {
                    sleep(Duration::from_millis(self.rng.u64(0..60))).await;
                }
                Manner::Returning | Manner::Passing if number > until => {
                    record.stream.end(Ending::Cancelled);
                    return (record.stream, false);
                }
                _ => {}
            }
        }
        unreachable!("it goes on forever")
    }
}

fn power_of_two(exponent: u32) -> NonZero<u64> {
    NonZero::new(1 << exponent).expect("a power of two is not 0")
}

fn any_remainder(rng: &mut Rng) -> Remainder {
    let divisor = rng.u64(1..40);
    Remainder {
        divisor,
        remainder: rng.u64(0..divisor),
    }
}

async fn late(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

// ===== Record =====

/// The record of a subscription, as that of a stream over the wire.
struct Record {
    stream: Stream,
    /// The position at which the subscription began.
    began: Position,
    /// Whether each event is a batch of its own. Of survivors that came ready together, some may have come from the hub
    /// later than others, and then replace them.
    is_conflating: bool,
    /// Whether the end of its replay is still to be recorded.
    is_replaying: bool,
    next_index: u64,
    /// The last sequence that came.
    last: u64,
    batch: Vec<Event>,
    /// The topic of the last event that it will get.
    last_topic: String,
    has_last: bool,
}

impl Record {
    fn new(actor: &Actor, subscription: &Subscription<Value>, asked: Option<Position>) -> Self {
        let client_id = subscription.client_id().as_str().to_owned();
        let began = subscription.began_at();
        let began = Position {
            epoch: began.epoch,
            sequence: began.sequence,
        };
        let overflow = match actor.limits.overflow {
            Overflow::Conflate => tidegate_proto::v1::Overflow::Conflate,
            _ => tidegate_proto::v1::Overflow::DropOldest,
        };
        let mut stream = Stream::new(SubscribeRequest {
            client_id: client_id.clone(),
            filters: actor.filters.clone(),
            resume_after: asked,
            ..SubscribeRequest::default()
        });
        stream.predicate = Some(actor.remainder);
        let subscribed = Subscribed {
            client_id,
            subscription_id: subscription.id().to_string(),
            position: Some(began),
            next_index: 0,
            limits: Some(tidegate_proto::v1::Limits {
                max_events: actor.limits.max_events.get() as u32,
                max_bytes: actor.limits.max_bytes.get(),
                overflow: overflow.into(),
            }),
        };
        stream.record(Some(&Response::Subscribed(subscribed)), || 0);
        let mut wanted = topics().filter(|topic| {
            let matches = |filter: &String| filter_matches(filter, topic);
            actor.filters.iter().any(matches)
        });
        Self {
            stream,
            began,
            is_conflating: actor.limits.overflow == Overflow::Conflate,
            is_replaying: asked.is_some(),
            next_index: 0,
            last: 0,
            batch: Vec::new(),
            last_topic: wanted.by_ref().last().expect("each filter matches a topic"),
            has_last: false,
        }
    }

    fn item(&mut self, item: &Shared<Value>, room: &Room) {
        if let Some(gap) = &item.gap {
            self.end_replay_before(gap.first_sequence);
            self.flush();
            let gap = Gap {
                first_index: self.next_index,
                ..*gap
            };
            self.next_index += gap.count;
            room.count(gap.count);
            self.stream
                .record(Some(&Response::Gap(gap)), || room.head());
            return;
        }
        let sequence = item.position().map_or(0, |position| position.sequence);
        let topic = item.topic().map_or("", |topic| topic.as_str());
        self.end_replay_before(sequence);
        room.count(1);
        self.last = sequence;
        self.has_last |= item.number == LAST && topic == self.last_topic;
        self.batch.push(Event {
            sequence,
            topic: topic.to_owned().into(),
            payload: payload(item).into(),
            key: item.key().unwrap_or_default().to_owned().into(),
            ..Event::default()
        });
        if self.is_conflating {
            self.flush();
        }
    }

    /// Records the batch so far.
    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let events = std::mem::take(&mut self.batch);
        let first_index = self.next_index;
        self.next_index += events.len() as u64;
        let batch = Batch {
            events,
            first_index,
        };
        self.stream.record(Some(&Response::Batch(batch)), || 0);
    }

    /// Records the end of the replay, if the next response is of an event behind it.
    fn end_replay_before(&mut self, sequence: u64) {
        if self.is_replaying && sequence > self.began.sequence {
            self.end_replay(sequence - 1);
        }
    }

    fn end_replay(&mut self, sequence: u64) {
        self.flush();
        let position = Some(Position {
            sequence,
            ..self.began
        });
        let caught_up = Response::CaughtUp(CaughtUp { position });
        self.stream.record(Some(&caught_up), || 0);
        self.is_replaying = false;
    }

    /// Whether nothing can come any more, when the hub has ended at `end`.
    fn has_read_to(&self, end: u64) -> bool {
        self.has_last || !self.is_replaying && self.began.sequence >= end
    }

    /// Returns the record of a stream that was read to the end.
    fn complete(mut self) -> Stream {
        if self.is_replaying {
            self.end_replay(self.last.max(self.began.sequence));
        }
        self.stream.end(Ending::Cancelled);
        self.stream.complete(self.last.max(self.began.sequence));
        self.stream
    }
}

fn wire_gap(gap: &tidegate::Gap) -> Gap {
    let reason = match gap.reason {
        CoreReason::Overflow => GapReason::Overflow,
        CoreReason::Conflated => GapReason::Conflated,
        CoreReason::Evicted => GapReason::Evicted,
        CoreReason::Expired => GapReason::Expired,
        CoreReason::EpochChanged => GapReason::EpochChanged,
        CoreReason::Backplane => GapReason::Backplane,
    };
    Gap {
        first_sequence: gap.first_sequence,
        last_sequence: gap.last_sequence,
        count: gap.count,
        reason: reason.into(),
        first_index: gap.first_index,
    }
}

//! The hub against a naive model: a private `VecDeque` for each client, filled at each publish, whose
//! oldest entries are dropped at once when it is over its limits.
//!
//! Over random interleavings of publish, drain by any amount, subscribe with any limits, cancel, takeover
//! and replay, both must hand out the same events and the same gaps, with the same indexes.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroU64,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use proptest::prelude::*;
use tidegate_core::{
    Batch, ClientId, CloseReason, Filter, Gap, GapReason, HistoryLimits, Hub, HubConfig, Limits,
    NewEvent, Overflow, Position, Room, Start, SubscribeOptions, Subscription, Topic,
};

const EPOCH: u64 = 7;
const TOPICS: [&str; 7] = ["a", "b", "a.x", "a.y", "b.x", "c.d.e", "$client.c1"];
const FILTERS: [&str; 10] = [
    "a", "b", "a.x", "a.*", "*.x", "a.>", ">", "c.d.e", "c.>", "*",
];
const CLIENTS: u8 = 4;

// ===== what happens =====

#[derive(Debug, Clone)]
enum Action {
    /// Topic, size and key of each event.
    Publish(Vec<(usize, usize, Option<u8>)>),
    /// An event from a sequencer that left a hole of so many.
    AppendAfterHole(u64),
    Drain {
        client: u8,
        room: Room,
        release: Release,
    },
    Subscribe {
        client: u8,
        filters: Vec<usize>,
        limits: Limits,
        begin: Begin,
    },
    Cancel {
        client: u8,
    },
}

#[derive(Debug, Clone, Copy)]
enum Begin {
    Live,
    Last(u32),
    /// So many sequences before the head, or 0.
    Back(u64),
    OtherEpoch,
}

/// What a poll leaves for later.
#[derive(Debug, Clone, Copy)]
enum Release {
    /// Nothing.
    All,
    /// Events after the sequence so far before the head, or all.
    Back(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let event = (0..TOPICS.len(), 0..40usize, prop::option::of(0..3u8));
    let room = (1..12usize, prop_oneof![Just(u64::MAX), 1..200u64], 0..3u64).prop_map(
        |(events, bytes, overhead)| Room {
            events,
            bytes,
            overhead,
            up_to: u64::MAX,
        },
    );
    let release = prop_oneof![
        1 => Just(Release::All),
        1 => (0..12u64).prop_map(Release::Back),
    ];
    let begin = prop_oneof![
        4 => Just(Begin::Live),
        2 => (1..25u32).prop_map(Begin::Last),
        2 => (0..30u64).prop_map(Begin::Back),
        1 => Just(Begin::OtherEpoch),
    ];
    let filters = prop::collection::vec(0..FILTERS.len(), 0..5);
    prop_oneof![
        6 => prop::collection::vec(event, 1..6).prop_map(Action::Publish),
        1 => (1..5u64).prop_map(Action::AppendAfterHole),
        6 => (0..CLIENTS, room, release)
            .prop_map(|(client, room, release)| Action::Drain { client, room, release }),
        3 => (0..CLIENTS, filters, limits(), begin)
            .prop_map(|(client, filters, limits, begin)| Action::Subscribe { client, filters, limits, begin }),
        1 => (0..CLIENTS).prop_map(|client| Action::Cancel { client }),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let overflow = prop_oneof![
        3 => Just(Overflow::DropOldest),
        2 => Just(Overflow::Conflate),
        1 => Just(Overflow::Disconnect),
    ];
    (1..10u64, prop_oneof![Just(1 << 20), 1..200u64], overflow).prop_map(
        |(events, bytes, overflow)| Limits {
            max_events: NonZeroU64::new(events).unwrap(),
            max_bytes: NonZeroU64::new(bytes).unwrap(),
            overflow,
        },
    )
}

// ===== the model =====

/// An event as the model keeps it.
#[derive(Debug, Clone)]
struct Sent {
    sequence: u64,
    topic: Topic,
    key: Option<Arc<str>>,
    size: u64,
}

struct Model {
    head: u64,
    history: VecDeque<Sent>,
    evicted_through: u64,
    history_limit: usize,
    clients: BTreeMap<u8, Client>,
}

struct Client {
    filters: Vec<Filter>,
    limits: Limits,
    /// Matching events that were not delivered.
    queue: VecDeque<Sent>,
    /// First and last sequence and count of what is lost and was not told.
    lost: Option<(u64, u64, u64)>,
    /// The answer to the first poll, and nothing else, when history has nothing to replay.
    opening: Option<(Option<GapReason>, u64)>,
    /// Until it has caught up, history alone bounds the queue.
    replay: Option<ModelReplay>,
    overflowed: bool,
    /// The sequences of what was replaced, ever, and how much of that was told.
    replaced: Vec<u64>,
    told_replaced: u64,
    /// The same, of the batch that is being looked at.
    replaced_in_batch: u64,
    delivered: u64,
    counted: u64,
}

struct ModelReplay {
    begin: Begin,
    after: u64,
    /// The head when it subscribed.
    head: u64,
    /// Whether it was polled before, and so was told of what was missing from the start.
    opened: bool,
}

impl Model {
    fn publish(&mut self, sent: Sent) {
        self.head = sent.sequence;
        for client in self
            .clients
            .values_mut()
            .filter(|client| client.wants(&sent.topic))
        {
            if client.replay.is_none() && client.limits.overflow == Overflow::Conflate {
                client.replace(&sent);
            }
            client.queue.push_back(sent.clone());
            if client.replay.is_none() && client.limits.overflow != Overflow::Conflate {
                client.drop_oldest(u64::MAX);
            }
        }
        self.history.push_back(sent);
        while self.history.len() > self.history_limit {
            self.evicted_through = self.history.pop_front().unwrap().sequence;
            for client in self.clients.values_mut() {
                client.forget(self.evicted_through);
            }
        }
    }

    fn subscribe(&mut self, filters: Vec<Filter>, limits: Limits, begin: Begin) -> Client {
        let mut client = Client {
            filters,
            limits,
            queue: VecDeque::new(),
            lost: None,
            opening: None,
            replay: None,
            overflowed: false,
            replaced: Vec::new(),
            told_replaced: 0,
            replaced_in_batch: 0,
            delivered: 0,
            counted: 0,
        };
        let after = if let Begin::Back(n) = begin {
            self.head.saturating_sub(n)
        } else {
            0
        };
        let newest = self.history.back().map_or(0, |newest| newest.sequence);
        if matches!(begin, Begin::Live) {
        } else if newest <= after {
            client.opening = Some((self.missing_from(begin, after), self.head));
        } else {
            let wanted = |sent: &&Sent| sent.sequence > after && client.wants(&sent.topic);
            client.queue = self.history.iter().filter(wanted).cloned().collect();
            if let Begin::Last(n) = begin {
                client
                    .queue
                    .drain(..client.queue.len().saturating_sub(n as usize));
            }
            client.replay = Some(ModelReplay {
                begin,
                after,
                head: self.head,
                opened: false,
            });
        }
        client
    }

    fn missing_from(&self, begin: Begin, after: u64) -> Option<GapReason> {
        match begin {
            Begin::OtherEpoch => Some(GapReason::EpochChanged),
            Begin::Back(_) if self.evicted_through > after => Some(GapReason::Expired),
            _ => None,
        }
    }
}

impl Client {
    fn wants(&self, topic: &Topic) -> bool {
        self.filters.iter().any(|filter| filter.matches(topic))
    }

    /// Takes away what `new` replaces.
    fn replace(&mut self, new: &Sent) {
        let subject = |sent: &Sent| {
            let to_one = sent.topic.as_str().starts_with('$');
            let key = sent
                .key
                .as_deref()
                .or((!to_one).then_some(sent.topic.as_str()));
            key.map(|key| (sent.topic.clone(), key.to_owned()))
        };
        let replaces = |old: &Sent| subject(new).is_some() && subject(old) == subject(new);
        if let Some(at) = self.queue.iter().position(replaces) {
            self.replaced.push(self.queue.remove(at).unwrap().sequence);
        }
    }

    /// Drops the oldest events until those up to a sequence are within the limits.
    fn drop_oldest(&mut self, up_to: u64) {
        while !self.fits(up_to) {
            let sequence = self.queue.pop_front().unwrap().sequence;
            self.lose(sequence);
            self.overflowed = true;
        }
    }

    fn fits(&self, up_to: u64) -> bool {
        let sizes = self
            .queue
            .iter()
            .take_while(|sent| sent.sequence <= up_to)
            .map(|sent| sent.size);
        let (events, bytes) = (sizes.clone().count() as u64, sizes.sum::<u64>());
        events <= 1
            || (events <= self.limits.max_events.get() && bytes <= self.limits.max_bytes.get())
    }

    /// The sequence of the first event that was neither delivered nor counted, what was replaced left out.
    fn first_unsettled(&self) -> u64 {
        let queued = self.queue.front().map_or(u64::MAX, |sent| sent.sequence);
        queued.min(self.lost.map_or(u64::MAX, |lost| lost.0))
    }

    /// A position that anyone may read at any moment: nothing up to it is still to be delivered or counted.
    fn check_position(&self, position: u64) -> Result<(), TestCaseError> {
        let undelivered = self.queue.front().map_or(u64::MAX, |sent| sent.sequence);
        prop_assert!(
            position < undelivered,
            "{position} is beyond the first undelivered {undelivered}"
        );
        prop_assert!(
            self.lost.is_none_or(|lost| position < lost.0),
            "{position} is beyond a pending gap"
        );
        let replaced = self.replaced.iter();
        let replaced = replaced.filter(|sequence| **sequence <= position).count() as u64;
        prop_assert!(
            replaced <= self.told_replaced,
            "{replaced} events up to {position} were replaced, {} of all were told",
            self.told_replaced
        );
        Ok(())
    }

    fn lose(&mut self, sequence: u64) {
        let lost = self.lost.get_or_insert((sequence, sequence, 0));
        lost.1 = sequence;
        lost.2 += 1;
    }

    /// History let go of the event with this sequence.
    fn forget(&mut self, gone: u64) {
        let Some(replay) = &self.replay else { return };
        if self
            .queue
            .front()
            .is_some_and(|front| front.sequence == gone)
        {
            self.queue.pop_front();
            // Events that are gone before the first poll were never promised.
            if replay.opened || gone > replay.head {
                self.lose(gone);
            }
        }
    }

    const fn next_index(&self) -> u64 {
        self.delivered + self.counted
    }
}

// ===== the comparison =====

struct Both {
    hub: Hub<Bytes>,
    real: BTreeMap<u8, Subscription<Bytes>>,
    model: Model,
    now: Instant,
}

impl Both {
    fn new(history_limit: usize) -> Self {
        let history = HistoryLimits {
            max_events: history_limit,
            ..HistoryLimits::default()
        };
        let model = Model {
            head: 0,
            history: VecDeque::new(),
            evicted_through: 0,
            history_limit,
            clients: BTreeMap::new(),
        };
        let hub = Hub::new(HubConfig {
            history,
            ..HubConfig::new(EPOCH)
        });
        Self {
            hub,
            real: BTreeMap::new(),
            model,
            now: Instant::now(),
        }
    }

    fn apply(&mut self, action: Action) -> Result<(), TestCaseError> {
        match action {
            Action::Publish(events) => self.publish(&events),
            Action::AppendAfterHole(hole) => self.append_after_hole(hole),
            Action::Drain {
                client,
                room,
                release,
            } => {
                let up_to = match release {
                    Release::All => u64::MAX,
                    Release::Back(n) => self.model.head.saturating_sub(n),
                };
                self.drain(client, Room { up_to, ..room })
            }
            Action::Subscribe {
                client,
                filters,
                limits,
                begin,
            } => self.subscribe(client, &filters, limits, begin),
            Action::Cancel { client } => {
                self.real.remove(&client);
                self.model.clients.remove(&client);
                Ok(())
            }
        }
    }

    fn publish(&mut self, events: &[(usize, usize, Option<u8>)]) -> Result<(), TestCaseError> {
        let topic = |i: usize| Topic::new(TOPICS[i]).unwrap();
        let key = |key: Option<u8>| key.map(|key| Arc::from(key.to_string()));
        let new = events.iter().map(|&(i, size, k)| NewEvent {
            topic: topic(i),
            key: key(k),
            payload: Bytes::from(vec![0; size]),
        });
        let published = self.hub.publish(new, self.now).unwrap();
        prop_assert_eq!(published.first_sequence, self.model.head + 1);
        let mut matched = 0;
        for &(i, size, k) in events {
            let (topic, sequence) = (topic(i), self.model.head + 1);
            matched += self
                .model
                .clients
                .values()
                .filter(|client| client.wants(&topic))
                .count() as u64;
            self.model.publish(Sent {
                sequence,
                topic,
                key: key(k),
                size: size as u64,
            });
        }
        prop_assert_eq!(published.matched, matched);
        prop_assert_eq!(published.last_sequence, self.model.head);
        Ok(())
    }

    fn append_after_hole(&mut self, hole: u64) -> Result<(), TestCaseError> {
        let sequence = self.model.head + 1 + hole;
        let topic = Topic::new("a.x").unwrap();
        let event = NewEvent::new(topic.clone(), Bytes::from_static(b"1"));
        self.hub
            .append([(sequence, event.clone())], self.now)
            .unwrap();
        self.model.publish(Sent {
            sequence,
            topic,
            key: None,
            size: 1,
        });
        prop_assert!(
            self.hub.append([(sequence, event)], self.now).is_err(),
            "a sequence was accepted twice"
        );
        Ok(())
    }

    fn subscribe(
        &mut self,
        client: u8,
        filters: &[usize],
        limits: Limits,
        begin: Begin,
    ) -> Result<(), TestCaseError> {
        let head = self.model.head;
        let mut filters: Vec<_> = filters
            .iter()
            .map(|&f| Filter::new(FILTERS[f]).unwrap())
            .collect();
        let id = ClientId::new(&format!("c{client}")).unwrap();
        let start = match begin {
            Begin::Live => Start::Live,
            Begin::Last(n) => Start::Last(n),
            Begin::Back(n) => Start::After(Position {
                epoch: EPOCH,
                sequence: head.saturating_sub(n),
            }),
            Begin::OtherEpoch => Start::After(Position {
                epoch: EPOCH + 1,
                sequence: 3,
            }),
        };
        let options = SubscribeOptions {
            limits,
            start,
            ..SubscribeOptions::new(id.clone(), filters.clone())
        };
        let new = self.hub.subscribe(options, self.now).unwrap();
        prop_assert_eq!(new.began_at().sequence, head);
        if let Some(mut old) = self.real.insert(client, new) {
            let mut cx = Context::from_waker(Waker::noop());
            let polled = old.poll_next(&mut cx, Room::events(9), &mut Batch::default());
            prop_assert_eq!(polled, Poll::Ready(Err(CloseReason::TakenOver)));
            // Here comes the late cancel of the old one: it must not touch the new one.
        }
        filters.push(Filter::from(&Topic::for_client(&id)));
        let entry = self.model.subscribe(filters, limits, begin);
        self.model.clients.insert(client, entry);
        Ok(())
    }

    fn drain(&mut self, client: u8, room: Room) -> Result<(), TestCaseError> {
        let Some(subscription) = self.real.get_mut(&client) else {
            return Ok(());
        };
        let Model {
            clients,
            history,
            evicted_through,
            head,
            ..
        } = &mut self.model;
        let entry = clients.get_mut(&client).unwrap();
        let mut batch = Batch::default();
        let polled =
            subscription.poll_next(&mut Context::from_waker(Waker::noop()), room, &mut batch);

        if let Some((reason, head)) = entry.opening.take() {
            prop_assert_eq!(
                batch.gaps.iter().map(|gap| gap.reason).collect::<Vec<_>>(),
                Vec::from_iter(reason)
            );
            prop_assert!(
                batch
                    .gaps
                    .iter()
                    .all(|gap| gap.count == 0 && gap.last_sequence == head)
            );
            prop_assert_eq!(
                batch.caught_up.map(|position| position.sequence),
                Some(head)
            );
            prop_assert!(batch.events.is_empty());
            return Ok(());
        }
        if entry.limits.overflow == Overflow::Disconnect
            && entry.overflowed
            && entry.first_unsettled() <= room.up_to
        {
            prop_assert_eq!(polled, Poll::Ready(Err(CloseReason::TooSlow)));
            self.real.remove(&client);
            self.model.clients.remove(&client);
            return Ok(());
        }
        prop_assert!(!matches!(polled, Poll::Ready(Err(_))));
        prop_assert_eq!(polled.is_ready(), !batch.is_empty());
        if entry.replay.is_some() {
            let oldest = history.front().map_or(*head, |oldest| oldest.sequence - 1);
            let is_opening = subscription.is_opening();
            entry.check_replay(&batch, is_opening, oldest, *evicted_through, *head)?;
        } else {
            if entry.limits.overflow == Overflow::Conflate {
                entry.drop_oldest(room.up_to);
                entry.check_replaced(&mut batch, *head)?;
            }
            entry.check_live(&batch, room)?;
            entry.check_told_replaced(&batch)?;
        }
        prop_assert_eq!(subscription.next_index(), entry.next_index(), "accounting");
        let position = position_of(subscription);
        if polled.is_pending() && entry.replay.is_none() {
            let held_back = entry.first_unsettled();
            prop_assert!(held_back > room.up_to.min(*head), "held back for no reason");
            // What was replaced may hold it back as well, so only without conflation it is known.
            if held_back == u64::MAX || entry.limits.overflow != Overflow::Conflate {
                prop_assert_eq!(position, (*head).min(held_back - 1));
            }
        }
        Ok(())
    }
}

impl Client {
    /// Takes the gap of what was replaced out of the batch.
    fn check_replaced(&mut self, batch: &mut Batch<Bytes>, head: u64) -> Result<(), TestCaseError> {
        if let Some(at) = batch
            .gaps
            .iter()
            .position(|gap| gap.reason == GapReason::Conflated)
        {
            prop_assert_eq!(at, 0, "told before any position behind it");
            prop_assert!(!batch.events.is_empty(), "survivors follow at once");
            let gap = batch.gaps.remove(at);
            prop_assert!(gap.first_sequence <= gap.last_sequence && gap.last_sequence <= head);
            prop_assert_eq!(gap.first_index, self.next_index());
            self.told_replaced += gap.count;
            self.replaced_in_batch = gap.count;
        }
        Ok(())
    }

    /// All that was replaced before the last event seen has been told, and at the end everything.
    fn check_told_replaced(&mut self, batch: &Batch<Bytes>) -> Result<(), TestCaseError> {
        let seen = batch.events.last().map_or(0, |event| event.sequence());
        let before = self
            .replaced
            .iter()
            .filter(|sequence| **sequence < seen)
            .count() as u64;
        let all = self.replaced.len() as u64;
        prop_assert!(
            (before..=all).contains(&self.told_replaced),
            "{before} {} {all}",
            self.told_replaced
        );
        if self.queue.is_empty() && self.replay.is_none() {
            prop_assert_eq!(self.told_replaced, all);
        }
        Ok(())
    }

    fn check_live(&mut self, batch: &Batch<Bytes>, room: Room) -> Result<(), TestCaseError> {
        let first_index = self.next_index() + self.replaced_in_batch;
        let lost = if self.first_unsettled() <= room.up_to {
            self.lost.take()
        } else {
            None
        };
        let gap = lost.map(|(first_sequence, last_sequence, count)| Gap {
            first_sequence,
            last_sequence,
            count,
            reason: GapReason::Overflow,
            first_index,
        });
        prop_assert_eq!(&batch.gaps, &Vec::from_iter(gap));
        self.count_gaps(batch);
        self.counted += std::mem::take(&mut self.replaced_in_batch);
        let mut bytes = 0;
        let mut expected = Vec::new();
        while let Some(sent) = self.queue.front()
            && sent.sequence <= room.up_to
        {
            bytes += sent.size + room.overhead;
            if !expected.is_empty() && (expected.len() == room.events || bytes > room.bytes) {
                break;
            }
            expected.push(self.queue.pop_front().unwrap().sequence);
        }
        let seen: Vec<_> = batch.events.iter().map(|event| event.sequence()).collect();
        prop_assert_eq!(seen, expected);
        prop_assert_eq!(batch.caught_up, None);
        self.count_events(batch)
    }

    /// A replay may stop short of the room, at the end of a round; what it gives must be the front of
    /// the queue, and its losses must be counted before.
    fn check_replay(
        &mut self,
        batch: &Batch<Bytes>,
        is_opening: bool,
        before_oldest: u64,
        evicted_through: u64,
        head: u64,
    ) -> Result<(), TestCaseError> {
        let replay = self.replay.as_mut().unwrap();
        if is_opening {
            prop_assert!(batch.is_empty());
            return Ok(());
        }
        let opening = batch
            .gaps
            .iter()
            .find(|gap| gap.reason != GapReason::Overflow);
        let reason = match replay.begin {
            _ if replay.opened => None,
            Begin::OtherEpoch => Some(GapReason::EpochChanged),
            Begin::Back(_) if evicted_through > replay.after => Some(GapReason::Expired),
            _ => None,
        };
        replay.opened = true;
        prop_assert_eq!(opening.map(|gap| gap.reason), reason);
        if let Some(gap) = opening {
            prop_assert_eq!(gap.count, 0, "such a gap takes no index");
            prop_assert_eq!(gap.last_sequence, before_oldest.min(replay.head));
        }
        if let Some(told) = batch
            .gaps
            .iter()
            .find(|gap| gap.reason == GapReason::Overflow)
        {
            let (first, last, count) = self.lost.take().unwrap();
            prop_assert!(told.count <= count && told.first_sequence <= first);
            if told.count == count {
                prop_assert!(told.last_sequence >= last);
            } else {
                // Telling it all takes more steps of the replay than one poll makes.
                self.lost = Some((told.last_sequence + 1, last, count - told.count));
            }
        }
        self.count_gaps(batch);
        for event in &batch.events {
            prop_assert!(
                self.lost.is_none(),
                "an event before the gap that stands before it"
            );
            prop_assert_eq!(
                Some(event.sequence()),
                self.queue.pop_front().map(|sent| sent.sequence)
            );
        }
        if batch.caught_up.is_some() {
            prop_assert_eq!(
                batch.caught_up,
                Some(Position {
                    epoch: EPOCH,
                    sequence: head
                })
            );
            prop_assert!(
                self.queue.is_empty() && self.lost.is_none(),
                "caught up with something left"
            );
            self.replay = None;
        }
        self.count_events(batch)
    }

    fn count_gaps(&mut self, batch: &Batch<Bytes>) {
        self.counted += batch.gaps.iter().map(|gap| gap.count).sum::<u64>();
    }

    fn count_events(&mut self, batch: &Batch<Bytes>) -> Result<(), TestCaseError> {
        prop_assert!(batch.events.is_empty() || batch.first_index == self.next_index());
        self.delivered += batch.events.len() as u64;
        Ok(())
    }
}

/// The position to resume from. Until it was told that it is of another epoch, that one.
fn position_of(subscription: &Subscription<Bytes>) -> u64 {
    match subscription.position() {
        Position {
            epoch: EPOCH,
            sequence,
        } => sequence,
        Position { .. } => 0,
    }
}

fn run(history_limit: usize, actions: Vec<Action>) -> Result<(), TestCaseError> {
    let mut both = Both::new(history_limit);
    for action in actions {
        both.apply(action)?;
        // As a heartbeat would, between any two polls.
        for (client, subscription) in &both.real {
            both.model.clients[client].check_position(position_of(subscription))?;
        }
        let stats = both.hub.stats();
        let backlog: u64 = both.real.values().map(Subscription::backlog).sum();
        prop_assert_eq!(stats.subscriptions as usize, both.real.len());
        prop_assert_eq!(stats.clients, both.real.len());
        prop_assert_eq!(
            stats.matched + stats.replayed,
            stats.handed_off + stats.overflowed + stats.conflated + stats.abandoned + backlog,
            "{:?}",
            stats
        );
    }
    both.real.clear();
    let stats = both.hub.stats();
    prop_assert_eq!((stats.subscriptions, stats.clients, stats.feeds), (0, 0, 0));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn the_hub_equals_a_private_queue_for_each_client(
        history_limit in prop_oneof![Just(0), 1..20usize],
        actions in prop::collection::vec(action(), 1..80),
    ) {
        run(history_limit, actions)?;
    }
}

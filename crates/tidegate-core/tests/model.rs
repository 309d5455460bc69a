//! The hub against a naive model: a private `VecDeque` for each client, filled at each publish, whose
//! oldest entries are dropped at once when it is over its limits.
//!
//! Over random interleavings of publish, drain by any amount, subscribe with any limits, cancel, takeover
//! and replay, both must hand out the same events and the same gaps, with the same indexes. Hubs begin in the middle of a
//! log, or not; their sequences have holes, and ranges that are lost; and epochs begin.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    num::NonZeroU64,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use proptest::prelude::*;
use tidegate_core::{
    Batch, ClientId, CloseReason, Filter, Gap, GapReason, HistoryLimits, Hub, HubConfig, Limits,
    NewEvent, Overflow, Position, Room, Start, SubscribeOptions, Subscription, SubscriptionInfo,
    Topic,
};

/// The first epoch of a hub.
const EPOCH: u64 = 7;
/// An epoch that no hub of this test ever has.
const ELSEWHERE: u64 = 3;
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
    /// So many sequences without an event.
    Advance(u64),
    /// After a hole, a range that nobody can hand over.
    Lose {
        hole: u64,
        len: u64,
    },
    /// Another epoch, after this sequence.
    BeginEpoch(u64),
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

/// The events that a poll leaves for later.
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
        1 => (0..5u64).prop_map(Action::Advance),
        2 => (prop_oneof![3 => Just(0), 1 => 1..4u64], 1..6u64)
            .prop_map(|(hole, len)| Action::Lose { hole, len }),
        1 => prop_oneof![Just(0), 1..50u64].prop_map(Action::BeginEpoch),
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
    epoch: u64,
    head: u64,
    /// Whether it is known where the sequences begin.
    knows_beginning: bool,
    /// The ranges that were lost, none touching the next.
    ranges: VecDeque<(u64, u64)>,
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
    /// The sequences of what is lost and was not told.
    lost: VecDeque<u64>,
    /// The ranges that nobody could hand over and that were not told.
    ranges: VecDeque<(u64, u64)>,
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
    /// Events that were published since it subscribed. Those after the position at which it catches up are live.
    since: Vec<Sent>,
    /// For the last N: the sequence of the first of them, if there were N.
    first_of_last: Option<u64>,
}

impl Model {
    /// Notes the first sequence that the hub is handed. What was before it is not known.
    fn begin(&mut self, first: u64) {
        if !mem::replace(&mut self.knows_beginning, true) {
            self.evicted_through = first - 1;
        }
    }

    fn lose(&mut self, first: u64, last: u64) {
        self.begin(first);
        self.head = last;
        let all = self.clients.values_mut().map(|client| &mut client.ranges);
        for ranges in all.chain([&mut self.ranges]) {
            match ranges.back_mut() {
                Some((_, end)) if *end + 1 == first => *end = last,
                _ => ranges.push_back((first, last)),
            }
        }
    }

    fn publish(&mut self, sent: Sent) {
        self.begin(sent.sequence);
        self.head = sent.sequence;
        for client in self
            .clients
            .values_mut()
            .filter(|client| client.wants(&sent.topic))
        {
            match &mut client.replay {
                Some(replay) => {
                    replay.since.push(sent.clone());
                    client.queue.push_back(sent.clone());
                }
                None => client.push(sent.clone()),
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
            lost: VecDeque::new(),
            ranges: VecDeque::new(),
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
        let mut newest = self.history.back().map_or(0, |newest| newest.sequence);
        if matches!(begin, Begin::Back(_)) {
            newest = newest.max(self.ranges.back().map_or(0, |(_, last)| *last));
        }
        if matches!(begin, Begin::Live) {
        } else if newest <= after {
            client.opening = Some((self.missing_from(begin, after), self.head));
        } else {
            let wanted = |sent: &&Sent| sent.sequence > after && client.wants(&sent.topic);
            client.queue = self.history.iter().filter(wanted).cloned().collect();
            let mut first_of_last = None;
            if let Begin::Last(n) = begin {
                let n = n as usize;
                client.queue.drain(..client.queue.len().saturating_sub(n));
                first_of_last = client.queue.front().filter(|_| client.queue.len() == n);
            }
            let first_of_last = first_of_last.map(|first| first.sequence);
            client.ranges.clone_from(&self.ranges);
            client.pass_ranges(after);
            client.replay = Some(ModelReplay {
                begin,
                after,
                head: self.head,
                opened: false,
                since: Vec::new(),
                first_of_last,
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

    /// Adds a live event to the queue, and takes away what has to go for it at once.
    fn push(&mut self, sent: Sent) {
        if self.limits.overflow == Overflow::Conflate {
            // What survives is bounded when it is drained.
            self.replace(&sent);
            self.queue.push_back(sent);
        } else {
            self.queue.push_back(sent);
            self.drop_oldest(u64::MAX);
        }
    }

    /// Leaves out the ranges up to `sequence`.
    fn pass_ranges(&mut self, sequence: u64) {
        self.ranges.retain(|(_, last)| *last > sequence);
        if let Some((first, _)) = self.ranges.front_mut() {
            *first = (*first).max(sequence + 1);
        }
    }

    /// The sequence before the next range that is to be told.
    fn barrier(&self) -> u64 {
        self.ranges.front().map_or(u64::MAX, |(first, _)| first - 1)
    }

    /// Begins with what was published live after `position`, at which a replay has caught up.
    fn go_live(&mut self, position: u64) {
        let replay = self.replay.take().unwrap();
        self.queue.clear();
        self.lost.clear();
        let live = replay.since.into_iter();
        live.filter(|sent| sent.sequence > position)
            .for_each(|sent| self.push(sent));
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
            self.lost.push_back(sequence);
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
        queued.min(self.lost.front().copied().unwrap_or(u64::MAX))
    }

    /// A position that anyone may read at any moment: nothing up to it is still to be delivered or counted.
    fn check_position(&self, position: u64) -> Result<(), TestCaseError> {
        let undelivered = self.queue.front().map_or(u64::MAX, |sent| sent.sequence);
        prop_assert!(
            position < undelivered,
            "{position} is beyond the first undelivered {undelivered}"
        );
        prop_assert!(
            self.lost.front().is_none_or(|lost| position < *lost),
            "{position} is beyond a pending gap"
        );
        prop_assert!(
            position <= self.barrier(),
            "{position} is beyond a lost range that was not told"
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
                self.lost.push_back(gone);
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
    /// Of a hub that begins after a sequence, or that nobody told where it begins.
    fn new(history_limit: usize, begins_after: Option<u64>) -> Self {
        let history = HistoryLimits {
            max_events: history_limit,
            ..HistoryLimits::default()
        };
        let after = begins_after.unwrap_or(0);
        let model = Model {
            epoch: EPOCH,
            head: after,
            knows_beginning: begins_after.is_some(),
            ranges: VecDeque::new(),
            history: VecDeque::new(),
            evicted_through: after,
            history_limit,
            clients: BTreeMap::new(),
        };
        let config = HubConfig {
            history,
            ..HubConfig::new(EPOCH)
        };
        let hub = match begins_after {
            Some(after) => Hub::begin_at(config, after),
            None => Hub::new(config),
        };
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
            Action::Advance(n) => {
                let sequence = self.model.head + n;
                self.hub.advance(sequence).unwrap();
                if n > 0 {
                    self.model.begin(sequence + 1);
                    self.model.head = sequence;
                    prop_assert!(self.hub.advance(sequence - 1).is_err(), "it went back");
                }
                Ok(())
            }
            Action::Lose { hole, len } => {
                let first = self.model.head + 1 + hole;
                let last = first + len - 1;
                self.hub.lose(first, last).unwrap();
                self.model.lose(first, last);
                prop_assert!(self.hub.lose(last, last).is_err(), "lost twice");
                Ok(())
            }
            Action::BeginEpoch(after) => self.begin_epoch(after),
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

    fn begin_epoch(&mut self, after: u64) -> Result<(), TestCaseError> {
        let before = self.model.epoch;
        prop_assert!(
            self.hub.begin_epoch(before, 1_000).is_err(),
            "the same epoch"
        );
        self.hub.begin_epoch(before + 1, after).unwrap();
        for (client, mut subscription) in mem::take(&mut self.real) {
            let mut cx = Context::from_waker(Waker::noop());
            let polled = subscription.poll_next(&mut cx, Room::events(9), &mut Batch::default());
            prop_assert_eq!(polled, Poll::Ready(Err(CloseReason::EpochChanged)));
            let position = subscription.position();
            let is_asked = |position: Position| position.epoch == ELSEWHERE;
            prop_assert!(position.is_none_or(|it| it.epoch == before || is_asked(it)));
            self.model.clients[&client].check_position(position_of(&subscription))?;
        }
        let Model {
            history_limit,
            clients: _,
            ..
        } = self.model;
        self.model = Model {
            epoch: before + 1,
            head: after,
            knows_beginning: true,
            ranges: VecDeque::new(),
            history: VecDeque::new(),
            evicted_through: after,
            history_limit,
            clients: BTreeMap::new(),
        };
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
                epoch: self.model.epoch,
                sequence: head.saturating_sub(n),
            }),
            Begin::OtherEpoch => Start::After(Position {
                epoch: ELSEWHERE,
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
            epoch,
            ..
        } = &mut self.model;
        let entry = clients.get_mut(&client).unwrap();
        entry.check_pending(&subscription.info())?;
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
            && entry.first_unsettled() <= room.up_to.min(entry.barrier())
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
            let hub = Position {
                epoch: *epoch,
                sequence: *head,
            };
            entry.check_replay(&batch, is_opening, oldest, *evicted_through, hub)?;
        } else {
            if entry.limits.overflow == Overflow::Conflate {
                entry.drop_oldest(room.up_to.min(entry.barrier()));
                entry.check_replaced(&mut batch, *head)?;
            }
            entry.check_live(&batch, room)?;
            entry.check_told_replaced(&batch)?;
        }
        prop_assert_eq!(subscription.next_index(), entry.next_index(), "accounting");
        // What it is told of its position is checked wherever it stands.
        let is_undecided = matches!(
            entry.replay,
            Some(ModelReplay {
                begin: Begin::Last(_),
                opened: false,
                ..
            })
        );
        prop_assert_eq!(subscription.position().is_none(), is_undecided);
        let position = position_of(subscription);
        if polled.is_pending() && entry.replay.is_none() {
            let held_back = entry
                .first_unsettled()
                .min(entry.barrier().saturating_add(1));
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
    /// Listings know what is lost and replaced before the client is told.
    fn check_pending(&self, info: &SubscriptionInfo) -> Result<(), TestCaseError> {
        if self.replay.is_some() {
            // In its last round the limits hold for what is live, and that cannot be seen from outside.
            return Ok(());
        }
        let (mut lost, queued) = (self.lost.len() as u64, self.queue.len() as u64);
        let bytes: u64 = self.queue.iter().map(|sent| sent.size).sum();
        if self.limits.overflow == Overflow::Disconnect {
            prop_assert_eq!(info.pending_loss, 0, "it ends instead");
            return Ok(());
        }
        // Those of a conflating client go when it is drained.
        let is_over = queued > 1 && bytes > self.limits.max_bytes.get();
        lost += queued.saturating_sub(self.limits.max_events.get());
        let is_lost = lost > 0 || is_over;
        prop_assert_eq!(info.pending_loss > 0, is_lost, "{:?}", self.queue);
        if self.limits.max_bytes.get() == 1 << 20 {
            prop_assert_eq!(info.pending_loss, lost);
        }
        let replaced = self.replaced.len() as u64 - self.told_replaced;
        prop_assert_eq!(info.pending_conflation, replaced);
        Ok(())
    }

    /// Takes the gap of what was replaced out of the batch.
    fn check_replaced(&mut self, batch: &mut Batch<Bytes>, head: u64) -> Result<(), TestCaseError> {
        if let Some(at) = batch
            .gaps
            .iter()
            .position(|gap| gap.reason == GapReason::Conflated)
        {
            prop_assert_eq!(at, 0, "told before any position behind it");
            prop_assert!(
                !batch.events.is_empty() || batch.gaps.len() > 1,
                "survivors follow at once, or a gap that the position goes behind"
            );
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
        // A lost range holds back what is behind it, like a release. It is told when nothing before it is left; or with
        // the losses of events that reach beyond it, which it then begins with.
        let barrier = self.barrier();
        let up_to = room.up_to.min(barrier);
        let (mut lost, mut range) = (VecDeque::new(), None);
        if self.first_unsettled() <= up_to {
            lost = mem::take(&mut self.lost);
            let through = lost.back().copied().unwrap_or(0);
            let is_reached = |(first, _): &&(u64, u64)| *first <= through;
            if let Some((_, last)) = self.ranges.iter().take_while(is_reached).last() {
                range = Some((lost[0].min(barrier + 1), *last));
            }
        } else if barrier < room.up_to {
            range = self.ranges.front().copied();
        }
        let range = range.map(|(first_sequence, last_sequence)| {
            self.pass_ranges(last_sequence);
            Gap {
                first_sequence,
                last_sequence,
                count: 0,
                reason: GapReason::Backplane,
                first_index,
            }
        });
        let gap = lost.front().map(|first| Gap {
            first_sequence: *first,
            last_sequence: *lost.back().unwrap(),
            count: lost.len() as u64,
            reason: GapReason::Overflow,
            first_index,
        });
        let gaps: Vec<_> = range.into_iter().chain(gap).collect();
        prop_assert_eq!(&batch.gaps, &gaps);
        self.count_gaps(batch);
        self.counted += mem::take(&mut self.replaced_in_batch);
        let mut bytes = 0;
        let mut expected = Vec::new();
        while let Some(sent) = self.queue.front()
            && sent.sequence <= up_to
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
        hub: Position,
    ) -> Result<(), TestCaseError> {
        let replay = self.replay.as_mut().unwrap();
        if is_opening {
            prop_assert!(batch.is_empty());
            return Ok(());
        }
        let opening = batch
            .gaps
            .iter()
            .find(|gap| !matches!(gap.reason, GapReason::Overflow | GapReason::Backplane));
        let reason = match replay.begin {
            _ if replay.opened => None,
            Begin::OtherEpoch => Some(GapReason::EpochChanged),
            Begin::Back(_) if evicted_through > replay.after => Some(GapReason::Expired),
            _ => None,
        };
        let is_first = !mem::replace(&mut replay.opened, true);
        prop_assert_eq!(opening.map(|gap| gap.reason), reason);
        if let Some(gap) = opening {
            prop_assert_eq!(gap.count, 0, "such a gap takes no index");
            prop_assert_eq!(gap.last_sequence, before_oldest.min(replay.head));
        }
        if is_first {
            // What lies before the beginning is told by the gap there, or was not asked for.
            let available = before_oldest.min(replay.head);
            let begins_after = match replay.begin {
                Begin::Last(_) => available.max(replay.first_of_last.map_or(0, |first| first - 1)),
                _ if reason.is_some() => available,
                _ => replay.after,
            };
            self.pass_ranges(begins_after);
        }
        self.check_range_of_replay(batch)?;
        if let Some(told) = batch
            .gaps
            .iter()
            .find(|gap| gap.reason == GapReason::Overflow)
        {
            // Telling it all takes more steps of the replay than one poll makes; what is told is told exactly.
            let left = self
                .lost
                .partition_point(|lost| *lost <= told.last_sequence);
            let mut lost = self.lost.drain(..left);
            prop_assert!(
                lost.next()
                    .is_some_and(|first| told.first_sequence <= first)
            );
            prop_assert_eq!(told.count, 1 + lost.len() as u64);
        }
        self.count_gaps(batch);
        for event in &batch.events {
            prop_assert!(
                event.sequence() <= self.barrier(),
                "an event before the lost range that stands before it"
            );
            prop_assert!(
                self.lost
                    .front()
                    .is_none_or(|lost| event.sequence() < *lost),
                "an event before the gap that stands before it"
            );
            prop_assert_eq!(
                Some(event.sequence()),
                self.queue.pop_front().map(|sent| sent.sequence)
            );
        }
        let replay = self.replay.as_ref().unwrap();
        if let Some(Position { epoch, sequence }) = batch.caught_up {
            prop_assert_eq!(epoch, hub.epoch);
            prop_assert!((replay.head..=hub.sequence).contains(&sequence));
            prop_assert!(sequence <= self.barrier(), "caught up before a lost range");
            let is_left = |left: u64| left <= sequence;
            let undelivered = self.queue.front().map(|sent| sent.sequence);
            prop_assert!(
                !undelivered.is_some_and(is_left)
                    && !self.lost.front().copied().is_some_and(is_left),
                "caught up with something left"
            );
            self.go_live(sequence);
        }
        self.count_events(batch)
    }

    /// Takes the ranges that a replay tells of. It may tell the first part of one that has grown since its round began.
    fn check_range_of_replay(&mut self, batch: &Batch<Bytes>) -> Result<(), TestCaseError> {
        let of = |reason| batch.gaps.iter().position(|gap| gap.reason == reason);
        let Some(at) = of(GapReason::Backplane) else {
            return Ok(());
        };
        let Gap {
            first_sequence,
            last_sequence,
            count,
            ..
        } = batch.gaps[at];
        prop_assert_eq!(count, 0, "nobody knows");
        let first = self.barrier() + 1;
        let mut ranges = self.ranges.iter();
        prop_assert!(ranges.any(|(first, last)| (*first..=*last).contains(&last_sequence)));
        let unsettled = self.first_unsettled();
        match of(GapReason::Overflow) {
            Some(counted) if batch.gaps[counted].first_sequence <= first_sequence => {
                // How many were before it and how many behind is not known: it begins with the first of them.
                prop_assert!(at < counted && first_sequence <= first);
                prop_assert_eq!(first_sequence, batch.gaps[counted].first_sequence);
            }
            _ => {
                prop_assert_eq!(first_sequence, first);
                prop_assert!(unsettled > first, "something before it is left");
            }
        }
        self.pass_ranges(last_sequence);
        Ok(())
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
        Some(Position { epoch, sequence }) if epoch != ELSEWHERE => sequence,
        Some(_) | None => 0,
    }
}

fn run(
    history_limit: usize,
    begins_after: Option<u64>,
    actions: Vec<Action>,
) -> Result<(), TestCaseError> {
    let mut both = Both::new(history_limit, begins_after);
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
        begins_after in prop_oneof![2 => Just(None), 1 => Just(Some(0)), 2 => (1..60u64).prop_map(Some)],
        actions in prop::collection::vec(action(), 1..80),
    ) {
        run(history_limit, begins_after, actions)?;
    }
}

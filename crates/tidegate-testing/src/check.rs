//! The checker: whether recorded streams keep the eight guarantees.
//!
//! Every stream is walked once, beside the log of what was published: each event of the log that matches
//! must be delivered or counted by a gap, in its place. So the cost is one look at each event published
//! between a stream's begin and its end, and nothing is allocated for an event.
//!
//! # What can be known
//! * A gap is checked against the log as soon as the gaps that stand together cover what they count: gaps of
//!   different reasons may interleave.
//! * *Conflated* streams count what was replaced ahead of the survivors. So at any moment at least what lies
//!   before the last survivor must be settled, at most what was published; at the end exactly that.
//! * *Freshness* is judged with the newest sequence of the server when the gap had arrived, which is at least
//!   that of the moment in which the events were dropped: what would have fitted then may not be in the gap.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use tidegate_proto::v1::{Gap, GapReason, Overflow, Position, Subscribed};
use tonic::Code;

use crate::{
    record::{Client, Delivered, Ending, Item, Stream},
    truth::{Log, Truth},
};

/// A guarantee that was not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Guarantee 1: events come in sequence order, none twice.
    #[error("order: {0}")]
    Order(Fault),
    /// Guarantee 2: every matching event is delivered as it was published, or counted.
    #[error("silent loss: {0}")]
    SilentLoss(Fault),
    /// Guarantee 3: a client that reads misses nothing, whatever others do.
    #[error("isolation: {0}")]
    Isolation(Fault),
    /// Guarantee 4: what is held is bounded.
    #[error("bounded memory: {0}")]
    BoundedMemory(Fault),
    /// Guarantee 5: by default new events win over stale ones.
    #[error("freshness: {0}")]
    Freshness(Fault),
    /// Guarantee 6: from a position in history nothing is missed or repeated; from any other the client is told.
    #[error("resume: {0}")]
    Resume(Fault),
    /// Guarantee 7: a stream that has ended leaves nothing.
    #[error("clean-up: {0}")]
    CleanUp(Fault),
    /// Guarantee 8: a stream that the server ends says why and where to resume.
    #[error("honest ending: {0}")]
    HonestEnding(Fault),
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Cow<'static, str>,
    /// The number that would be right: a sequence, an index, a count; the problem tells.
    pub expected: u64,
    /// The number that is there.
    pub found: u64,
}

/// Where something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the server's own numbers.
    Server,
    /// In the answers that publishers got.
    Publisher,
    /// In the records.
    Stream {
        /// The client.
        client: String,
        /// The stream among those of the client, from 0.
        stream: usize,
        /// The response on the stream after `Subscribed`, from 0.
        response: usize,
    },
}

/// What the server was set up to do, as far as it decides what is right.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// How many events history keeps, where nothing else bounds it: then what left history too early is found.
    pub history_events: Option<u64>,
    /// Whether the memory budget may take events.
    pub may_evict: bool,
}

/// What was checked.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Streams that were opened.
    pub streams: u64,
    /// Those of them that resumed from a position.
    pub resumed: u64,
    /// Events delivered.
    pub delivered: u64,
    /// Events counted by gaps, by reason; and gaps that could not be counted.
    pub missed: BTreeMap<&'static str, u64>,
    /// Gaps, by reason.
    pub gaps: BTreeMap<&'static str, u64>,
    /// Endings, by reason.
    pub endings: BTreeMap<String, u64>,
}

/// The codes and reasons with which a stream may end, or not begin, by the protocol.
const DOCUMENTED: [(Code, &str); 18] = [
    (Code::InvalidArgument, "INVALID_FILTER"),
    (Code::InvalidArgument, "INVALID_TOPIC"),
    (Code::InvalidArgument, "INVALID_CLIENT_ID"),
    (Code::InvalidArgument, "INVALID_LIMITS"),
    (Code::InvalidArgument, "INVALID_POSITION"),
    (Code::InvalidArgument, "INVALID_REQUEST"),
    (Code::InvalidArgument, "TOO_MANY_FILTERS"),
    (Code::InvalidArgument, "TOO_MANY_EVENTS"),
    (Code::InvalidArgument, "EVENT_TOO_LARGE"),
    (Code::InvalidArgument, "BATCH_TOO_LARGE"),
    (Code::OutOfRange, "POSITION_AHEAD"),
    (Code::AlreadyExists, "CLIENT_ID_TAKEN"),
    (Code::Aborted, TAKEN_OVER),
    (Code::ResourceExhausted, TOO_SLOW),
    (Code::ResourceExhausted, STALLED),
    (Code::Unavailable, SHUTTING_DOWN),
    (Code::Unavailable, EPOCH_CHANGED),
    (Code::Internal, "INTERNAL"),
];

const TAKEN_OVER: &str = "TAKEN_OVER";
const TOO_SLOW: &str = "TOO_SLOW";
const STALLED: &str = "STALLED";
const SHUTTING_DOWN: &str = "SHUTTING_DOWN";
const EPOCH_CHANGED: &str = "EPOCH_CHANGED";

/// The reasons for which the server ends a stream that had begun, with the position to resume after.
const ENDED_BY_SERVER: [&str; 4] = [TAKEN_OVER, TOO_SLOW, STALLED, SHUTTING_DOWN];

/// Checks everything that was recorded of `clients`.
///
/// # Errors
/// The first guarantee that was not kept.
pub fn check(truth: &Truth, clients: &[Client], rules: Rules) -> Result<Tally, Violation> {
    let mut tally = Tally::default();
    let mut successors = BTreeMap::new();
    let empty = Log::default();
    for client in clients {
        // Up to where the streams so far have settled, in which epoch.
        let mut settled: Option<(u64, u64)> = None;
        for (number, stream) in client.streams.iter().enumerate() {
            tally.open(stream);
            let Some(subscribed) = &stream.subscribed else {
                check_ending(client, number, None)?;
                continue;
            };
            let head = subscribed.position.unwrap_or_default();
            let log = truth.log(head.epoch).unwrap_or(&empty);
            let ground = Ground {
                rules,
                log,
                successors: successors
                    .entry(head.epoch)
                    .or_insert_with(|| log.successors()),
                wanted: truth.wanted(&subscribed.client_id, &stream.request.filters),
            };
            let mut walk = Walk::new(client, number, subscribed, ground);
            if let (Some((epoch, next)), Some(asked)) = (settled, stream.request.resume_after)
                && epoch == head.epoch
                && asked.epoch == epoch
            {
                walk.nothing_between(
                    next,
                    asked.sequence,
                    "events before the position to resume after were never settled",
                )?;
            }
            walk.stream(&mut tally)?;
            settled = walk.next.map(|next| (head.epoch, next)).or(settled);
        }
    }
    Ok(tally)
}

/// Checks the bytes that a server held at some moment.
///
/// # Errors
/// [`Violation::BoundedMemory`].
pub fn check_memory(held: u64, bound: u64) -> Result<(), Violation> {
    if held > bound {
        return Err(Violation::BoundedMemory(Fault::new(
            Place::Server,
            "bytes are held",
            bound,
            held,
        )));
    }
    Ok(())
}

/// Checks what a server holds when all of its clients have gone.
///
/// # Errors
/// [`Violation::CleanUp`], or [`Violation::SilentLoss`] if the numbers of the server do not add up.
pub fn check_clean_up(stats: &tidegate::Stats) -> Result<(), Violation> {
    let left = [
        ("subscriptions", stats.subscriptions),
        ("client ids", stats.clients as u64),
        ("feeds", stats.feeds as u64),
        (
            "bytes without an event in history",
            if stats.history_events == 0 {
                stats.retained_bytes
            } else {
                0
            },
        ),
    ];
    for (what, found) in left {
        if found != 0 {
            return Err(Violation::CleanUp(Fault::new(
                Place::Server,
                what,
                0,
                found,
            )));
        }
    }
    let settled =
        stats.handed_off + stats.overflowed + stats.conflated + stats.evicted + stats.abandoned;
    if stats.matched + stats.replayed != settled {
        return Err(Violation::SilentLoss(Fault::new(
            Place::Server,
            "what matched or was replayed must be handed off, lost or abandoned",
            stats.matched + stats.replayed,
            settled,
        )));
    }
    Ok(())
}

/// What a stream is compared with.
struct Ground<'a> {
    rules: Rules,
    log: &'a Log,
    /// By sequence less one, the sequence of the next event of the same topic and key.
    successors: &'a [u64],
    /// By topic, whether the stream is to get it.
    wanted: Vec<bool>,
}

/// A stream, as far as it was walked.
struct Walk<'a> {
    ground: Ground<'a>,
    client: &'a Client,
    /// The stream's number.
    number: usize,
    stream: &'a Stream,
    /// The number of the response that is looked at.
    response: usize,
    /// The head when the stream began.
    head: Position,
    max_events: u64,
    max_bytes: u64,
    overflow: Overflow,
    /// The index to come.
    next_index: u64,
    /// The first sequence that is not settled; `None` until the first event of `replay_last` tells.
    next: Option<u64>,
    /// The sequence of the last event delivered, 0 if there is none.
    last: u64,
    /// Whether `CaughtUp` is still to come.
    is_replaying: bool,
    /// Gaps that stand together and do not cover yet what they count.
    gaps: Loss,
    /// Once a conflating stream is live.
    conflated: Option<Conflated>,
    going_away: Option<Position>,
}

/// Gaps taken together.
#[derive(Debug, Default, Clone, Copy)]
struct Loss {
    last: u64,
    count: u64,
}

/// The account of a conflating stream since it is live.
#[derive(Debug, Default)]
struct Conflated {
    /// Where it became live: the first sequence of it.
    begin: u64,
    /// Events delivered or counted.
    settled: u64,
    /// How many events match, from the begin to before `scanned`.
    matching: u64,
    scanned: u64,
    /// Where in the stream's events it became live.
    first_event: usize,
    /// What was lost, not replaced.
    lost: Vec<(u64, u64)>,
}

// ===== impl Walk =====

impl<'a> Walk<'a> {
    fn new(client: &'a Client, number: usize, subscribed: &Subscribed, ground: Ground<'a>) -> Self {
        let stream = &client.streams[number];
        let limits = subscribed.limits.unwrap_or_default();
        let head = subscribed.position.unwrap_or_default();
        let next = match stream.request.resume_after {
            Some(asked) if asked.epoch == head.epoch => Some(asked.sequence + 1),
            Some(_) => None,
            None if stream.request.replay_last > 0 => None,
            None => Some(head.sequence + 1),
        };
        let mut walk = Self {
            ground,
            client,
            number,
            stream,
            response: 0,
            head,
            max_events: limits.max_events.into(),
            max_bytes: limits.max_bytes,
            overflow: limits.overflow(),
            next_index: subscribed.next_index,
            next,
            last: 0,
            is_replaying: stream.is_replay(),
            gaps: Loss::default(),
            conflated: None,
            going_away: None,
        };
        if !walk.is_replaying {
            walk.go_live(0);
        }
        walk
    }

    fn stream(&mut self, tally: &mut Tally) -> Result<(), Violation> {
        let stream = self.stream;
        let mut begin = 0;
        for (number, item) in stream.items.iter().enumerate() {
            self.response = number;
            if self.gaps.count > 0 && !matches!(item, Item::Gap { .. }) {
                return Err(self.loss(
                    "gaps count fewer events than match in their span",
                    self.matching_to(self.gaps.last),
                    self.gaps.count,
                ));
            }
            match item {
                Item::Batch { first_index, end } => {
                    self.batch(*first_index, &stream.events[begin..*end])?;
                    tally.delivered += (end - begin) as u64;
                    begin = *end;
                }
                Item::Gap { gap, head } => {
                    self.gap(gap, *head, number)?;
                    tally.count(gap);
                }
                Item::Heartbeat(position) => {
                    self.states(*position, "a heartbeat goes beyond what is settled")?;
                }
                Item::CaughtUp(position) => self.caught_up(*position, begin)?,
                Item::GoingAway(position) => self.going_away = Some(*position),
                Item::Malformed => {
                    return Err(self.loss("a response is empty, or `subscribed` came twice", 0, 0));
                }
            }
        }
        self.end()
    }

    fn batch(&mut self, first_index: u64, events: &[Delivered]) -> Result<(), Violation> {
        self.index(first_index, events.len() as u64)?;
        self.order(events)?;
        for event in events {
            self.content(event)?;
        }
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            return Err(self.loss("a batch is empty", 1, 0));
        };
        if self
            .stream
            .request
            .resume_after
            .is_some_and(|asked| asked.epoch != self.head.epoch)
            && self.next.is_none()
        {
            return Err(self.resume(
                "an event of another epoch came without a gap EPOCH_CHANGED",
                0,
                first.sequence,
            ));
        }
        if self.conflated.is_some() {
            return self.survivors(events, last.sequence);
        }
        if self.next.is_none() {
            self.begin_at(first.sequence)?;
        }
        for event in events {
            self.nothing_before(
                event.sequence,
                "an event is missing before the one that came",
            )?;
            self.next = Some(event.sequence + 1);
        }
        Ok(())
    }

    /// The events of one batch ascend, and come after all that came before.
    fn order(&mut self, events: &[Delivered]) -> Result<(), Violation> {
        for event in events {
            let settled = match (self.conflated.is_some(), self.next) {
                (false, Some(next)) => next.saturating_sub(1),
                _ => 0,
            };
            if event.sequence <= self.last {
                return Err(self.disorder(
                    "an event came again or late",
                    self.last + 1,
                    event.sequence,
                ));
            }
            if event.sequence <= settled && self.is_replaying {
                return Err(self.resume(
                    "an event came again that was settled before",
                    settled + 1,
                    event.sequence,
                ));
            }
            if event.sequence <= settled {
                return Err(self.disorder(
                    "an event came that was settled before",
                    settled + 1,
                    event.sequence,
                ));
            }
            self.last = event.sequence;
        }
        Ok(())
    }

    fn content(&self, event: &Delivered) -> Result<(), Violation> {
        let Some(published) = self.ground.log.get(event.sequence) else {
            return Err(self.loss("an event came that nobody published", 0, event.sequence));
        };
        if published.digest != event.digest {
            return Err(self.loss(
                "an event is not what was published",
                published.digest,
                event.digest,
            ));
        }
        if !self.wants(event.sequence) {
            return Err(self.loss("an event came that does not match", 0, event.sequence));
        }
        Ok(())
    }

    /// The first event of `replay_last` has come, or a gap in its place.
    fn begin_at(&mut self, sequence: u64) -> Result<(), Violation> {
        let most = self.stream.request.replay_last.into();
        let replayed = self.matching(sequence, self.head.sequence);
        if replayed > most {
            return Err(self.resume("more is replayed than was asked for", most, replayed));
        }
        self.next = Some(sequence);
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, head: u64, number: usize) -> Result<(), Violation> {
        let reason = gap.reason();
        if self.client.is_healthy && gap.count > 0 {
            return Err(Violation::Isolation(Fault::new(
                self.place(),
                "events are missing although the client read all the time",
                0,
                gap.count,
            )));
        }
        let is_uncounted = gap.count == 0;
        if is_uncounted != matches!(reason, GapReason::Expired | GapReason::EpochChanged)
            && gap.count == 0
        {
            return Err(self.loss("a gap is not counted", 1, 0));
        }
        if !is_uncounted {
            self.index(gap.first_index, gap.count)?;
        }
        if gap.last_sequence < gap.first_sequence {
            return Err(self.disorder(
                "a gap ends before it begins",
                gap.first_sequence,
                gap.last_sequence,
            ));
        }
        if gap.first_sequence <= self.last && self.last > 0 && reason != GapReason::Conflated {
            return Err(self.disorder(
                "a gap begins before the event that came last",
                self.last + 1,
                gap.first_sequence,
            ));
        }
        match reason {
            GapReason::EpochChanged | GapReason::Expired => {
                return self.opening_gap(gap, head, number);
            }
            GapReason::Evicted if !self.ground.rules.may_evict => {
                return Err(self.loss(
                    "events were evicted within the memory budget",
                    0,
                    gap.count,
                ));
            }
            GapReason::Conflated if self.conflated.is_none() => {
                return Err(self.loss(
                    "events are called conflated where none may be",
                    0,
                    gap.count,
                ));
            }
            _ => {}
        }
        if reason == GapReason::Overflow {
            self.overflow(gap, head)?;
        }
        if let Some(conflated) = &mut self.conflated {
            conflated.settled += gap.count;
            if reason != GapReason::Conflated {
                conflated.lost.push((gap.first_sequence, gap.last_sequence));
                self.next = Some(self.next.unwrap_or(1).max(gap.last_sequence + 1));
                let problem =
                    "a position behind a gap is stated before what was replaced there is counted";
                return self.settled_to(gap.last_sequence, problem);
            }
            let (settled, matching) = (conflated.settled, self.matching_since_live(head));
            if settled > matching {
                return Err(self.loss("more is counted than was published", matching, settled));
            }
            return Ok(());
        }
        self.counted(gap)
    }

    /// A gap stands where its events are missing, and counts them.
    fn counted(&mut self, gap: &Gap) -> Result<(), Violation> {
        if self.next.is_none() {
            self.begin_at(gap.first_sequence)?;
        }
        if self.gaps.count == 0 {
            self.nothing_before(gap.first_sequence, "an event is missing before a gap")?;
        }
        self.gaps.count += gap.count;
        self.gaps.last = self.gaps.last.max(gap.last_sequence);
        let matching = self.matching_to(self.gaps.last);
        if self.gaps.count > matching {
            return Err(self.loss(
                "gaps count more events than match in their span",
                matching,
                self.gaps.count,
            ));
        }
        if self.gaps.count == matching {
            self.next = Some(self.gaps.last + 1);
            self.gaps = Loss::default();
        }
        Ok(())
    }

    fn opening_gap(&mut self, gap: &Gap, head: u64, number: usize) -> Result<(), Violation> {
        let Some(asked) = self.stream.request.resume_after.filter(|_| number == 0) else {
            return Err(self.resume(
                "a gap of this reason stands only before the first event of a stream that resumes",
                0,
                number as u64,
            ));
        };
        let changed = gap.reason() == GapReason::EpochChanged;
        if changed == (asked.epoch == self.head.epoch) {
            return Err(self.resume(
                "the epoch changed, and the gap is of another reason, or the reverse",
                self.head.epoch,
                asked.epoch,
            ));
        }
        let first = if changed { 0 } else { asked.sequence + 1 };
        if gap.first_sequence != first {
            return Err(self.resume(
                "the gap does not begin where the position ends",
                first,
                gap.first_sequence,
            ));
        }
        self.left_history(gap, head)?;
        if gap.count > 0 && gap.count != self.matching(gap.first_sequence, gap.last_sequence) {
            let matching = self.matching(gap.first_sequence, gap.last_sequence);
            return Err(self.loss(
                "a gap counts another number than match in its span",
                matching,
                gap.count,
            ));
        }
        self.next = Some(gap.last_sequence + 1);
        Ok(())
    }

    /// What is said to have left history has.
    fn left_history(&self, gap: &Gap, head: u64) -> Result<(), Violation> {
        match self.ground.rules.history_events {
            Some(kept) if gap.last_sequence > head.saturating_sub(kept) => Err(self.resume(
                "events that history still has are said to be gone",
                head.saturating_sub(kept),
                gap.last_sequence,
            )),
            _ => Ok(()),
        }
    }

    /// Overflow drops what is oldest, and no more than it must.
    fn overflow(&self, gap: &Gap, head: u64) -> Result<(), Violation> {
        if self.is_replaying {
            return self.left_history(gap, head);
        }
        let stale = |problem| {
            Violation::Freshness(Fault::new(self.place(), problem, gap.last_sequence, head))
        };
        if self.overflow == Overflow::Disconnect {
            return Err(stale(
                "events were dropped although the client had asked to be disconnected instead",
            ));
        }
        // Conflated, the limits count survivors, of which only the server knows how many there were.
        if self.ground.rules.may_evict || self.conflated.is_some() {
            return Ok(());
        }
        let (mut events, mut bytes) = (0, 0);
        for sequence in (gap.last_sequence..=head).rev() {
            if self.wants(sequence) {
                events += 1;
                bytes += self
                    .ground
                    .log
                    .get(sequence)
                    .map_or(0, |event| u64::from(event.size));
            }
            if events > self.max_events || bytes > self.max_bytes {
                return Ok(());
            }
        }
        Err(stale("an event was dropped that was within the limits"))
    }

    /// Survivors of a conflating stream.
    fn survivors(&mut self, events: &[Delivered], last: u64) -> Result<(), Violation> {
        for event in events {
            let next = self.ground.successors[event.sequence as usize - 1];
            if next > 0 && next <= last {
                return Err(Violation::Freshness(Fault::new(
                    self.place(),
                    "an event came although a newer one of its topic and key had been published",
                    event.sequence,
                    next,
                )));
            }
        }
        if let Some(conflated) = &mut self.conflated {
            conflated.settled += events.len() as u64;
        }
        self.settled_to(last, "an event was replaced and not counted")?;
        self.next = Some(last + 1);
        Ok(())
    }

    /// Of a conflating stream: at least what matches up to `sequence` is delivered or counted.
    fn settled_to(&mut self, sequence: u64, problem: &'static str) -> Result<(), Violation> {
        let matching = self.matching_since_live(sequence);
        let settled = self
            .conflated
            .as_ref()
            .map_or(0, |conflated| conflated.settled);
        if settled < matching {
            return Err(self.loss(problem, matching, settled));
        }
        Ok(())
    }

    /// The server says that everything up to `position` is settled.
    fn states(&mut self, position: Position, problem: &'static str) -> Result<(), Violation> {
        if position.epoch != self.head.epoch {
            return Err(self.loss(
                "a position is of another epoch than its stream",
                self.head.epoch,
                position.epoch,
            ));
        }
        if self.conflated.is_some() {
            self.settled_to(position.sequence, problem)?;
        } else {
            let next = self.next.unwrap_or(position.sequence + 1);
            self.nothing_between(next, position.sequence, problem)?;
        }
        self.next = Some(self.next.unwrap_or(0).max(position.sequence + 1));
        Ok(())
    }

    fn caught_up(&mut self, position: Position, events: usize) -> Result<(), Violation> {
        if !self.is_replaying
            || position.sequence < self.head.sequence
            || position.epoch != self.head.epoch
        {
            return Err(self.resume(
                "`caught_up` came without a replay, twice, or before the head",
                self.head.sequence,
                position.sequence,
            ));
        }
        if self.stream.request.resume_after.is_some() && self.next.is_none() {
            return Err(self.resume("the epoch changed and no gap told", 0, position.sequence));
        }
        self.states(position, "the replay ended before all of it had come")?;
        self.is_replaying = false;
        self.go_live(events);
        Ok(())
    }

    fn go_live(&mut self, first_event: usize) {
        if self.overflow == Overflow::Conflate {
            let begin = self.next.unwrap_or(1);
            self.conflated = Some(Conflated {
                begin,
                scanned: begin,
                first_event,
                ..Conflated::default()
            });
        }
    }

    fn end(&mut self) -> Result<(), Violation> {
        if let Some(head) = self.stream.complete_through {
            if self.is_replaying {
                return Err(self.resume("the replay never ended", head, self.last));
            }
            self.states(
                Position {
                    sequence: head,
                    ..self.head
                },
                "the stream is at its end, and something never came",
            )?;
            let settled = self.conflated.as_ref().map(|conflated| conflated.settled);
            let matching = self.matching_since_live(head);
            if settled.is_some_and(|settled| settled != matching) {
                return Err(self.loss(
                    "not as much is settled in the end as matches",
                    matching,
                    settled.unwrap_or(0),
                ));
            }
        }
        self.newest_survived()?;
        let position = check_ending(self.client, self.number, Some(self.going_away))?;
        if let (Some(position), Some(next)) = (position, self.next) {
            let asked = self.stream.request.resume_after;
            if self.stream.items.is_empty() && asked == Some(position) {
                return Ok(());
            }
            let honest = self.states(position, "");
            if honest.is_err() || position.sequence + 1 < next && self.conflated.is_none() {
                return Err(Violation::HonestEnding(Fault::new(
                    self.place(),
                    "the position to resume after is not where the stream ended",
                    next - 1,
                    position.sequence,
                )));
            }
        }
        Ok(())
    }

    /// What a conflating stream did not deliver has a newer event of its topic and key, or was lost with a gap.
    fn newest_survived(&self) -> Result<(), Violation> {
        let Some(conflated) = &self.conflated else {
            return Ok(());
        };
        let mut delivered = self.stream.events[conflated.first_event..]
            .iter()
            .peekable();
        let end = self.next.unwrap_or(conflated.begin);
        for sequence in conflated.begin..end {
            if delivered
                .next_if(|event| event.sequence == sequence)
                .is_some()
                || !self.wants(sequence)
                || self.ground.successors[sequence as usize - 1] > 0
                || conflated
                    .lost
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&sequence))
            {
                continue;
            }
            return Err(Violation::Freshness(Fault::new(
                self.place(),
                "the newest event of its topic and key never came",
                sequence,
                end - 1,
            )));
        }
        Ok(())
    }

    fn index(&mut self, first: u64, count: u64) -> Result<(), Violation> {
        if first != self.next_index {
            return Err(self.loss("the index has a hole", self.next_index, first));
        }
        self.next_index += count;
        Ok(())
    }

    fn wants(&self, sequence: u64) -> bool {
        self.ground
            .log
            .get(sequence)
            .is_some_and(|event| self.ground.wanted[event.topic as usize])
    }

    fn matching(&self, first: u64, last: u64) -> u64 {
        (first..=last.min(self.ground.log.head()))
            .filter(|sequence| self.wants(*sequence))
            .count() as u64
    }

    /// What matches from the first that is not settled on.
    fn matching_to(&self, last: u64) -> u64 {
        self.matching(self.next.unwrap_or(1), last)
    }

    fn matching_since_live(&mut self, last: u64) -> u64 {
        let Some(Conflated {
            scanned,
            matching,
            begin,
            ..
        }) = self.conflated
        else {
            return 0;
        };
        if last + 1 < scanned {
            return self.matching(begin, last);
        }
        let matching = matching + self.matching(scanned, last);
        if let Some(conflated) = &mut self.conflated {
            (conflated.scanned, conflated.matching) = (last + 1, matching);
        }
        matching
    }

    fn nothing_before(&self, sequence: u64, problem: &'static str) -> Result<(), Violation> {
        self.nothing_between(
            self.next.unwrap_or(sequence),
            sequence.saturating_sub(1),
            problem,
        )
    }

    fn nothing_between(
        &self,
        first: u64,
        last: u64,
        problem: &'static str,
    ) -> Result<(), Violation> {
        let last = last.min(self.ground.log.head());
        let Some(missing) = (first..=last).find(|sequence| self.wants(*sequence)) else {
            return Ok(());
        };
        let place = self.place();
        let found = last + 1;
        Err(if self.is_replaying {
            Violation::Resume(Fault::new(place, problem, missing, found))
        } else {
            Violation::SilentLoss(Fault::new(place, problem, missing, found))
        })
    }

    fn place(&self) -> Place {
        self.client.place(self.number, self.response)
    }

    fn loss(&self, problem: &'static str, expected: u64, found: u64) -> Violation {
        Violation::SilentLoss(Fault::new(self.place(), problem, expected, found))
    }

    fn disorder(&self, problem: &'static str, expected: u64, found: u64) -> Violation {
        Violation::Order(Fault::new(self.place(), problem, expected, found))
    }

    fn resume(&self, problem: &'static str, expected: u64, found: u64) -> Violation {
        Violation::Resume(Fault::new(self.place(), problem, expected, found))
    }
}

/// Checks how a stream ended. `going_away`: what it said before, if it had begun. Returns where the ending
/// says to resume, if it does.
fn check_ending(
    client: &Client,
    number: usize,
    going_away: Option<Option<Position>>,
) -> Result<Option<Position>, Violation> {
    let stream = &client.streams[number];
    let dishonest = |problem: &str| {
        let place = client.place(number, stream.items.len());
        let problem = format!("{problem} ({:?})", stream.ending);
        Err(Violation::HonestEnding(Fault::new(place, problem, 0, 0)))
    };
    let (code, reason, position) = match &stream.ending {
        None | Some(Ending::Cancelled) => return Ok(None),
        Some(Ending::Finished) => return dishonest("it ended as if all were well"),
        Some(Ending::Status {
            code,
            reason,
            position,
        }) => (*code, reason.as_deref(), *position),
    };
    let Some(reason) = reason else {
        let is_broken = matches!(
            code,
            Code::Unavailable | Code::Internal | Code::Unknown | Code::Cancelled
        );
        return match client.is_disturbed && is_broken {
            true => Ok(None),
            false => {
                dishonest("it broke off without a reason, on a connection that nobody meddled with")
            }
        };
    };
    if !DOCUMENTED.contains(&(code, reason)) {
        return dishonest("code and reason are not documented together");
    }
    if code == Code::Internal {
        return dishonest("the server reports a fault of its own");
    }
    let Some(going_away) = going_away else {
        return Ok(None);
    };
    if position.is_none() && ENDED_BY_SERVER.contains(&reason) {
        return dishonest("it does not say where to resume");
    }
    if reason == SHUTTING_DOWN && going_away != position {
        return dishonest("`going_away` did not come, or names another position than the status");
    }
    Ok(position)
}

// ===== impl Tally =====

impl Tally {
    /// Delivery slots: events delivered, and events counted as missing.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.delivered + self.missed.values().sum::<u64>()
    }

    /// Adds what was checked elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.streams += other.streams;
        self.resumed += other.resumed;
        self.delivered += other.delivered;
        for (into, from) in [
            (&mut self.missed, &other.missed),
            (&mut self.gaps, &other.gaps),
        ] {
            for (name, count) in from {
                *into.entry(name).or_default() += count;
            }
        }
        for (name, count) in &other.endings {
            *self.endings.entry(name.clone()).or_default() += count;
        }
    }

    fn open(&mut self, stream: &Stream) {
        self.streams += 1;
        self.resumed += u64::from(stream.request.resume_after.is_some());
        let ending = match &stream.ending {
            None | Some(Ending::Cancelled) => "cancelled by the client".to_owned(),
            Some(Ending::Finished) => "OK".to_owned(),
            Some(Ending::Status {
                reason: Some(reason),
                ..
            }) => reason.clone(),
            Some(Ending::Status { code, .. }) => format!("broken off ({code:?})"),
        };
        *self.endings.entry(ending).or_default() += 1;
    }

    fn count(&mut self, gap: &Gap) {
        let reason = gap.reason().as_str_name().trim_start_matches("GAP_REASON_");
        *self.missed.entry(reason).or_default() += gap.count;
        *self.gaps.entry(reason).or_default() += 1;
    }
}

// ===== impl Client =====

impl Client {
    fn place(&self, stream: usize, response: usize) -> Place {
        Place::Stream {
            client: self.name.clone(),
            stream,
            response,
        }
    }
}

// ===== impl Fault =====

impl Fault {
    pub(crate) fn new(
        place: Place,
        problem: impl Into<Cow<'static, str>>,
        expected: u64,
        found: u64,
    ) -> Self {
        Self {
            place,
            problem: problem.into(),
            expected,
            found,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            place,
            problem,
            expected,
            found,
        } = self;
        write!(
            out,
            "{place}: {problem}: expected {expected}, found {found}"
        )
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => out.write_str("server"),
            Self::Publisher => out.write_str("publisher"),
            Self::Stream {
                client,
                stream,
                response,
            } => {
                write!(out, "client {client}, stream {stream}, response {response}")
            }
        }
    }
}

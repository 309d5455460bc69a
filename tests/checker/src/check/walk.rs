//! The walk along one stream, beside the log of published events.

use tidegate_proto::v1::{Overflow, Position, Subscribed};

use super::{conflated::Conflated, ending::check_ending, rules::Rules, tally::Tally};
use crate::{
    record::{Client, Delivered, Item, Stream},
    truth::{Log, Remainder},
    violation::{Fault, Location, Violation},
};

/// The rules and the log that a stream is compared with.
pub(super) struct Context<'a> {
    pub(super) rules: Rules,
    pub(super) log: &'a Log,
    /// By sequence less 1, the sequence of the next event of the same topic and key; 0 if there is none.
    pub(super) successors: &'a [u64],
    /// By number of topic, whether the stream gets it.
    pub(super) wanted: Vec<bool>,
    /// The predicate of the stream, if it has one.
    pub(super) predicate: Option<Remainder>,
}

/// A stream, and the state of the walk along it.
pub(super) struct Walk<'a> {
    pub(super) context: Context<'a>,
    pub(super) client: &'a Client,
    /// The stream's number.
    pub(super) number: usize,
    pub(super) stream: &'a Stream,
    /// The number of the current response.
    pub(super) response: usize,
    /// The head when the stream began.
    pub(super) head: Position,
    pub(super) max_events: u64,
    pub(super) max_bytes: u64,
    pub(super) overflow: Overflow,
    /// The index that must come next.
    pub(super) next_index: u64,
    /// The first sequence that is not settled. `None` before the first event of a `replay_last`, which determines it.
    pub(super) next: Option<u64>,
    /// The sequence of the last event delivered, 0 if there is none.
    pub(super) last: u64,
    /// Whether `CaughtUp` is still to come.
    pub(super) is_replaying: bool,
    /// The account of a conflating stream, once it is live.
    pub(super) conflated: Option<Conflated>,
    pub(super) going_away: Option<Position>,
}

// ===== impl Walk =====

impl<'a> Walk<'a> {
    pub(super) fn new(
        client: &'a Client,
        number: usize,
        subscribed: &Subscribed,
        context: Context<'a>,
    ) -> Self {
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
            context,
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
            conflated: None,
            going_away: None,
        };
        if !walk.is_replaying {
            walk.go_live(0);
        }
        walk
    }

    pub(super) fn stream(&mut self, tally: &mut Tally) -> Result<(), Violation> {
        let stream = self.stream;
        if self.head.epoch == 0 {
            return Err(self.resume("`subscribed` has no position", 1, 0));
        }
        let mut begin = 0;
        for (number, item) in stream.items.iter().enumerate() {
            self.response = number;
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
                Item::Unsettled if self.is_unsettled() => {}
                Item::Unsettled => {
                    return Err(self.resume(
                        "no position is stated although events are settled",
                        1,
                        0,
                    ));
                }
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

    /// Checks that the events of a batch ascend, and come after all events before it.
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
        let Some(published) = self.context.log.get(event.sequence) else {
            return Err(self.loss("an event came that was never published", 0, event.sequence));
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

    /// Begins a `replay_last` at its first event, or at a gap in the event's place.
    pub(super) fn begin_at(&mut self, sequence: u64) -> Result<(), Violation> {
        let max = self.stream.request.replay_last.into();
        let replayed = self.matching(sequence, self.head.sequence);
        if replayed > max {
            return Err(self.resume("more is replayed than was requested", max, replayed));
        }
        self.next = Some(sequence);
        Ok(())
    }

    /// Checks the server's statement that everything up to `position` is settled.
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
            self.no_more_settled_than(position.sequence)?;
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
            return Err(self.resume("the epoch changed without a gap", 0, position.sequence));
        }
        self.states(position, "the replay ended before all of it had come")?;
        self.is_replaying = false;
        self.go_live(events);
        Ok(())
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
            self.all_settled(head)?;
        }
        self.newest_survived()?;
        let unsettled = self.is_unsettled();
        let position = check_ending(self.client, self.number, Some(self.going_away), unsettled)?;
        if let Some(position) = position
            && unsettled
        {
            // The server knows where the replay begins before the first event tells.
            self.begin_at(position.sequence + 1)?;
        }
        if let (Some(position), Some(next)) = (position, self.next) {
            let asked = self.stream.request.resume_after;
            if self.stream.items.is_empty() && asked == Some(position) {
                return Ok(());
            }
            let honest = self.states(position, "");
            if honest.is_err() || position.sequence + 1 < next && self.conflated.is_none() {
                return Err(Violation::HonestEnding(Fault::new(
                    self.location(),
                    "the position to resume after is not where the stream ended",
                    next - 1,
                    position.sequence,
                )));
            }
        }
        Ok(())
    }

    pub(super) fn index(&mut self, first: u64, count: u64) -> Result<(), Violation> {
        if first != self.next_index {
            return Err(self.loss("the index has a hole", self.next_index, first));
        }
        self.next_index += count;
        Ok(())
    }

    /// Whether it is a `replay_last` before its first event, which determines where it begins.
    fn is_unsettled(&self) -> bool {
        self.next.is_none() && self.stream.request.replay_last > 0
    }

    pub(super) fn wants(&self, sequence: u64) -> bool {
        let Context {
            log,
            wanted,
            predicate,
            ..
        } = &self.context;
        log.get(sequence).is_some_and(|event| {
            wanted[event.topic as usize]
                && predicate.is_none_or(|predicate| predicate.matches(event.number))
        })
    }

    pub(super) fn matching(&self, first: u64, last: u64) -> u64 {
        (first..=last.min(self.context.log.head()))
            .filter(|sequence| self.wants(*sequence))
            .count() as u64
    }

    /// Counts the matching events from the first that is not settled up to `last`.
    pub(super) fn matching_to(&self, last: u64) -> u64 {
        self.matching(self.next.unwrap_or(1), last)
    }

    pub(super) fn nothing_before(
        &self,
        sequence: u64,
        problem: &'static str,
    ) -> Result<(), Violation> {
        self.nothing_between(
            self.next.unwrap_or(sequence),
            sequence.saturating_sub(1),
            problem,
        )
    }

    pub(super) fn nothing_between(
        &self,
        first: u64,
        last: u64,
        problem: &'static str,
    ) -> Result<(), Violation> {
        let last = last.min(self.context.log.head());
        let Some(missing) = (first..=last).find(|sequence| self.wants(*sequence)) else {
            return Ok(());
        };
        let location = self.location();
        let found = last + 1;
        Err(if self.is_replaying {
            Violation::Resume(Fault::new(location, problem, missing, found))
        } else {
            Violation::SilentLoss(Fault::new(location, problem, missing, found))
        })
    }

    pub(super) fn location(&self) -> Location {
        self.client.location(self.number, self.response)
    }

    pub(super) fn loss(&self, problem: &'static str, expected: u64, found: u64) -> Violation {
        Violation::SilentLoss(Fault::new(self.location(), problem, expected, found))
    }

    pub(super) fn disorder(&self, problem: &'static str, expected: u64, found: u64) -> Violation {
        Violation::Order(Fault::new(self.location(), problem, expected, found))
    }

    pub(super) fn resume(&self, problem: &'static str, expected: u64, found: u64) -> Violation {
        Violation::Resume(Fault::new(self.location(), problem, expected, found))
    }
}

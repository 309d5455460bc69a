//! The records of a client: each of its streams, with every response on it.

use tidegate_proto::v1::{Gap, GapReason, Position, SubscribeRequest, Subscribed};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    lean::{Batch, Response},
    truth::{Remainder, digest},
    violation::Location,
};

/// One client, and all its streams in the order in which they were opened.
#[derive(Debug, Default)]
pub struct Client {
    /// Its name in a violation.
    pub name: String,
    /// Whether it always read in time, and so may miss nothing.
    pub is_healthy: bool,
    /// Whether its connection went through faults, or it did not read: its streams may break off without a status.
    pub is_disturbed: bool,
    /// Its streams.
    pub streams: Vec<Stream>,
}

/// The record of one stream.
#[derive(Debug, Default)]
pub struct Stream {
    /// The request.
    pub request: SubscribeRequest,
    /// The predicate of the subscription, in the process, beside its filters.
    pub predicate: Option<Remainder>,
    pub(crate) subscribed: Option<Subscribed>,
    pub(crate) items: Vec<Item>,
    /// The events of all batches.
    pub(crate) events: Vec<Delivered>,
    pub(crate) ending: Option<Ending>,
    /// The sequence up to which every response must be here, if the client read to the end.
    pub(crate) complete_through: Option<u64>,
    position: Option<Position>,
    has_caught_up: bool,
}

/// The record of one response.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Batch {
        first_index: u64,
        /// The end of its events, in those of the stream.
        end: usize,
    },
    Gap {
        gap: Gap,
        /// The newest sequence of the server, read after the gap had arrived.
        head: u64,
    },
    Heartbeat(Position),
    CaughtUp(Position),
    GoingAway(Position),
    /// A heartbeat or a `GoingAway` without a position: nothing is settled yet.
    Unsettled,
    /// A second `Subscribed`, or a response or position that is not set.
    Malformed,
}

/// The record of an event that was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) sequence: u64,
    pub(crate) digest: u64,
}

/// The end of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The client cancelled the stream.
    Cancelled,
    /// The stream ended with OK.
    Finished,
    /// The stream ended with an error status.
    Status {
        /// The code of the status.
        code: Code,
        /// The reason in its `ErrorInfo`, if there is one.
        reason: Option<String>,
        /// The position to resume after in its `ErrorInfo`, if there is one.
        position: Option<Position>,
    },
}

// ===== impl Client =====

impl Client {
    /// Returns the location of a response in these records.
    pub(crate) fn location(&self, stream: usize, response: usize) -> Location {
        Location::Stream {
            client: self.name.clone(),
            stream,
            response,
        }
    }
}

// ===== impl Stream =====

impl Stream {
    /// Creates the record of a stream that was requested, and has no response yet.
    #[must_use]
    pub fn new(request: SubscribeRequest) -> Self {
        Self {
            position: request.resume_after,
            request,
            ..Self::default()
        }
    }

    /// Records a response. `head` returns the newest sequence of the server, now that the response has arrived.
    pub fn record(&mut self, response: Option<&Response>, head: impl FnOnce() -> u64) {
        let item = match response {
            Some(Response::Subscribed(subscribed)) if self.subscribed.is_none() => {
                if !self.is_replay() {
                    self.position = subscribed.position;
                }
                self.subscribed = Some(subscribed.clone());
                return;
            }
            Some(Response::Batch(batch)) => self.batch(batch),
            Some(Response::Gap(gap)) => {
                if gap.reason() != GapReason::Conflated {
                    self.advance(gap.last_sequence);
                }
                Item::Gap {
                    gap: *gap,
                    head: head(),
                }
            }
            Some(Response::Heartbeat(heartbeat)) => {
                self.stated(heartbeat.position, Item::Heartbeat, Item::Unsettled)
            }
            Some(Response::CaughtUp(caught_up)) => {
                self.has_caught_up = true;
                self.stated(caught_up.position, Item::CaughtUp, Item::Malformed)
            }
            Some(Response::GoingAway(going_away)) => {
                self.stated(going_away.resume_after, Item::GoingAway, Item::Unsettled)
            }
            Some(Response::Subscribed(_)) | None => Item::Malformed,
        };
        self.items.push(item);
    }

    /// Records the end of the stream. Only the first call counts.
    pub fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
    }

    /// Records that every response up to this sequence must be here, since no more will come.
    pub fn complete(&mut self, through: u64) {
        self.complete_through = Some(through);
    }

    /// Returns the position to resume after, by the table in the protocol's documentation.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// Returns the epoch of the stream, once it has begun.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        Some(self.subscribed.as_ref()?.position?.epoch)
    }

    /// Returns the events that were delivered: epoch, sequence, digest.
    pub fn deliveries(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let epoch = self.epoch().unwrap_or(0);
        let events = self.events.iter();
        events.map(move |event| (epoch, event.sequence, event.digest))
    }

    /// Whether the end of the stream is recorded.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether the stream has begun, and its replay, if it requested one, has ended.
    #[must_use]
    pub fn has_caught_up(&self) -> bool {
        self.subscribed.is_some() && (!self.is_replay() || self.has_caught_up)
    }

    /// Whether the request asks for history.
    pub(crate) fn is_replay(&self) -> bool {
        self.request.resume_after.is_some() || self.request.replay_last > 0
    }

    fn batch(&mut self, batch: &Batch) -> Item {
        self.events
            .extend(batch.events.iter().map(|event| Delivered {
                sequence: event.sequence,
                digest: digest(&event.topic, &event.key, &event.payload, &event.attributes),
            }));
        if let Some(last) = batch.events.last() {
            self.advance(last.sequence);
        }
        Item::Batch {
            first_index: batch.first_index,
            end: self.events.len(),
        }
    }

    fn stated(
        &mut self,
        position: Option<Position>,
        item: fn(Position) -> Item,
        otherwise: Item,
    ) -> Item {
        self.position = position.or(self.position);
        position.map_or(otherwise, item)
    }

    fn advance(&mut self, sequence: u64) {
        if let Some(epoch) = self.epoch() {
            self.position = Some(Position { epoch, sequence });
        }
    }
}

impl From<&Status> for Ending {
    fn from(status: &Status) -> Self {
        let info = status.get_details_error_info();
        let trailer = status.metadata().get("tidegate-reason");
        let fact = |name: &str| info.as_ref()?.metadata.get(name)?.parse().ok();
        let position = || {
            Some(Position {
                epoch: fact("resume_after_epoch")?,
                sequence: fact("resume_after_sequence")?,
            })
        };
        Self::Status {
            code: status.code(),
            position: position(),
            reason: info
                .filter(|info| info.domain == "tidegate")
                .map(|info| match trailer {
                    Some(trailer) if *trailer == *info.reason => info.reason,
                    // Nothing that the protocol lets a stream end with.
                    _ => format!("{}, and {trailer:?} as trailer", info.reason),
                }),
        }
    }
}

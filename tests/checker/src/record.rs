//! What was recorded of a client: each of its streams, with everything that came on it.

use tidegate_proto::v1::{Gap, GapReason, Position, SubscribeRequest, Subscribed};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    lean::{Batch, Response},
    truth::digest,
};

/// One client, and all its streams in the order in which they were opened.
#[derive(Debug, Default)]
pub struct Client {
    /// Names it in a violation.
    pub name: String,
    /// Whether it read all the time, within its limits: it may miss nothing.
    pub is_healthy: bool,
    /// Whether its connection was meddled with, or it did not read: a stream may break off without a status.
    pub is_disturbed: bool,
    /// Its streams.
    pub streams: Vec<Stream>,
}

/// One stream, as it was recorded.
#[derive(Debug, Default)]
pub struct Stream {
    /// What was asked for.
    pub request: SubscribeRequest,
    pub(crate) subscribed: Option<Subscribed>,
    pub(crate) items: Vec<Item>,
    /// The events of all batches.
    pub(crate) events: Vec<Delivered>,
    pub(crate) ending: Option<Ending>,
    /// When it was known to be all there, up to which sequence.
    pub(crate) complete_through: Option<u64>,
    position: Option<Position>,
    has_caught_up: bool,
}

/// One response, or what is kept of it.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Batch {
        first_index: u64,
        /// Where its events end in those of the stream.
        end: usize,
    },
    Gap {
        gap: Gap,
        /// The newest sequence of the server when the gap had arrived.
        head: u64,
    },
    Heartbeat(Position),
    CaughtUp(Position),
    GoingAway(Position),
    /// A second `Subscribed`, or a position or a response left out.
    Malformed,
}

/// An event that was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) sequence: u64,
    pub(crate) digest: u64,
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The client gave it up.
    Cancelled,
    /// It was over, and no status said why: OK.
    Finished,
    /// With a status.
    Status {
        /// Its code.
        code: Code,
        /// The reason in its `ErrorInfo`, if it has one.
        reason: Option<String>,
        /// Where to resume, by its `ErrorInfo`.
        position: Option<Position>,
    },
}

// ===== impl Stream =====

impl Stream {
    /// A stream that was asked for and of which nothing has come.
    #[must_use]
    pub fn new(request: SubscribeRequest) -> Self {
        Self {
            position: request.resume_after,
            request,
            ..Self::default()
        }
    }

    /// Records a response. `head` is the newest sequence of the server, now that the response is here.
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
                self.stated(heartbeat.position, Item::Heartbeat)
            }
            Some(Response::CaughtUp(caught_up)) => {
                self.has_caught_up = true;
                self.stated(caught_up.position, Item::CaughtUp)
            }
            Some(Response::GoingAway(going_away)) => {
                self.stated(going_away.resume_after, Item::GoingAway)
            }
            Some(Response::Subscribed(_)) | None => Item::Malformed,
        };
        self.items.push(item);
    }

    /// Records how it ended. The first ending holds.
    pub fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
    }

    /// Records that everything up to this sequence should have come, since nothing more does.
    pub fn complete(&mut self, through: u64) {
        self.complete_through = Some(through);
    }

    /// Where to resume, by the table in the protocol's documentation.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// The epoch of the stream, once it has begun.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        Some(self.subscribed.as_ref()?.position?.epoch)
    }

    /// What was delivered: epoch, sequence, digest.
    pub fn deliveries(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let epoch = self.epoch().unwrap_or(0);
        let events = self.events.iter();
        events.map(move |event| (epoch, event.sequence, event.digest))
    }

    /// Whether it is known how it ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether it has begun, and the replay that was asked for has ended.
    #[must_use]
    pub fn has_caught_up(&self) -> bool {
        self.subscribed.is_some() && (!self.is_replay() || self.has_caught_up)
    }

    /// Whether history was asked for.
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

    fn stated(&mut self, position: Option<Position>, item: fn(Position) -> Item) -> Item {
        self.position = position.or(self.position);
        position.map_or(Item::Malformed, item)
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
                .map(|info| info.reason),
        }
    }
}

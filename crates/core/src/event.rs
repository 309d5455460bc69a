//! Events, their payloads, and positions in the order of events.

use std::sync::Arc;

use crate::{
    retained::{Charge, Retained},
    topic::Topic,
};

/// What the allocations of an event take besides what is in them: counts of references, and what the
/// allocator adds and rounds up.
const ALLOCATIONS: usize = 96;

/// What an event carries. The hub never looks inside; it only has to know how much it holds.
pub trait Payload: Send + Sync + 'static {
    /// How many bytes this payload counts against the limits of subscriptions and of history. Must
    /// always give the same answer for one value.
    fn size(&self) -> usize;
}

impl Payload for bytes::Bytes {
    fn size(&self) -> usize {
        self.len()
    }
}

/// An event that is about to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent<P> {
    /// Where it belongs.
    pub topic: Topic,
    /// What it is about, within its topic; `None` is the topic as a whole.
    pub key: Option<Arc<str>>,
    /// What it carries.
    pub payload: P,
}

/// An event with its place in the order of the hub. Shared by all who are to see it.
#[derive(Debug)]
pub struct Event<P> {
    pub(crate) sequence: u64,
    topic: Topic,
    key: Option<Arc<str>>,
    payload: P,
    /// What the payload said, once: no code of an application runs under a lock.
    size: u64,
    /// What this event holds, counted until it is freed.
    _charge: Charge,
}

/// Identity of a sequence space and a place in it: all that is needed to resume with any filter.
///
/// A sequence alone would lie. A server restarts, its memory of 5,000 events is gone, and it numbers
/// from 1 again. A client that comes back with "5,000" would wait for 5,001 and silently miss the new
/// 1 to 5,000. With the epoch in its hand it is told that its position belongs to another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Identity of the sequence space.
    pub epoch: u64,
    /// The newest event that is behind this position; 0 is before the first event.
    pub sequence: u64,
}

// ===== impl NewEvent =====

impl<P> NewEvent<P> {
    /// An event without a key.
    pub const fn new(topic: Topic, payload: P) -> Self {
        Self {
            topic,
            key: None,
            payload,
        }
    }
}

impl<P: Payload> NewEvent<P> {
    /// The event in the memory that all its takers will share, without a sequence yet.
    pub(crate) fn into_shared(self, retained: &Retained) -> Arc<Event<P>> {
        let Self {
            topic,
            key,
            payload,
        } = self;
        let names = topic.as_str().len() + key.as_ref().map_or(0, |key| key.len());
        let size = payload.size();
        let held = size_of::<Event<P>>() + names + size + ALLOCATIONS;
        Arc::new(Event {
            sequence: 0,
            topic,
            key,
            payload,
            size: size as u64,
            _charge: retained.charge(held as u64),
        })
    }
}

// ===== impl Event =====

impl<P> Event<P> {
    /// The hub's number for the event: strictly increasing, not dense.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Where the event was published.
    #[must_use]
    pub const fn topic(&self) -> &Topic {
        &self.topic
    }

    /// What the event is about, within its topic.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// What the event carries.
    #[must_use]
    pub const fn payload(&self) -> &P {
        &self.payload
    }
}

impl<P> Event<P> {
    /// How many bytes the event counts against limits: what its payload says.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }
}

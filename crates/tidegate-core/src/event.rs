//! Events, their payloads, and positions in the order of events.

use std::sync::Arc;

use crate::{
    retained::{Charge, Retained},
    topic::Topic,
};

/// What an event carries. The hub never looks inside; it only has to know how much it holds.
pub trait Payload: Send + Sync + 'static {
    /// How many bytes this payload counts against the limits of subscriptions and of history. Must
    /// always give the same answer for one value.
    fn size(&self) -> usize;
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
    /// What predicates said of it, by their identities.
    verdicts: Vec<(u64, bool)>,
    /// What this event holds, counted until it is freed.
    charge: Charge,
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

impl Payload for bytes::Bytes {
    fn size(&self) -> usize {
        self.len()
    }
}

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
        let size = payload.size();
        let held = allocated(COUNTS + size_of::<Event<P>>())
            + allocated(COUNTS + topic.as_str().len())
            + key.as_ref().map_or(0, |key| allocated(COUNTS + key.len()))
            + allocated(size)
            + SHARED;
        Arc::new(Event {
            sequence: 0,
            topic,
            key,
            payload,
            size: size as u64,
            verdicts: Vec::new(),
            charge: retained.charge(held as u64),
        })
    }
}

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

    /// What a predicate said, if it was asked.
    pub(crate) fn verdict(&self, predicate: u64) -> Option<bool> {
        let mut verdicts = self.verdicts.iter();
        verdicts
            .find(|(asked, _)| *asked == predicate)
            .map(|(_, verdict)| *verdict)
    }

    pub(crate) fn note_verdict(&mut self, predicate: u64, verdict: bool) {
        self.charge.add(size_of::<(u64, bool)>() as u64);
        self.verdicts.push((predicate, verdict));
    }
}

/// The two counts of references that stand before what an `Arc` holds.
const COUNTS: usize = 2 * size_of::<usize>();

/// What `bytes::Bytes` allocates beside the bytes once it is shared.
const SHARED: usize = 32;

/// How much memory an allocation of so many bytes takes: rounded up to one of four sizes to a doubling, as
/// mimalloc and jemalloc do, and a sixteenth for pages that are not full, as measured (docs/memory.md).
fn allocated(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 8).max(16);
    let rounded = bytes.next_multiple_of(step);
    rounded + rounded / 16
}

#[cfg(test)]
mod tests {
    use super::allocated;

    #[test]
    fn allocations_round_up_to_four_sizes_per_doubling() {
        for (bytes, takes) in [
            (0, 0),
            (1, 16 + 1),
            (33, 48 + 3),
            (129, 160 + 10),
            (1_024, 1_024 + 64),
            (1_025, 1_280 + 80),
            (1_536, 1_536 + 96),
            (1_537, 1_792 + 112),
            (2_047, 2_048 + 128),
        ] {
            assert_eq!(allocated(bytes), takes, "{bytes}");
        }
    }
}

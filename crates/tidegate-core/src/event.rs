//! Events, their payloads, and positions in the order of events.

use std::sync::Arc;

use crate::{
    retained::{Charge, Retained},
    subject::Subject,
    topic::Topic,
};

/// The content of an event. The hub never looks inside; it only has to know its size.
pub trait Payload: Send + Sync + 'static {
    /// How many bytes this payload counts against the limits of subscriptions and of history. The hub asks
    /// once for each event, before it takes a lock.
    fn size(&self) -> usize;

    /// How many bytes of memory this payload holds besides its size, which only the memory budget counts: a decoded
    /// form, for example. The hub asks once for each event, before it takes a lock. Default: none.
    fn extra_memory(&self) -> usize {
        0
    }
}

/// An event that is about to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent<P> {
    /// The topic to publish it to.
    pub topic: Topic,
    /// The subject within the topic, which [`Overflow::Conflate`](crate::Overflow::Conflate) goes by; `None`
    /// is the topic as a whole.
    pub key: Option<Arc<str>>,
    /// The content.
    pub payload: P,
}

/// An event with its place in the order of the hub. History, feeds and subscribers share it.
#[derive(Debug)]
pub struct Event<P> {
    /// 0 until the publisher numbers it.
    pub(crate) sequence: u64,
    /// The topic it was published to.
    topic: Topic,
    /// The subject within its topic.
    key: Option<Arc<str>>,
    /// The content.
    payload: P,
    /// The topic and key, hashed before a lock is taken; none if nobody conflated then, or it stands for itself.
    subject: Option<Subject>,
    /// The size of the payload, asked once: no code of an application runs under a lock.
    size: u64,
    /// The bytes of this event, counted until it is freed.
    charge: Charge,
}

/// Identity of a sequence space and a place in it: all you need to resume, with any filter.
///
/// A sequence alone would lie. A server restarts, its memory of 5,000 events is gone, and it numbers
/// from 1 again. A client that comes back with "5,000" would wait for 5,001 and silently miss the new
/// 1 to 5,000. Because it brings the epoch too, the hub can tell it that its position is of an earlier time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Identity of the sequence space.
    pub epoch: u64,
    /// The sequence of the newest event behind this position; 0 is before the first event.
    pub sequence: u64,
}

impl Payload for bytes::Bytes {
    fn size(&self) -> usize {
        self.len()
    }
}

impl<P> NewEvent<P> {
    /// Makes an event without a key.
    pub const fn new(topic: Topic, payload: P) -> Self {
        Self {
            topic,
            key: None,
            payload,
        }
    }
}

impl<P: Payload> NewEvent<P> {
    /// Moves the event into the memory that history, feeds and subscribers will share, without a sequence.
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
            + allocated(payload.extra_memory())
            + SHARED;
        Arc::new(Event {
            sequence: 0,
            subject: None,
            topic,
            key,
            payload,
            size: size as u64,
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

    /// The topic that the event was published to.
    #[must_use]
    pub const fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The subject of the event within its topic.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The content of the event.
    #[must_use]
    pub const fn payload(&self) -> &P {
        &self.payload
    }

    /// The content alone. The rest goes, and its bytes are uncounted.
    pub(crate) fn into_payload(self) -> P {
        self.payload
    }
}

impl<P> Event<P> {
    /// How many bytes the event counts against limits: the size of its payload.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// How many bytes of memory the event holds, as the budget counts them.
    pub(crate) const fn held(&self) -> u64 {
        self.charge.bytes()
    }

    /// Hashes the topic and key ahead of the locks.
    // Out of line: most hubs do not conflate, and their publishing is no larger for it.
    #[cold]
    pub(crate) fn hash_subject(&mut self) {
        self.subject = Subject::of(&self.topic, self.key());
    }

    /// The topic and key, by which conflation goes; none if the event stands for itself.
    pub(crate) fn subject(&self) -> Option<Subject> {
        // Hashed on the spot only where the event was made before the first subscription that conflates came.
        self.subject
            .or_else(|| Subject::of(&self.topic, self.key()))
    }
}

/// Bytes of the two reference counts before the value of an `Arc`.
const COUNTS: usize = 2 * size_of::<usize>();

/// Bytes that `bytes::Bytes` allocates beside its content once it is shared: two words and a count, rounded
/// up to an allocation of 32.
const SHARED: usize = 32;

/// How much memory an allocation of `bytes` takes: rounded up to one of four sizes to a doubling, as
/// mimalloc and jemalloc do, and a sixteenth more for pages that are not full, as measured (docs/memory.md).
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

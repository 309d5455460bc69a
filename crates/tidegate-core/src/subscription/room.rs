//! The bounds of one poll, and the batch that it fills.

use std::sync::Arc;

use crate::{
    event::{Event, Payload, Position},
    freed::Freed,
    gap::Gap,
};

/// The most that one poll may take: [`Room::events`] bounds their number only.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// The most events; one is taken in any case.
    pub events: usize,
    /// The most bytes; one event is taken whatever its size.
    pub bytes: u64,
    /// Bytes that an event costs besides its own size, such as its framing. Counts towards `bytes`.
    pub overhead: u64,
    /// Live events after this sequence are left for later. [`u64::MAX`] leaves none; 0 leaves all, and a
    /// poll then only looks whether the subscription has ended. A replay ignores it. Events that are left count
    /// against the limits, except of a subscription that conflates.
    pub up_to: u64,
}

/// The result of one poll: the gaps, then the events, then whether the replay has ended.
///
/// Keep it from poll to poll: its memory is used again.
#[derive(Debug)]
pub struct Batch<P> {
    /// The gaps before the events, each reason once.
    pub gaps: Vec<Gap>,
    /// The index of the first of the events; the others follow without holes.
    pub first_index: u64,
    /// The events, in sequence order.
    pub events: Vec<Arc<Event<P>>>,
    /// Set once, with the position at which the replay that was asked for is done: live events follow.
    pub caught_up: Option<Position>,
}

/// A batch that is being filled, within a room.
pub(super) struct Filling<'a, P> {
    /// The bounds.
    pub(super) room: Room,
    /// The bytes taken so far, overhead included.
    pub(super) bytes: u64,
    /// The events taken so far.
    pub(super) events: &'a mut Vec<Arc<Event<P>>>,
    /// Things that the cursors have passed last of all, to be dropped after all locks.
    pub(super) freed: Freed<P>,
}

impl Room {
    /// Room for this many events of any size.
    #[must_use]
    pub const fn events(events: usize) -> Self {
        Self {
            events,
            bytes: u64::MAX,
            overhead: 0,
            up_to: u64::MAX,
        }
    }

    /// This room, with live events after `sequence` left for later.
    pub(super) fn before(self, sequence: u64) -> Self {
        Self {
            up_to: self.up_to.min(sequence),
            ..self
        }
    }

    /// Whether an event of `size` may be added to this many events and bytes. The first may always: a poll that
    /// took nothing would never get past a large event.
    const fn fits(&self, events: usize, bytes: u64, size: u64) -> bool {
        events == 0
            || (events < self.events && bytes.saturating_add(size + self.overhead) <= self.bytes)
    }
}

impl<P> Batch<P> {
    /// Whether it holds neither a gap nor an event nor the end of a replay.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.gaps.is_empty() && self.events.is_empty() && self.caught_up.is_none()
    }

    /// Removes everything; keeps the memory.
    pub fn clear(&mut self) {
        self.gaps.clear();
        self.events.clear();
        self.caught_up = None;
    }
}

impl<P> Default for Batch<P> {
    fn default() -> Self {
        Self {
            gaps: Vec::new(),
            first_index: 0,
            events: Vec::new(),
            caught_up: None,
        }
    }
}

impl<P: Payload> Filling<'_, P> {
    /// Takes `event` unless the room is full. Returns whether it did.
    pub(super) fn take(&mut self, event: &Arc<Event<P>>) -> bool {
        let fits = self.room.fits(self.events.len(), self.bytes, event.size());
        if fits {
            self.bytes = self.bytes.saturating_add(event.size() + self.room.overhead);
            self.events.push(Arc::clone(event));
        }
        fits
    }
}

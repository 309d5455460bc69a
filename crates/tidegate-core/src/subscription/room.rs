//! How much one poll may take, and what it took.

use std::sync::Arc;

use crate::{
    event::{Event, Payload, Position},
    gap::Gap,
};

/// How much one poll may take.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// The most events; at least one is taken.
    pub events: usize,
    /// The most bytes; one event is taken whatever its size.
    pub bytes: u64,
    /// What an event costs besides its own size.
    pub overhead: u64,
    /// Live events after this sequence are left for later. [`u64::MAX`] leaves none; 0 leaves all, and a
    /// poll then only looks whether the subscription has ended. A replay takes no notice of it.
    pub up_to: u64,
}

/// What one poll handed out: the gaps, then the events, then whether the replay has ended.
#[derive(Debug)]
pub struct Batch<P> {
    /// What is missing before the events, each reason once.
    pub gaps: Vec<Gap>,
    /// The index of the first of the events; the others follow without holes.
    pub first_index: u64,
    /// In sequence order.
    pub events: Vec<Arc<Event<P>>>,
    /// Set once, when the replay that was asked for is done: what follows is live.
    pub caught_up: Option<Position>,
}

/// What is left of a room while a batch is filled.
pub(super) struct Filling<'a, P> {
    pub(super) room: Room,
    pub(super) bytes: u64,
    pub(super) events: &'a mut Vec<Arc<Event<P>>>,
}

impl Room {
    /// Room for so many events of any size.
    #[must_use]
    pub const fn events(events: usize) -> Self {
        Self {
            events,
            bytes: u64::MAX,
            overhead: 0,
            up_to: u64::MAX,
        }
    }

    /// Whether an event of `size` may be added to `events` that hold `bytes` so far.
    const fn fits(&self, events: usize, bytes: u64, size: u64) -> bool {
        events == 0
            || (events < self.events && bytes.saturating_add(size + self.overhead) <= self.bytes)
    }
}

impl<P> Batch<P> {
    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.gaps.is_empty() && self.events.is_empty() && self.caught_up.is_none()
    }

    /// Takes everything out; keeps the memory.
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
    /// Takes `event` unless the room is full.
    pub(super) fn take(&mut self, event: &Arc<Event<P>>) -> bool {
        let fits = self.room.fits(self.events.len(), self.bytes, event.size());
        if fits {
            self.bytes = self.bytes.saturating_add(event.size() + self.room.overhead);
            self.events.push(Arc::clone(event));
        }
        fits
    }
}

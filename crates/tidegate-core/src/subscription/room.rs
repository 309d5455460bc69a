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

/// Consecutive events of one filter, or one set of filters, of a hub.
///
/// Two subscriptions that are handed the same range have the same events, so you can keep what you made of them. Their
/// [`Batch::first_index`] may differ, and is not part of it. No other ranges of a process are equal. See [`Batch::range`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventRange {
    /// The identity of the feed.
    pub(super) feed: u64,
    /// The number of the first event in it.
    pub(super) first: u64,
    /// The number of events.
    pub(super) count: u64,
    /// The sequence of the last.
    pub(super) last_sequence: u64,
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
    ///
    /// Empty also where they are the range that was kept, see
    /// [`poll_next_unless_kept`](crate::Subscription::poll_next_unless_kept).
    pub events: Vec<Arc<Event<P>>>,
    /// The range that the events are. `None` where there is a gap before them, where they come from several feeds or from
    /// history, where they are the survivors of a subscription that conflates, and where there are none.
    pub range: Option<EventRange>,
    /// Set once, with the position at which the replay that was asked for is done: live events follow.
    pub caught_up: Option<Position>,
}

/// A batch that is being filled, within a room.
pub(super) struct Filling<'a, P> {
    /// The bounds.
    pub(super) room: Room,
    /// The bytes of the events taken so far.
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

    /// Whether it has room for this many events, of this many bytes in all. For the first always: a poll that took nothing
    /// would never get past a large event.
    pub(crate) fn holds(&self, events: u64, bytes: u64) -> bool {
        let overhead = self.overhead.saturating_mul(events);
        events <= 1
            || (events <= self.events as u64 && bytes.saturating_add(overhead) <= self.bytes)
    }
}

impl EventRange {
    /// Number of events, at least one.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }
}

impl<P> Batch<P> {
    /// Whether it holds neither a gap nor an event, kept or not, nor the end of a replay.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.gaps.is_empty()
            && self.events.is_empty()
            && self.range.is_none()
            && self.caught_up.is_none()
    }

    /// Whether its events are the range that was kept, and nothing else.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.range.is_some() && self.events.is_empty()
    }

    /// The number of events that were handed out, kept or not.
    pub(super) fn count(&self) -> u64 {
        self.range
            .map_or(self.events.len() as u64, |range| range.count)
    }

    /// The sequence of the last of them.
    pub(super) fn last_sequence(&self) -> Option<u64> {
        match self.range {
            Some(range) => Some(range.last_sequence),
            None => self.events.last().map(|event| event.sequence()),
        }
    }

    /// Removes everything; keeps the memory.
    pub fn clear(&mut self) {
        self.gaps.clear();
        self.events.clear();
        self.range = None;
        self.caught_up = None;
    }
}

impl<P> Default for Batch<P> {
    fn default() -> Self {
        Self {
            gaps: Vec::new(),
            first_index: 0,
            events: Vec::new(),
            range: None,
            caught_up: None,
        }
    }
}

impl<P: Payload> Filling<'_, P> {
    /// Takes `event` unless the room is full. Returns whether it did.
    pub(super) fn take(&mut self, event: &Arc<Event<P>>) -> bool {
        let bytes = self.bytes.saturating_add(event.size());
        let fits = self.room.holds(self.events.len() as u64 + 1, bytes);
        if fits {
            self.bytes = bytes;
            self.events.push(Arc::clone(event));
        }
        fits
    }
}

//! The limits of all subscriptions that share a feed.

use crate::limits::Limits;

/// The largest of the limits in use. There are few distinct ones, so a list beats a tree.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    /// Each distinct pair of events and bytes, with how many subscriptions use it.
    in_use: Vec<(u64, u64, u32)>,
    /// The largest number of events in use.
    max_events: u64,
    /// The largest number of bytes in use, maybe of another subscription.
    max_bytes: u64,
}

impl Bounds {
    /// Counts the limits of a subscription in.
    pub(crate) fn add(&mut self, limits: &Limits) {
        let (events, bytes) = (limits.max_events.get(), limits.max_bytes.get());
        match self
            .in_use
            .iter_mut()
            .find(|(e, b, _)| (*e, *b) == (events, bytes))
        {
            Some((_, _, users)) => *users += 1,
            None => {
                // Exactly one: most feeds have one, and a list would make room for four.
                self.in_use.reserve_exact(1);
                self.in_use.push((events, bytes, 1));
            }
        }
        self.max_events = self.max_events.max(events);
        self.max_bytes = self.max_bytes.max(bytes);
    }

    /// Counts the limits of a subscription out, which were added before.
    pub(crate) fn remove(&mut self, limits: &Limits) {
        let (events, bytes) = (limits.max_events.get(), limits.max_bytes.get());
        let at = self
            .in_use
            .iter()
            .position(|(e, b, _)| (*e, *b) == (events, bytes))
            .expect("was added");
        self.in_use[at].2 -= 1;
        if self.in_use[at].2 == 0 {
            self.in_use.swap_remove(at);
            self.max_events = self.in_use.iter().map(|(e, _, _)| *e).max().unwrap_or(0);
            self.max_bytes = self.in_use.iter().map(|(_, b, _)| *b).max().unwrap_or(0);
        }
    }

    /// Whether a backlog of this size may be within the limits of some subscription.
    pub(crate) const fn fits(&self, events: usize, bytes: u64) -> bool {
        events as u64 <= self.max_events && bytes <= self.max_bytes
    }
}

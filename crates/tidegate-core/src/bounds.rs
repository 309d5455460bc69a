//! The limits of all who share a feed.

use crate::limits::Limits;

/// The largest of the limits in use. Few distinct ones are, so a list beats a tree.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    in_use: Vec<(u64, u64, u32)>,
    max_events: u64,
    max_bytes: u64,
}

impl Bounds {
    pub(crate) fn add(&mut self, limits: &Limits) {
        let (events, bytes) = (limits.max_events.get(), limits.max_bytes.get());
        match self
            .in_use
            .iter_mut()
            .find(|(e, b, _)| (*e, *b) == (events, bytes))
        {
            Some((_, _, users)) => *users += 1,
            None => self.in_use.push((events, bytes, 1)),
        }
        self.max_events = self.max_events.max(events);
        self.max_bytes = self.max_bytes.max(bytes);
    }

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

    pub(crate) const fn fits(&self, events: usize, bytes: u64) -> bool {
        events as u64 <= self.max_events && bytes <= self.max_bytes
    }
}

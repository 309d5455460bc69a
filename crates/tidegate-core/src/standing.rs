//! The places of a subscription in its feeds, as listings see them.
//!
//! A subscription settles its losses when it is polled, and one whose client has stopped reading is not. So listings
//! work out what the next poll will tell: which of the events behind the cursors are lost already.

// Plain atomics, not those of `sync`: they are statistics that order nothing, and loom need not know of them.
use std::sync::{
    Arc,
    atomic::{AtomicU64 as AtomicNumber, Ordering::Relaxed},
};

use crate::{
    backlog::Backlog,
    event::Payload,
    feed::Feed,
    limits::{Limits, Overflow},
};

/// The limits and the places of one subscription. Its cursors write the places, and listings read them.
#[derive(Debug)]
pub(crate) struct Standing<P> {
    /// The limits in force.
    limits: Limits,
    /// One for each feed, in the order of the cursors.
    places: Box<[Place<P>]>,
}

/// The place of a cursor in its feed.
#[derive(Debug)]
struct Place<P> {
    /// The feed.
    feed: Arc<Feed<P>>,
    /// The number of the first event that was neither handed out nor counted, or [`NOWHERE`].
    next: AtomicNumber,
}

/// The place of a cursor that is not in its feed: history is being replayed to it.
const NOWHERE: u64 = u64::MAX;

/// The events behind the cursors of a subscription that it will not see, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Lost: beyond its limits, or evicted.
    pub(crate) lost: u64,
    /// Replaced by newer ones.
    pub(crate) conflated: u64,
}

impl<P: Payload> Standing<P> {
    /// The standing of a subscription that has cursors nowhere yet.
    pub(crate) fn new(limits: Limits, feeds: &[Arc<Feed<P>>]) -> Self {
        let place = |feed: &Arc<Feed<P>>| Place {
            feed: Arc::clone(feed),
            next: AtomicNumber::new(NOWHERE),
        };
        Self {
            limits,
            places: feeds.iter().map(place).collect(),
        }
    }

    /// The feeds, in the order of the cursors.
    pub(crate) fn feeds(&self) -> impl ExactSizeIterator<Item = &Arc<Feed<P>>> {
        self.places.iter().map(|place| &place.feed)
    }

    /// Notes that the cursor `i` stands before the event numbered `next`. Called under the lock of its feed, so that a
    /// listing which holds that lock sees the cursor where the feed has it.
    pub(crate) fn put(&self, i: usize, next: u64) {
        self.places[i].next.store(next, Relaxed);
    }

    /// Notes that the cursor `i` is not in its feed. Called under the lock of the feed.
    pub(crate) fn lift(&self, i: usize) {
        self.put(i, NOWHERE);
    }

    /// The ends of the feeds, summed, and the events behind the cursors that the next poll will count as lost or
    /// replaced. Takes the lock of each feed in turn, twice where some were evicted.
    ///
    /// Exact where the limit in events counts, or a single feed has something; where the limit in bytes cuts through
    /// several feeds, or through survivors, it is estimated by the mean size of the events.
    pub(crate) fn look(&self) -> (u64, Pending) {
        let mut seen = Seen::default();
        for place in &self.places {
            seen.add(place, &self.limits, 0);
        }
        if seen.evicted_through > 0 && seen.feeds > 1 {
            // By the prefix rule what lies before the last evicted event goes in the other feeds as well.
            let floor = seen.evicted_through;
            seen = Seen::default();
            for place in &self.places {
                seen.add(place, &self.limits, floor);
            }
        }
        (seen.ends, self.pending(&seen))
    }

    fn pending(&self, seen: &Seen) -> Pending {
        let Seen { kept, gone, .. } = *seen;
        let is_over = !self.limits.fits(kept.events, kept.bytes);
        if self.limits.overflow == Overflow::Disconnect {
            // It is ended instead, and can resume. What the memory budget took is told by a gap.
            let lost = if is_over || gone > seen.evicted {
                0
            } else {
                gone
            };
            return Pending { lost, conflated: 0 };
        }
        let over = match (is_over, seen.first_that_fits) {
            (false, _) => 0,
            (true, Some(skipped)) if seen.feeds == 1 => skipped,
            (true, _) => self.beyond(kept),
        };
        Pending {
            lost: gone + over,
            conflated: seen.replaced,
        }
    }

    /// How many events of a backlog are beyond the limits, about: the newest always fits.
    fn beyond(&self, kept: Backlog) -> u64 {
        let Limits {
            max_events,
            max_bytes,
            ..
        } = self.limits;
        let surplus = kept.bytes.saturating_sub(max_bytes.get());
        // Rounded up, so that it is never none where some are beyond.
        let by_bytes = u128::from(kept.events) * u128::from(surplus);
        let by_bytes = by_bytes.div_ceil(u128::from(kept.bytes.max(1)));
        let by_bytes = u64::try_from(by_bytes).unwrap_or(u64::MAX);
        let by_events = kept.events.saturating_sub(max_events.get());
        by_events.max(by_bytes).min(kept.events.saturating_sub(1))
    }
}

/// A look at the places of a subscription, summed.
#[derive(Debug, Default)]
struct Seen {
    /// The ends of all feeds, summed.
    ends: u64,
    /// Feeds that have something for it, or had.
    feeds: usize,
    /// Events that they keep for it, or survivors.
    kept: Backlog,
    /// Events that they no longer keep, or that go with those.
    gone: u64,
    /// Those of them that the memory budget took.
    evicted: u64,
    /// Events that newer ones replaced.
    replaced: u64,
    /// The sequence of the last event that is gone.
    evicted_through: u64,
    /// The events of the last feed that have to go for the rest of it to fit.
    first_that_fits: Option<u64>,
}

impl Seen {
    /// Adds a place. Everything up to the sequence `floor` is lost.
    fn add<P: Payload>(&mut self, place: &Place<P>, limits: &Limits, floor: u64) {
        let feed = place.feed.lock();
        let (next, end) = (place.next.load(Relaxed), feed.end());
        self.ends = self.ends.wrapping_add(end);
        if next >= end {
            return;
        }
        self.feeds += 1;
        if limits.overflow == Overflow::Conflate {
            let latest = feed.latest();
            let overtaken = latest.first().saturating_sub(next).min(end - next);
            let survivors = latest.backlog(next, floor, u64::MAX);
            let dropped = latest.stretch(next, floor).count;
            self.gone += overtaken + dropped;
            self.replaced += (end - next) - overtaken - dropped - survivors.events;
            self.keep(survivors);
            let evicted = latest.evicted_before(next).unwrap_or(0);
            self.evicted_through = self.evicted_through.max(evicted);
            return;
        }
        let from = next.max(feed.number_after(floor));
        let kept = feed.backlog(from, end);
        self.gone += end - next - kept.events;
        self.evicted += feed.evicted().within(next, end).count;
        self.keep(kept);
        let evicted = feed.evicted_before(next).unwrap_or(0);
        self.evicted_through = self.evicted_through.max(evicted);
        if !limits.fits(kept.events, kept.bytes) {
            let start = feed.first_that_fits(from, end, limits);
            self.first_that_fits = Some(start - (end - kept.events));
        }
    }

    const fn keep(&mut self, kept: Backlog) {
        self.kept.events += kept.events;
        self.kept.bytes += kept.bytes;
    }
}

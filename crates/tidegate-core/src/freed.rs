//! Things that are taken out under a lock, to be dropped after it.
//!
//! The `Drop` of a payload is code of the application: it may publish, subscribe or take long. So is that of what a
//! predicate has captured, which goes with the last reference to its feed. Neither ever runs under a lock of the hub: who
//! takes something out under a lock puts it here, and lets this go when all locks are gone.

use std::{any::Any, fmt, mem, sync::Arc};

use crate::event::{Event, Payload};

/// Payloads and feeds whose last reference was taken out.
#[derive(Debug)]
pub(crate) struct Freed<P> {
    /// The first payload: most often there is one, and it takes no allocation. Its event is gone already, and uncounted.
    payload: Option<P>,
    /// Everything else, which is rare.
    more: Option<Box<More<P>>>,
}

/// See [`Freed::more`].
struct More<P> {
    /// Further payloads.
    payloads: Vec<P>,
    /// Feeds, only to be dropped.
    feeds: Vec<Box<dyn Any + Send>>,
    /// Feeds with more events that nobody wants than could be let go under one hold of their lock.
    crowded: Vec<Arc<dyn Crowded<P> + Send + Sync>>,
}

/// A place that has more to let go of than is let go under one hold of its lock.
pub(crate) trait Crowded<P> {
    /// Takes the lock, and lets go of some. Returns whether more is left.
    fn free_some(&self, freed: &mut Freed<P>) -> bool;
}

impl<P> Freed<P> {
    /// Nothing yet.
    pub(crate) const fn new() -> Self {
        Self {
            payload: None,
            more: None,
        }
    }

    /// Lets go of everything, and of what feeds have left for later. The caller holds no lock.
    pub(crate) fn clear(&mut self)
    where
        P: Payload,
    {
        while let Some(mut more) = self.more.take() {
            for feed in mem::take(&mut more.crowded) {
                // In between publishers get the lock, and what is freed does not pile up.
                let mut freed = Self::new();
                while feed.free_some(&mut freed) {
                    freed = Self::new();
                }
            }
        }
        self.payload = None;
    }

    /// Lets go of a reference to `event`, and keeps the payload if it was the last.
    #[inline]
    pub(crate) fn event(&mut self, event: Arc<Event<P>>) {
        if let Some(event) = Arc::into_inner(event) {
            let payload = event.into_payload();
            if self.payload.is_none() {
                self.payload = Some(payload);
            } else {
                self.more().payloads.push(payload);
            }
        }
    }

    /// Notes that `feed` has more events to be let go of.
    #[cold]
    pub(crate) fn crowded(&mut self, feed: Arc<dyn Crowded<P> + Send + Sync>) {
        self.more().crowded.push(feed);
    }

    /// Lets go of a reference to `feed`, and keeps the feed if it was the last.
    pub(crate) fn feed(&mut self, feed: Arc<impl Any + Send>) {
        if let Some(feed) = Arc::into_inner(feed) {
            self.more().feeds.push(Box::new(feed));
        }
    }

    /// The rare things.
    fn more(&mut self) -> &mut More<P> {
        self.more.get_or_insert_with(|| {
            Box::new(More {
                payloads: Vec::new(),
                feeds: Vec::new(),
                crowded: Vec::new(),
            })
        })
    }
}

impl<P> fmt::Debug for More<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("More")
            .field("payloads", &self.payloads.len())
            .field("feeds", &self.feeds.len())
            .finish_non_exhaustive()
    }
}

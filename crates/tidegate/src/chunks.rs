//! Chunks that several subscribers get.
//!
//! Subscribers of one filter that are equally far get the same events with the same index: the same bytes.
//! Each thread keeps the last few chunks that it made, and gives them out again instead of making them anew.
//! Whether a chunk is the same is not guessed: all the sequences in it are compared.
//!
//! What is kept here is at most [`CACHED_CHUNKS`] chunks for each thread, and no event: chunks are copies.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use tidegate_core::{Event, Payload};

/// How many chunks a thread keeps: what a connection takes in its turn, so that the next one finds it, and not more than
/// stays in the processor's cache.
const CACHED_CHUNKS: usize = 16;

/// From how many events on it is cheaper to look for a chunk than to make one.
const MIN_SHARED_EVENTS: usize = 8;

thread_local! {
    static CACHE: RefCell<ChunkCache> = const { RefCell::new(ChunkCache::EMPTY) };
}

/// How often subscriptions of a service shared a chunk, of those that could have: chunks of eight events or
/// more, without a gap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChunkStats {
    /// Chunks that had been made for another subscription.
    pub shared: u64,
    /// Chunks that had to be made.
    pub made: u64,
}

/// What the subscriptions of one service, or of one typed hub, have in common: the same sequences with the same
/// index are the same bytes.
#[derive(Debug)]
pub(crate) struct Sharing {
    /// Which it is, among all of the process.
    source: u64,
    shared: AtomicU64,
    made: AtomicU64,
}

struct ChunkCache {
    chunks: Vec<Chunk>,
    /// Which is the oldest, once there are as many as are kept.
    oldest: usize,
}

struct Chunk {
    source: u64,
    first_index: u64,
    sequences: Vec<u64>,
    bytes: Bytes,
}

impl Sharing {
    pub(crate) fn new() -> Self {
        static SOURCES: AtomicU64 = AtomicU64::new(0);
        Self {
            source: SOURCES.fetch_add(1, Relaxed),
            shared: AtomicU64::new(0),
            made: AtomicU64::new(0),
        }
    }

    pub(crate) fn stats(&self) -> ChunkStats {
        ChunkStats {
            shared: self.shared.load(Relaxed),
            made: self.made.load(Relaxed),
        }
    }

    /// The chunk of `events` that begin with an index: one that is kept, or what `make` makes. Chunks that do not
    /// tell an index are made with 0.
    pub(crate) fn chunk<P: Payload>(
        &self,
        first_index: u64,
        events: &[Arc<Event<P>>],
        make: impl FnOnce() -> Bytes,
    ) -> Bytes {
        if events.len() < MIN_SHARED_EVENTS {
            return make();
        }
        CACHE.with_borrow_mut(|cache| {
            if let Some(bytes) = cache.find(self.source, first_index, events) {
                self.shared.fetch_add(1, Relaxed);
                return bytes;
            }
            self.made.fetch_add(1, Relaxed);
            let bytes = make();
            cache.insert(self.source, first_index, events, bytes.clone());
            bytes
        })
    }
}

impl ChunkCache {
    const EMPTY: Self = Self {
        chunks: Vec::new(),
        oldest: 0,
    };

    fn find<P: Payload>(
        &self,
        source: u64,
        first_index: u64,
        events: &[Arc<Event<P>>],
    ) -> Option<Bytes> {
        let mut chunks = self.chunks.iter();
        chunks
            .find(|chunk| chunk.matches(source, first_index, events))
            .map(|chunk| chunk.bytes.clone())
    }

    fn insert<P: Payload>(
        &mut self,
        source: u64,
        first_index: u64,
        events: &[Arc<Event<P>>],
        bytes: Bytes,
    ) {
        if self.chunks.len() < CACHED_CHUNKS {
            self.chunks.push(Chunk {
                source,
                first_index,
                sequences: sequences(events).collect(),
                bytes,
            });
            return;
        }
        let chunk = &mut self.chunks[self.oldest];
        self.oldest = (self.oldest + 1) % CACHED_CHUNKS;
        chunk.source = source;
        chunk.first_index = first_index;
        chunk.sequences.clear();
        chunk.sequences.extend(sequences(events));
        chunk.bytes = bytes;
    }
}

impl Chunk {
    fn matches<P: Payload>(&self, source: u64, first_index: u64, events: &[Arc<Event<P>>]) -> bool {
        self.first_index == first_index
            && self.sequences.len() == events.len()
            && self.source == source
            && sequences(events).eq(self.sequences.iter().copied())
    }
}

fn sequences<P: Payload>(events: &[Arc<Event<P>>]) -> impl Iterator<Item = u64> {
    events.iter().map(|event| event.sequence())
}

#[cfg(test)]
mod tests {
    use std::{
        task::{Context, Waker},
        time::Instant,
    };

    use tidegate_core::{
        Batch, ClientId, Filter, Hub, HubConfig, NewEvent, Room, SubscribeOptions, Subscription,
        Topic,
    };

    use super::*;

    fn hub() -> Hub<Bytes> {
        Hub::new(HubConfig::new(1))
    }

    fn subscribe(hub: &Hub<Bytes>, client: &str, filter: &str) -> Subscription<Bytes> {
        let filters = vec![Filter::new(filter).unwrap()];
        let options = SubscribeOptions::new(ClientId::new(client).unwrap(), filters);
        hub.subscribe(options, Instant::now()).unwrap()
    }

    fn publish(hub: &Hub<Bytes>, topics: &[&str]) {
        let events: Vec<_> = topics
            .iter()
            .map(|topic| NewEvent {
                topic: Topic::new(topic).unwrap(),
                key: None,
                payload: Bytes::new(),
            })
            .collect();
        hub.publish(events, Instant::now()).unwrap();
    }

    fn drain(subscription: &mut Subscription<Bytes>) -> Batch<Bytes> {
        let mut batch = Batch::default();
        let mut cx = Context::from_waker(Waker::noop());
        let polled = subscription.poll_next(&mut cx, Room::events(100), &mut batch);
        assert!(polled.is_ready());
        batch
    }

    /// Whether the chunk had to be made.
    fn is_made(sharing: &Sharing, batch: &Batch<Bytes>) -> bool {
        let mut is_made = false;
        sharing.chunk(batch.first_index, &batch.events, || {
            is_made = true;
            Bytes::from_static(b"chunk")
        });
        is_made
    }

    #[test]
    fn same_events_and_index_share_a_chunk() {
        let hub = hub();
        let (mut one, mut other) = (subscribe(&hub, "1", "a"), subscribe(&hub, "2", "a"));
        publish(&hub, &["a"; 20]);
        let sharing = Sharing::new();
        assert!(is_made(&sharing, &drain(&mut one)));
        assert!(!is_made(&sharing, &drain(&mut other)));
        let expected = ChunkStats { shared: 1, made: 1 };
        assert_eq!(sharing.stats(), expected);
    }

    #[test]
    fn small_chunks_are_neither_shared_nor_counted() {
        let hub = hub();
        let (mut one, mut other) = (subscribe(&hub, "1", "a"), subscribe(&hub, "2", "a"));
        publish(&hub, &["a"; MIN_SHARED_EVENTS - 1]);
        let sharing = Sharing::new();
        assert!(is_made(&sharing, &drain(&mut one)));
        assert!(is_made(&sharing, &drain(&mut other)));
        assert_eq!(sharing.stats(), ChunkStats::default());
    }

    #[test]
    fn one_different_event_makes_another_chunk() {
        let hub = hub();
        let (mut one, mut other) = (subscribe(&hub, "1", "*.x"), subscribe(&hub, "2", "a.*"));
        let mut topics = ["a.x"; 22];
        (topics[10], topics[11]) = ("b.x", "a.y");
        publish(&hub, &topics);
        let (one, other) = (drain(&mut one), drain(&mut other));
        assert_eq!(one.events.len(), other.events.len());
        let sharing = Sharing::new();
        assert!(is_made(&sharing, &one));
        assert!(is_made(&sharing, &other));
    }

    #[test]
    fn another_index_or_source_makes_another_chunk() {
        let hub = hub();
        let mut one = subscribe(&hub, "1", "a");
        publish(&hub, &["a"; 20]);
        let mut batch = drain(&mut one);
        let sharing = Sharing::new();
        assert!(is_made(&sharing, &batch));
        assert!(is_made(&Sharing::new(), &batch));
        batch.first_index += 1;
        assert!(is_made(&sharing, &batch));
        batch.first_index -= 1;
        assert!(!is_made(&sharing, &batch));
    }

    #[test]
    fn cache_keeps_only_the_newest_chunks() {
        let hub = hub();
        let mut subscription = subscribe(&hub, "1", "a");
        let sharing = Sharing::new();
        let batches: Vec<_> = (0..=CACHED_CHUNKS)
            .map(|_| {
                publish(&hub, &["a"; 20]);
                let batch = drain(&mut subscription);
                assert!(is_made(&sharing, &batch));
                batch
            })
            .collect();
        assert!(!is_made(&sharing, &batches[CACHED_CHUNKS]));
        assert!(!is_made(&sharing, &batches[1]));
        assert!(is_made(&sharing, &batches[0]));
    }
}

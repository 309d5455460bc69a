//! The index: the feeds of a hub, by their keys and by the topics that they want.
//!
//! # Publishers and subscribers
//! Publishers search the index outside of the publish lock, because how long that takes is up to the filters of others.
//! So a feed can be added between the search of a publisher and its commit. Whoever adds feeds leaves them with the
//! publish lock too, as *late*, while somebody is between the two. A publisher finds there what came after its search,
//! and matches it alone; see [`publish`](crate::publish).
//!
//! # Locks
//! `members` is taken first, by those who add or remove feeds: it is the only lock that is held while the publish lock
//! is taken. `topics` is held for one search at a time, or for a few changes, so that neither waits long for the
//! other.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    mem,
    sync::{
        Arc,
        atomic::{
            AtomicU64 as AtomicCounter,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
};

use crate::{
    cost::FilterCost,
    event::Payload,
    feed::{Feed, FeedKind},
    filter::Filter,
    retained::Retained,
    shards::Shards,
    sync::{AtomicU64, Mutex, MutexGuard, RwLock},
    trie::Trie,
};

/// How many filters are added or removed under one lock of the topics, about 10 us in which publishers wait. An
/// estimate, not a measurement.
const CHANGES: usize = 32;

/// The feeds of a hub.
#[derive(Debug)]
pub(crate) struct Index<P> {
    /// Every feed that a subscription uses or is about to.
    members: Mutex<Members<P>>,
    /// The same feeds, by each of their filters.
    topics: RwLock<Topics<P>>,
    /// How many publishers are between their first search and their last commit.
    searching: AtomicU64,
    /// How many feeds there are, for statistics.
    feeds: AtomicCounter,
    /// The bytes that filters hold, for statistics and for the bound.
    filter_bytes: AtomicCounter,
}

/// The feeds, to be found by their kinds.
pub(crate) type Members<P> = Shards<Member<P>, ()>;

/// A feed as its kind.
#[derive(Debug)]
pub(crate) struct Member<P>(Arc<Feed<P>>);

/// The feeds by their filters.
#[derive(Debug)]
struct Topics<P> {
    /// Rises with each change that adds feeds.
    version: u64,
    /// Each feed under each of its filters.
    trie: Trie<Arc<Feed<P>>>,
}

/// The result of a search.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Search {
    /// The version of the index that it saw. Feeds with a higher one were not there.
    pub(crate) version: u64,
    /// The work, in places visited and feeds found.
    pub(crate) work: u64,
}

/// The feeds of one subscription, which [`Index::join`] found or made.
#[derive(Debug)]
pub(crate) struct Joined<P> {
    /// In the order of their kinds.
    pub(crate) feeds: Vec<Arc<Feed<P>>>,
    /// The ones that were made, for publishers who searched before.
    pub(crate) added: Vec<Late<P>>,
}

/// A feed that was added after the search of a publisher who has not committed.
#[derive(Debug)]
pub(crate) struct Late<P> {
    /// The first version of the index with the feed.
    pub(crate) version: u64,
    /// The feed.
    pub(crate) feed: Arc<Feed<P>>,
}

impl<P> Late<P> {
    /// The feeds of `late`, which are in the order of their versions, that a search in `version` has not found.
    pub(crate) fn after(late: &[Self], version: u64) -> &[Self] {
        &late[late.partition_point(|late| late.version <= version)..]
    }
}

impl<P: Payload> Index<P> {
    /// An index without feeds.
    pub(crate) fn new() -> Self {
        Self {
            members: Mutex::new(Shards::new()),
            topics: RwLock::new(Topics {
                version: 0,
                trie: Trie::new(),
            }),
            searching: AtomicU64::new(0),
            feeds: AtomicCounter::new(0),
            filter_bytes: AtomicCounter::new(0),
        }
    }

    /// How many feeds there are.
    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.feeds.load(Relaxed)).unwrap_or(usize::MAX)
    }

    /// The bytes that filters hold, as [`FilterCost::bytes`] estimates them; filters that share a feed count once.
    pub(crate) fn filter_bytes(&self) -> u64 {
        self.filter_bytes.load(Relaxed)
    }

    /// Takes the lock that nobody adds or removes feeds without.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Members<P>> {
        self.members.lock()
    }

    // ===== publishers =====

    /// Counts a publisher in, before its first search.
    pub(crate) fn begin_searching(&self) {
        // Acquire: it sees in the index whatever the publisher saw that let the late feeds go; see `end_searching`.
        self.searching.fetch_add(1, AcqRel);
    }

    /// Counts a publisher out, after its last commit. Returns whether it was the last: under the publish lock it may let the
    /// late feeds go, because whoever begins after it finds them in the index.
    pub(crate) fn end_searching(&self) -> bool {
        // Release, for the Acquire above.
        self.searching.fetch_sub(1, AcqRel) == 1
    }

    /// Whether a publisher is between its first search and its last commit.
    ///
    /// Asked after feeds were added: a publisher that is not counted here has yet to search, and will find them. One that searched
    /// before they were added had the lock of the topics before, and so was counted in before.
    pub(crate) fn is_searched(&self) -> bool {
        self.searching.load(Acquire) > 0
    }

    /// Adds the feeds that an event with this topic goes to, predicates left aside, to `found`, each once.
    pub(crate) fn search(&self, topic: &str, found: &mut Vec<Arc<Feed<P>>>) -> Search {
        let before = found.len();
        let mut has_groups = false;
        let (version, visited) = {
            let topics = self.topics.read();
            let visited = topics.trie.matching(topic, &mut |feed| {
                has_groups |= feed.filters().len() > 1;
                found.push(Arc::clone(feed));
            });
            (topics.version, visited)
        };
        let work = visited + (found.len() - before) as u64;
        // Only a feed of several filters can be found more than once.
        if has_groups && found.len() - before > 1 {
            let mut feeds = found.split_off(before);
            feeds.sort_unstable_by_key(|feed| Arc::as_ptr(feed).addr());
            feeds.dedup_by(|feed, other| Arc::ptr_eq(feed, other));
            found.append(&mut feeds);
        }
        Search { version, work }
    }

    // ===== subscribers =====

    /// Counts a subscription into the feeds of `kinds`, which are made if they are not there. Fails, with nothing
    /// changed, if that made filters hold more than `max_filter_bytes`.
    pub(crate) fn join(
        &self,
        members: &mut Members<P>,
        kinds: impl IntoIterator<Item = FeedKind<P>>,
        max_filter_bytes: u64,
        retained: &Retained,
    ) -> Result<Joined<P>, FilterBytesExceeded> {
        let kinds: Vec<_> = kinds.into_iter().collect();
        let missing = kinds.iter().filter(|kind| members.get(*kind).is_none());
        let bytes: u64 = missing
            .map(|kind| FilterCost::bytes_of(&*kind.filters))
            .sum();
        let held = self.filter_bytes();
        if bytes > 0 && held.saturating_add(bytes) > max_filter_bytes {
            return Err(FilterBytesExceeded);
        }
        self.filter_bytes.fetch_add(bytes, Relaxed);
        let mut new = Vec::new();
        let feeds = kinds.into_iter().map(|kind| {
            let feed = if let Some(Member(feed)) = members.get_key(&kind) {
                Arc::clone(feed)
            } else {
                let feed = Arc::new(Feed::new(kind, retained.clone()));
                members.insert(Member(Arc::clone(&feed)), ());
                new.push(Arc::clone(&feed));
                feed
            };
            // Before the lock of the members goes: a feed that nobody uses may be forgotten.
            feed.lock().add_user();
            feed
        });
        let feeds = feeds.collect();
        self.feeds.fetch_add(new.len() as u64, Relaxed);
        Ok(Joined {
            feeds,
            added: self.add(new),
        })
    }

    /// Adds feeds to the topics.
    fn add(&self, feeds: Vec<Arc<Feed<P>>>) -> Vec<Late<P>> {
        if feeds.is_empty() {
            return Vec::new();
        }
        // The version with all filters of all of them. A publisher that has found some takes those for late too, and a
        // feed takes an event once.
        let version = self.change(&feeds, |topics, feed, filter| {
            topics.insert(filter, Arc::clone(feed));
        });
        let late = |feed| Late { version, feed };
        feeds.into_iter().map(late).collect()
    }

    /// Makes a change for each filter of `feeds`, few under one lock. Returns the version after the last.
    fn change(
        &self,
        feeds: &[Arc<Feed<P>>],
        mut change: impl FnMut(&mut Trie<Arc<Feed<P>>>, &Arc<Feed<P>>, &Filter),
    ) -> u64 {
        let mut filters = feeds
            .iter()
            .flat_map(|feed| feed.filters().iter().map(move |filter| (feed, filter)))
            .peekable();
        loop {
            let mut topics = self.topics.write();
            topics.version += 1;
            for (feed, filter) in filters.by_ref().take(CHANGES) {
                change(&mut topics.trie, feed, filter);
            }
            if filters.peek().is_none() {
                return topics.version;
            }
        }
    }

    /// Forgets the feeds among `feeds` that no subscription uses. Returns those, which are still among the topics.
    pub(crate) fn forget_unused(
        &self,
        members: &mut Members<P>,
        feeds: &[Arc<Feed<P>>],
    ) -> Vec<Arc<Feed<P>>> {
        let mut forgotten = Vec::new();
        for feed in feeds {
            // Somebody may have joined it since its last subscription left, or another may have forgotten it, and a new
            // feed stands under its key: so by identity, and under the lock that feeds are joined under.
            let known = members.get_key(feed.kind());
            let is_known = known.is_some_and(|Member(known)| Arc::ptr_eq(known, feed));
            if is_known && feed.lock().is_unused() {
                members.remove(feed.kind());
                forgotten.push(Arc::clone(feed));
                let bytes = FilterCost::bytes_of(&**feed.filters());
                self.filter_bytes.fetch_sub(bytes, Relaxed);
            }
        }
        self.feeds.fetch_sub(forgotten.len() as u64, Relaxed);
        forgotten
    }

    /// Removes feeds from the topics, which were forgotten: a publisher that finds one before does no harm.
    pub(crate) fn remove(&self, forgotten: &[Arc<Feed<P>>]) {
        if !forgotten.is_empty() {
            self.change(forgotten, |topics, feed, filter| {
                topics.remove(filter, |other| Arc::ptr_eq(other, feed));
            });
        }
    }

    /// Forgets all feeds. Returns them, for the caller to let go of after its locks, and the version of the index, which none
    /// of them is in.
    pub(crate) fn clear(&self, members: &mut Members<P>) -> (impl Sized + use<P>, u64) {
        let feeds = mem::replace(members, Shards::new());
        self.feeds.store(0, Relaxed);
        self.filter_bytes.store(0, Relaxed);
        let mut topics = self.topics.write();
        topics.version += 1;
        let trie = mem::replace(&mut topics.trie, Trie::new());
        ((feeds, trie), topics.version)
    }
}

// ===== impl Member =====

impl<P: Payload> Borrow<FeedKind<P>> for Member<P> {
    fn borrow(&self) -> &FeedKind<P> {
        self.0.kind()
    }
}

impl<P: Payload> PartialEq for Member<P> {
    fn eq(&self, other: &Self) -> bool {
        self.0.kind() == other.0.kind()
    }
}

impl<P: Payload> Eq for Member<P> {}

impl<P: Payload> Hash for Member<P> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.kind().hash(state);
    }
}

/// The error of [`Index::join`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FilterBytesExceeded;

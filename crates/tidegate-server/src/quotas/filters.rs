//! The filters of a subscription, made ready to be counted. Everything that takes time in proportion to their text
//! happens here, outside of every lock.

use std::{
    cmp::Ordering,
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState},
    slice,
};

use tidegate::{Filter, FilterCost};

/// The bytes that one filter of one subscription takes besides its text, if others have the same filter: a cursor, its
/// registration in the feed, and the pointers to the filter in the records of subscriptions and of rights.
const REFERENCES: u64 = 192;

/// The filters of one subscription.
#[derive(Debug)]
pub(super) struct CountedFilters {
    /// Each filter once, in the order of their hashes.
    distinct: Box<[CountedFilter]>,
    set: FilterSet,
    /// The nodes that one topic visits for the set, at most. It counts once for all subscriptions with the same set.
    pub(super) work: u64,
    /// The bytes of the subscription alone, whoever else has the same filters.
    own_bytes: u64,
}

/// A filter with its hash, so that counting it under a lock reads its text only where a hash is the same.
#[derive(Debug, Clone)]
struct CountedFilter {
    hash: u64,
    filter: Filter,
    /// The bytes that a hub keeps for it, once for all subscriptions that have it.
    bytes: u64,
}

/// The identity of a set of filters: two hashes of it under keys of their own. The keys are secret, so nobody can make
/// two sets with one identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FilterSet([u64; 2]);

/// The keys of the hashes.
#[derive(Debug, Default)]
pub(super) struct Keys([RandomState; 3]);

/// The filters of all subscriptions of one user.
#[derive(Debug, Default)]
pub(super) struct HeldFilters {
    /// The number of subscriptions that hold each filter. No entry is 0, so the length is the number of filters.
    filters: HashMap<CountedFilter, u32, BuildHasherDefault<AsItIs>>,
    /// The number of subscriptions that hold each set of filters.
    sets: HashMap<FilterSet, u32>,
    /// The use of them all.
    total: FilterUse,
}

/// The use of filters by one user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FilterUse {
    /// Distinct filters.
    pub(super) filters: usize,
    /// The nodes that one topic visits for them, at most.
    pub(super) work: u64,
    /// The bytes that are kept for them.
    pub(super) bytes: u64,
}

/// A hasher for keys that are hashes.
#[derive(Debug, Default)]
pub(super) struct AsItIs(u64);

// ===== impl CountedFilters =====

impl CountedFilters {
    /// The filters of a subscription, which may be repeated.
    pub(super) fn new(filters: &[Filter], keys: &Keys) -> Self {
        let Keys([each, first, second]) = keys;
        let mut distinct: Vec<_> = filters
            .iter()
            .map(|filter| CountedFilter {
                hash: each.hash_one(filter),
                filter: filter.clone(),
                bytes: FilterCost::of(slice::from_ref(filter)).bytes,
            })
            .collect();
        distinct.sort_unstable();
        distinct.dedup();
        let identity = |key: &RandomState| {
            let mut hasher = key.build_hasher();
            for counted in &distinct {
                counted.filter.hash(&mut hasher);
            }
            hasher.finish()
        };
        Self {
            set: FilterSet([identity(first), identity(second)]),
            work: work(&distinct),
            own_bytes: filters
                .iter()
                .map(|filter| filter.as_str().len() as u64 + REFERENCES)
                .sum(),
            distinct: distinct.into(),
        }
    }

    /// The bytes of the subscription if nobody else had its filters.
    pub(super) fn bytes(&self) -> u64 {
        self.own_bytes + self.distinct.iter().map(|filter| filter.bytes).sum::<u64>()
    }

    fn has(&self, filter: &CountedFilter) -> bool {
        self.distinct.binary_search(filter).is_ok()
    }
}

/// The work of a set of filters, beside that of other sets.
///
/// Filters without `*` lie on the path of the topic's own tokens. All of them together, whoever holds them, make one
/// topic visit no more nodes than it has tokens. So they do not count: the sum over the clients of one address would
/// count the same few nodes once for each client.
fn work(distinct: &[CountedFilter]) -> u64 {
    let has_star = |filter: &&Filter| filter.as_str().split('.').any(|token| token == "*");
    let filters = distinct.iter().map(|counted| &counted.filter);
    let branching: Vec<_> = filters.filter(has_star).cloned().collect();
    match branching.is_empty() {
        true => 0,
        false => FilterCost::of(&branching).work,
    }
}

// ===== impl HeldFilters =====

impl HeldFilters {
    /// The use with `filters` more, once `gone` is gone.
    pub(super) fn use_with(
        &self,
        filters: &CountedFilters,
        gone: Option<&CountedFilters>,
    ) -> FilterUse {
        let mut total = self.total;
        // Of those that nobody else holds, what goes and what comes.
        let is_held = |filter: &CountedFilter| {
            let goes = gone.is_some_and(|gone| gone.has(filter));
            self.filters.get(filter).copied().unwrap_or(0) > u32::from(goes)
        };
        let set_is_held = |set: FilterSet| {
            let goes = gone.is_some_and(|gone| gone.set == set);
            self.sets.get(&set).copied().unwrap_or(0) > u32::from(goes)
        };
        if let Some(gone) = gone {
            total.bytes -= gone.own_bytes;
            for filter in gone.distinct.iter().filter(|filter| !is_held(filter)) {
                total.filters -= 1;
                total.bytes -= filter.bytes;
            }
            if !set_is_held(gone.set) {
                total.work -= gone.work;
            }
        }
        total.bytes += filters.own_bytes;
        for filter in filters.distinct.iter().filter(|filter| !is_held(filter)) {
            total.filters += 1;
            total.bytes += filter.bytes;
        }
        if !set_is_held(filters.set) {
            total.work += filters.work;
        }
        total
    }

    /// The use of all.
    #[cfg(test)]
    pub(super) const fn total(&self) -> FilterUse {
        self.total
    }

    /// Counts the filters of a subscription.
    pub(super) fn add(&mut self, filters: &CountedFilters) {
        let total = &mut self.total;
        total.bytes += filters.own_bytes;
        for filter in &filters.distinct {
            let holders = self.filters.entry(filter.clone()).or_default();
            *holders += 1;
            if *holders == 1 {
                total.filters += 1;
                total.bytes += filter.bytes;
            }
        }
        let holders = self.sets.entry(filters.set).or_default();
        *holders += 1;
        if *holders == 1 {
            total.work += filters.work;
        }
    }

    /// Ends the count of a subscription.
    pub(super) fn subtract(&mut self, filters: &CountedFilters) {
        let total = &mut self.total;
        total.bytes -= filters.own_bytes;
        for filter in &filters.distinct {
            let Some(holders) = self.filters.get_mut(filter) else {
                continue;
            };
            *holders -= 1;
            if *holders == 0 {
                self.filters.remove(filter);
                total.filters -= 1;
                total.bytes -= filter.bytes;
            }
        }
        if let Some(holders) = self.sets.get_mut(&filters.set) {
            *holders -= 1;
            if *holders == 0 {
                self.sets.remove(&filters.set);
                total.work -= filters.work;
            }
        }
    }
}

// ===== impl CountedFilter =====

impl PartialEq for CountedFilter {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for CountedFilter {}

impl PartialOrd for CountedFilter {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for CountedFilter {
    fn cmp(&self, other: &Self) -> Ordering {
        // The hashes decide nearly always, and texts may be long.
        let texts = || self.filter.cmp(&other.filter);
        self.hash.cmp(&other.hash).then_with(texts)
    }
}

impl Hash for CountedFilter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys write their hash alone");
    }
}

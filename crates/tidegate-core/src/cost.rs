//! The cost of filters: what a subscription with them adds to the work of others, and to memory.

use crate::{filter::Filter, trie::Trie};

/// The bytes that a hub keeps for a filter besides its text: the feed, its places in the index, the cursor and its
/// registration. An upper bound of what `tests/filter_memory.rs` measures.
const FILTER_BYTES: u64 = 1_280;

/// How often a hub keeps the text of a filter: for the subscription, in its feed and in the index.
const COPIES: u64 = 3;

/// The cost of a set of filters, in units that the number of filters does not bound.
///
/// # Examples
/// ```
/// use tidegate_core::{Filter, FilterCost};
///
/// # fn main() -> Result<(), tidegate_core::NameError> {
/// // However many literals: a topic goes one way.
/// let ids: Result<Vec<_>, _> = (0..256).map(|i| Filter::new(&format!("orders.{i}"))).collect();
/// assert_eq!(FilterCost::of(&ids?).work, 4);
/// // Each of 8 tokens may be the topic's or `*`: the topic `a.a.a.a.a.a.a.a` goes all ways.
/// let ways: Result<Vec<_>, _> = (0..256u32)
///     .map(|i| (0..8).map(|bit| if i >> bit & 1 == 1 { "a" } else { "*" }).collect::<Vec<_>>().join("."))
///     .map(|filter| Filter::new(&filter))
///     .collect();
/// assert_eq!(FilterCost::of(&ways?).work, 511 + 256);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FilterCost {
    /// The most that these filters add to the search for the subscriptions of one topic: one for each place of the search,
    /// which is a token of a filter that begins like the topic, and one for each filter found. 20 to 50 ns each.
    pub work: u64,
    /// About how many bytes a hub keeps for a subscription with these filters that nobody shares.
    pub bytes: u64,
}

impl FilterCost {
    /// The cost of `filters`. Takes time in proportion to their text.
    #[must_use]
    pub fn of(filters: &[Filter]) -> Self {
        let mut trie = Trie::new();
        for filter in filters {
            trie.insert(filter, ());
        }
        Self {
            work: trie.most_work(),
            bytes: Self::bytes_of(filters),
        }
    }

    /// The bytes alone.
    pub(crate) fn bytes_of(filters: &[Filter]) -> u64 {
        let bytes = |filter: &Filter| FILTER_BYTES + COPIES * filter.as_str().len() as u64;
        filters.iter().map(bytes).sum()
    }
}

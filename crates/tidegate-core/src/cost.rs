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
    /// which is a token of a filter that begins like the topic, and one for each filter found.
    pub work: u64,
    /// About how many bytes a hub keeps for a subscription with these filters that nobody shares.
    pub bytes: u64,
}

impl FilterCost {
    /// The cost of `filters`. Takes about as long as to sort them.
    #[must_use]
    pub fn of(filters: &[Filter]) -> Self {
        // A filter that is there twice is kept and found once.
        let mut distinct: Vec<_> = filters.iter().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let mut trie = Trie::new();
        for filter in &distinct {
            trie.insert(filter, ());
        }
        Self {
            work: trie.most_work(),
            bytes: Self::bytes_of(distinct),
        }
    }

    /// The bytes alone.
    pub(crate) fn bytes_of<'a>(filters: impl IntoIterator<Item = &'a Filter>) -> u64 {
        let bytes = |filter: &Filter| FILTER_BYTES + COPIES * filter.as_str().len() as u64;
        filters.into_iter().map(bytes).sum()
    }
}

#[cfg(all(test, not(tidegate_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::FilterCost;
    use crate::{filter::Filter, trie::Trie};

    fn name(tokens: &'static str, most: usize) -> impl Strategy<Value = String> {
        let token = proptest::sample::select(tokens.split(' ').collect::<Vec<_>>());
        prop::collection::vec(token, 1..most).prop_map(|tokens| tokens.join("."))
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let tail = prop_oneof![3 => Just(""), 1 => Just(".>")];
        (name("a a b *", 7), tail).prop_map(|(tokens, tail)| Filter::new(&(tokens + tail)).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// The cost of the filters of all subscriptions is at most the sum of what each costs.
        #[test]
        fn no_search_works_more_than_the_cost_of_all_filters(
            subscriptions in prop::collection::vec(prop::collection::vec(filter(), 1..12), 1..4),
            topics in prop::collection::vec(name("a b c", 8), 20),
        ) {
            let mut trie = Trie::new();
            let mut most = 0;
            for (i, filters) in subscriptions.iter().enumerate() {
                most += FilterCost::of(filters).work;
                let mut filters = filters.clone();
                filters.sort_unstable();
                filters.dedup();
                for filter in &filters {
                    trie.insert(filter, i);
                }
            }
            for topic in topics {
                let mut found = 0;
                let visited = trie.matching(&topic, &mut |_| found += 1);
                prop_assert!(visited + found <= most, "{visited} and {found} of {most}: {topic}");
            }
        }
    }

    #[test]
    fn filter_that_is_there_often_costs_as_much_as_once() {
        let filter = Filter::new("a.*").unwrap();
        let once = FilterCost::of(std::slice::from_ref(&filter));
        assert_eq!(FilterCost::of(&vec![filter; 1_000]), once);
    }
}

//! Groups of filters: the filters of one subscription that cannot be counted apart.
//!
//! A subscription's events are the union of its filters. To count that union exactly by adding up what
//! its feeds number, no event may be in two of them. So a filter that another one covers is dropped,
//! and filters that overlap go together into one group, which is one feed.

use std::{collections::HashMap, sync::Arc};

use crate::{filter::Filter, trie::Trie};

/// The filters of one feed, sorted, none covering another. Subscriptions with equal groups share a feed.
pub(crate) type FilterGroup = Arc<[Filter]>;

/// How many trie nodes the search for overlaps may visit. A thousand filters that people write take a
/// few thousand; patterns made for it could take millions. Beyond this all filters become one group,
/// which is always right and only shared less. As many take about a millisecond, in which the threads that serve
/// streams serve no other.
const MAX_STEPS: usize = 20_000;

/// Splits `filters` into groups that have no topic in common.
pub(crate) fn disjoint_groups(mut filters: Vec<Filter>) -> Vec<FilterGroup> {
    filters.sort_unstable();
    filters.dedup();
    let mut steps = MAX_STEPS;
    if filters.len() > 1 {
        filters = without_covered(filters, &mut steps);
    }
    match filters.len() {
        0 => Vec::new(),
        1 => vec![filters.into()],
        _ => match overlap_leaders(&filters, &mut steps) {
            Some(leaders) => gather(filters, &leaders),
            None => vec![filters.into()],
        },
    }
}

/// The filters that no other one covers, as far as the steps go.
fn without_covered(filters: Vec<Filter>, steps: &mut usize) -> Vec<Filter> {
    let trie = trie_of(&filters);
    let mut kept = Vec::with_capacity(filters.len());
    for (i, filter) in filters.into_iter().enumerate() {
        if !trie.covers(&filter, steps, &|&other| other != i) {
            kept.push(filter);
        }
    }
    kept
}

/// For each filter the number of the filter that stands for its group (union-find), or `None` when the
/// search took too many steps.
fn overlap_leaders(filters: &[Filter], steps: &mut usize) -> Option<Vec<usize>> {
    let trie = trie_of(filters);
    let mut leaders: Vec<usize> = (0..filters.len()).collect();
    for (i, filter) in filters.iter().enumerate() {
        let complete = trie.overlapping(filter, steps, &mut |&other| {
            let (a, b) = (leader(&mut leaders, i), leader(&mut leaders, other));
            leaders[a.max(b)] = a.min(b);
        });
        if !complete {
            return None;
        }
    }
    Some(
        (0..filters.len())
            .map(|i| leader(&mut leaders, i))
            .collect(),
    )
}

/// The filter that stands for the group of `i`. Halves the path on the way.
fn leader(leaders: &mut [usize], mut i: usize) -> usize {
    while leaders[i] != i {
        leaders[i] = leaders[leaders[i]];
        i = leaders[i];
    }
    i
}

/// Puts filters with one leader into one group, in the order of their first filters.
fn gather(filters: Vec<Filter>, leaders: &[usize]) -> Vec<FilterGroup> {
    let mut place = HashMap::new();
    let mut groups: Vec<Vec<Filter>> = Vec::new();
    for (filter, leader) in filters.into_iter().zip(leaders) {
        let at = *place.entry(*leader).or_insert(groups.len());
        if at == groups.len() {
            groups.push(Vec::with_capacity(1));
        }
        groups[at].push(filter);
    }
    groups.into_iter().map(FilterGroup::from).collect()
}

/// A trie that finds each filter's number.
fn trie_of(filters: &[Filter]) -> Trie<usize> {
    let mut trie = Trie::new();
    for (i, filter) in filters.iter().enumerate() {
        trie.insert(filter, i);
    }
    trie
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topic::Topic;

    fn groups(filters: &[&str]) -> Vec<Vec<String>> {
        let filters = filters.iter().map(|f| Filter::new(f).unwrap()).collect();
        let mut groups: Vec<Vec<String>> = disjoint_groups(filters)
            .iter()
            .map(|g| g.iter().map(ToString::to_string).collect())
            .collect();
        groups.sort();
        groups
    }

    #[test]
    fn covered_filters_drop_out_and_overlapping_ones_share_a_group() {
        assert_eq!(groups(&["a", "a"]), [["a"]]);
        assert_eq!(groups(&["a.>", "a.b", "a.*"]), [["a.>"]]);
        assert_eq!(groups(&["a", "a.>"]), [["a"], ["a.>"]]);
        assert_eq!(groups(&["a.*", "*.b"]), [["*.b", "a.*"]]);
        assert_eq!(
            groups(&["a.*", "*.b", "c.b.>"]),
            vec![vec!["*.b", "a.*"], vec!["c.b.>"]]
        );
        assert_eq!(
            groups(&["user.me", "room.mine", "news.>"]),
            [["news.>"], ["room.mine"], ["user.me"]]
        );
    }

    #[test]
    fn too_many_steps_give_one_group() {
        let chain = ["*"; 30].join(".");
        let mut filters: Vec<Filter> = Vec::new();
        for i in 0..512 {
            filters.push(Filter::new(&format!("a{i}.{chain}.z")).unwrap());
            filters.push(Filter::new(&format!("*.{chain}.y{i}")).unwrap());
        }
        assert_eq!(disjoint_groups(filters).len(), 1);
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let token = prop_oneof![3 => "[ab]", 1 => Just("*".to_owned())];
        (
            prop::collection::vec(token, 0..3),
            prop_oneof![Just(""), Just(">"), Just("a"), Just("*")],
        )
            .prop_map(|(mut tokens, last)| {
                if !last.is_empty() || tokens.is_empty() {
                    tokens.push(if last.is_empty() {
                        "b".to_owned()
                    } else {
                        last.to_owned()
                    });
                }
                Filter::new(&tokens.join(".")).unwrap()
            })
    }

    fn every_topic() -> impl Iterator<Item = Topic> {
        let tokens = ["a", "b", "c"];
        (1..=4u32).flat_map(move |len| {
            (0..3usize.pow(len)).map(move |n| {
                let name: Vec<_> = (0..len).map(|i| tokens[n / 3usize.pow(i) % 3]).collect();
                Topic::new(&name.join(".")).unwrap()
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// Enumerated over all topics of up to four tokens: the groups match the union of the filters,
        /// and no topic is in two groups.
        #[test]
        fn groups_are_disjoint_and_lose_nothing(filters in prop::collection::vec(filter(), 0..8)) {
            let groups = disjoint_groups(filters.clone());
            for topic in every_topic() {
                let wanted = filters.iter().any(|f| f.matches(&topic));
                let hits = groups.iter().filter(|g| g.iter().any(|f| f.matches(&topic))).count();
                prop_assert_eq!(hits, usize::from(wanted), "{} in {:?}", topic, groups);
            }
        }

        /// The trie finds what matching one by one finds, and is empty when all is removed.
        #[test]
        fn the_trie_agrees_with_the_filters(filters in prop::collection::vec(filter(), 0..8)) {
            let mut trie = trie_of(&filters);
            for topic in every_topic() {
                let mut found = Vec::new();
                trie.matching(topic.as_str(), &mut |&i| found.push(i));
                found.sort_unstable();
                let expected: Vec<_> = (0..filters.len()).filter(|&i| filters[i].matches(&topic)).collect();
                prop_assert_eq!(found, expected, "{}", topic);
            }
            for (i, filter) in filters.iter().enumerate() {
                trie.remove(filter, |&value| value == i);
            }
            prop_assert!(trie.is_empty());
        }
    }
}

//! Overlap and cover of filters: both are decided as a look at every topic would.
//!
//! Filters are made of two names and the wildcards. Topics are made of the two names and a third that no filter
//! has, and are up to one token longer than the longest filter: what holds for these holds for all.

use proptest::prelude::*;
use tidegate_core::{Filter, Topic};

/// The most tokens of a filter.
const LONGEST: usize = 3;

fn filter() -> impl Strategy<Value = Filter> {
    let token = prop_oneof![3 => Just("a"), 2 => Just("b"), 4 => Just("*")];
    let tail = prop::bool::weighted(0.4);
    (prop::collection::vec(token, 1..=LONGEST), tail).prop_map(|(mut tokens, tail)| {
        if tail {
            tokens.pop();
            tokens.push(">");
        }
        Filter::new(&tokens.join(".")).unwrap()
    })
}

/// All topics over the names `a`, `b` and `z`.
fn topics() -> Vec<Topic> {
    let mut all: Vec<String> = Vec::new();
    let mut longest = vec![String::new()];
    for _ in 0..=LONGEST {
        longest = longest
            .iter()
            .flat_map(|begin| ["a", "b", "z"].map(|token| format!("{begin}.{token}")))
            .collect();
        all.extend(longest.iter().cloned());
    }
    let topics = all.iter().map(|topic| Topic::new(&topic[1..]).unwrap());
    topics
        .chain([
            Topic::new("$client.a").unwrap(),
            Topic::new("$client.z").unwrap(),
        ])
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn overlaps_agrees_with_a_look_at_every_topic(one in filter(), other in filter()) {
        let expected = topics().iter().any(|topic| one.matches(topic) && other.matches(topic));
        prop_assert_eq!(one.overlaps(&other), expected);
        prop_assert_eq!(other.overlaps(&one), expected);
    }

    #[test]
    fn is_covered_by_agrees_with_a_look_at_every_topic(
        one in filter(),
        others in prop::collection::vec(filter(), 0..6),
    ) {
        let is_matched = |topic: &Topic| others.iter().any(|other| other.matches(topic));
        let expected = topics().iter().filter(|topic| one.matches(topic)).all(is_matched);
        prop_assert_eq!(one.is_covered_by(&others), expected, "{} by {:?}", one, others);
    }
}

fn covered(filter: &str, others: &[&str]) -> bool {
    let others: Vec<_> = others
        .iter()
        .map(|other| Filter::new(other).unwrap())
        .collect();
    Filter::new(filter).unwrap().is_covered_by(&others)
}

#[test]
fn several_filters_can_cover_one_together() {
    assert!(covered("a.>", &["a.*", "a.*.>"]));
    assert!(covered("a.>", &["a.*", "a.*.*", "a.*.*.>"]));
    assert!(covered(">", &["*", "*.>"]));
    assert!(!covered("a.>", &["a.*", "a.*.*.>"]));
    assert!(!covered("a.*", &["a.b", "a.c"]));
    assert!(!covered("a.bc", &["a.b"]));
    assert!(!covered("a", &[]));
}

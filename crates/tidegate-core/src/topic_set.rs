//! Sets of topics, for rules on rights.

use crate::{
    filter::Filter,
    topic::{ClientId, NameError, Topic},
};

/// A set of topics, written as patterns: a topic that one of them matches is in it.
///
/// A pattern is a [filter](crate::filter), or one of two that no subscription may have: `$client.<client id>`,
/// the topic of one client, and `$client.*`, those of all clients. No other pattern has a topic in it that
/// begins with `$`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicSet {
    /// In the order in which they were given; one may cover another.
    patterns: Vec<Filter>,
}

impl TopicSet {
    /// Checks the patterns and makes a set of them. Without a pattern it is empty.
    ///
    /// # Errors
    /// The error of the first bad pattern.
    pub fn new<T: AsRef<str>>(patterns: impl IntoIterator<Item = T>) -> Result<Self, NameError> {
        let patterns = patterns.into_iter();
        let patterns = patterns.map(|pattern| Filter::for_rule(pattern.as_ref()));
        Ok(Self {
            patterns: patterns.collect::<Result<_, _>>()?,
        })
    }

    /// Adds all topics of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.patterns.extend_from_slice(&other.patterns);
    }

    /// Whether no topic is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether `topic` is in the set.
    #[must_use]
    pub fn contains(&self, topic: &Topic) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(topic))
    }

    /// Whether the topic of the client `id` is in the set.
    #[must_use]
    pub fn contains_client(&self, id: &ClientId) -> bool {
        self.contains(&Topic::for_client(id))
    }

    /// Whether every topic that `filter` matches is in the set, as [`Filter::is_covered_by`] decides.
    #[must_use]
    pub fn covers(&self, filter: &Filter) -> bool {
        filter.is_covered_by(&self.patterns)
    }

    /// Whether some topic that `filter` matches is in the set, as [`Filter::overlaps`] decides.
    #[must_use]
    pub fn overlaps(&self, filter: &Filter) -> bool {
        self.patterns.iter().any(|pattern| pattern.overlaps(filter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(patterns: &[&str]) -> TopicSet {
        TopicSet::new(patterns).unwrap()
    }

    #[test]
    fn client_topics_are_in_a_set_only_by_name() {
        let alice = ClientId::new("alice").unwrap();
        for (patterns, contains) in [
            (&[">"][..], false),
            (&["*.alice"], false),
            (&["$client.alice"], true),
            (&["$client.*"], true),
            (&["$client.bob"], false),
            (&[], false),
        ] {
            assert_eq!(
                set(patterns).contains_client(&alice),
                contains,
                "{patterns:?}"
            );
        }
        assert!(!set(&["$client.*"]).overlaps(&Filter::everything()));
        assert!(!set(&["$client.*"]).covers(&Filter::everything()));
    }

    #[test]
    fn no_other_pattern_may_begin_with_a_dollar() {
        for bad in [
            "$client.>",
            "$client",
            "$*",
            "$client.a.b",
            "$client.a*",
            "$x.a",
            "",
        ] {
            assert!(TopicSet::new([bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_set_can_be_extended() {
        let mut orders = set(&["orders.*"]);
        orders.extend(&set(&["orders.*.>"]));
        assert!(orders.covers(&Filter::new("orders.>").unwrap()));
        assert!(!orders.is_empty());
        assert!(TopicSet::default().is_empty());
    }
}

//! The plan of a run: topics, the filters of each stream, and how many events each stream must get.
//!
//! Events go to the topics of a plan in turn. The number of events published therefore determines, for every stream,
//! how many match it, and a loss shows as a difference.

use serde::Serialize;

use crate::Error;

/// The filters of the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Each stream holds one of the topics, in turn.
    Literal,
    /// Each stream holds a wildcard that matches all topics.
    Wildcard,
    /// Each stream holds a topic of its own.
    Own,
    /// Each stream holds a topic of its own and one that all share.
    OwnAndShared,
    /// There is one topic, and each stream has a filter that no other has and that matches it.
    Distinct,
}

/// Topics, and the streams that subscribe to them.
#[derive(Debug)]
pub struct Plan {
    topics: Vec<String>,
    streams: Vec<StreamPlan>,
}

/// The subscription of one stream.
#[derive(Debug, Clone)]
pub struct StreamPlan {
    /// Its number, from 0.
    pub number: usize,
    /// Its filters.
    pub filters: Vec<String>,
    matches: Matches,
}

/// The topics of the plan that match a stream.
#[derive(Debug, Clone)]
enum Matches {
    All,
    /// Topics by number, ascending.
    Some(Vec<usize>),
}

/// Tokens of the topic in [`Shape::Distinct`]. Each is a bit that tells filters apart, so there are 2^16 filters.
const DISTINCT_BITS: usize = 16;

// ===== impl Plan =====

impl Plan {
    /// Plans `streams` streams, with topics below `prefix`. [`Shape::Literal`] and [`Shape::Wildcard`] have `topics`
    /// topics; the other shapes ignore the number.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if `topics` is 0, or there are more than 65,536 streams of [`Shape::Distinct`].
    pub fn new(shape: Shape, streams: usize, topics: usize, prefix: &str) -> Result<Self, Error> {
        if topics == 0 {
            return Err(Error::Invalid("--topics must be at least 1".into()));
        }
        let topic = |number: usize| format!("{prefix}.t{number}");
        let shared = format!("{prefix}.shared");
        let names: Vec<String> = match shape {
            Shape::Literal | Shape::Wildcard => (0..topics).map(topic).collect(),
            Shape::Own => (0..streams.max(1)).map(topic).collect(),
            Shape::OwnAndShared => (0..streams).map(topic).chain([shared.clone()]).collect(),
            Shape::Distinct => vec![format!("{prefix}{}", ".x".repeat(DISTINCT_BITS))],
        };
        if shape == Shape::Distinct && streams > 1 << DISTINCT_BITS {
            let max = 1 << DISTINCT_BITS;
            return Err(Error::Invalid(format!(
                "--filter distinct allows at most {max} subscribers"
            )));
        }
        let stream = |number: usize| {
            let (filters, matches) = match shape {
                Shape::Literal => (
                    vec![topic(number % topics)],
                    Matches::Some(vec![number % topics]),
                ),
                Shape::Wildcard => (vec![format!("{prefix}.*")], Matches::All),
                Shape::Own => (vec![topic(number)], Matches::Some(vec![number])),
                Shape::OwnAndShared => (
                    vec![topic(number), shared.clone()],
                    Matches::Some(vec![number, streams]),
                ),
                Shape::Distinct => (vec![distinct_filter(prefix, number)], Matches::All),
            };
            StreamPlan {
                number,
                filters,
                matches,
            }
        };
        let streams = (0..streams).map(stream).collect();
        Ok(Self {
            topics: names,
            streams,
        })
    }

    /// Returns the topics. The event with number `n` goes to the topic with number `n` modulo their count.
    #[must_use]
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// Returns the streams.
    #[must_use]
    pub fn streams(&self) -> &[StreamPlan] {
        &self.streams
    }
}

impl StreamPlan {
    /// Returns how many of the first `published` events match, when they go to `topics` topics in turn.
    #[must_use]
    pub fn matching(&self, published: u64, topics: usize) -> u64 {
        match &self.matches {
            Matches::All => published,
            Matches::Some(mine) => {
                let topics = topics as u64;
                let begun = published % topics;
                let in_last = mine.iter().filter(|&&topic| (topic as u64) < begun).count();
                published / topics * mine.len() as u64 + in_last as u64
            }
        }
    }
}

/// Returns a filter with a wildcard for each bit that is set in `number`.
fn distinct_filter(prefix: &str, number: usize) -> String {
    let mut filter = prefix.to_owned();
    for bit in 0..DISTINCT_BITS {
        filter.push_str(if number >> bit & 1 == 1 { ".*" } else { ".x" });
    }
    filter
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn plan(shape: Shape) -> Plan {
        Plan::new(shape, 5, 3, "p").unwrap()
    }

    /// Counts by matching token by token.
    fn counted(plan: &Plan, stream: &StreamPlan, published: u64) -> u64 {
        let matches = |filter: &String, topic: &String| {
            let (mut filter, mut topic) = (filter.split('.'), topic.split('.'));
            filter
                .by_ref()
                .zip(topic.by_ref())
                .all(|(f, t)| f == "*" || f == t)
                && filter.next().is_none()
                && topic.next().is_none()
        };
        let topic = |n: u64| &plan.topics()[n as usize % plan.topics().len()];
        let seen = |n: &u64| {
            stream
                .filters
                .iter()
                .any(|filter| matches(filter, topic(*n)))
        };
        (0..published).filter(seen).count() as u64
    }

    #[test]
    fn computed_matches_equal_matching_by_token() {
        use Shape::{Distinct, Literal, Own, OwnAndShared, Wildcard};
        for shape in [Literal, Wildcard, Own, OwnAndShared, Distinct] {
            let plan = plan(shape);
            assert_eq!(plan.streams().len(), 5);
            for stream in plan.streams() {
                for published in 0..40 {
                    assert_eq!(
                        stream.matching(published, plan.topics().len()),
                        counted(&plan, stream, published),
                        "{shape:?} {stream:?} {published}"
                    );
                }
            }
        }
    }

    #[test]
    fn distinct_filters_are_distinct() {
        let filters: BTreeSet<_> = (0..1_000).map(|n| distinct_filter("p", n)).collect();
        assert_eq!(filters.len(), 1_000);
    }

    #[test]
    fn impossible_plans_are_refused() {
        assert!(Plan::new(Shape::Distinct, 65_537, 1, "p").is_err());
        assert!(Plan::new(Shape::Literal, 1, 0, "p").is_err());
    }
}

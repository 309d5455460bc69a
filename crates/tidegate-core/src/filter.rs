//! Filters: the topics that a subscription wants.
//!
//! A filter is a topic, or a pattern in which `*` stands for exactly one token and `>`, as the last
//! token, for one or more, as in NATS. Two rules are stricter than there: a wildcard is a whole token,
//! and a wildcard in the first place never matches a topic that begins with `$`, so `>` is everything
//! except events to single clients.

use std::{fmt, sync::Arc};

use crate::topic::{
    CLIENT_PREFIX, ClientId, NameError, NameErrorKind, Topic, check_token, check_tokens,
};

/// A topic, or a pattern of topics: `orders.*.created`, `orders.>`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Filter(Arc<str>);

impl Filter {
    /// Checks `pattern` and makes a filter of it.
    ///
    /// # Errors
    /// When a token breaks a rule of [topics](crate::topic), a wildcard is not a whole token, `>` is
    /// not the last one, or the filter begins with `$`: the error says which, and where.
    pub fn new(pattern: &str) -> Result<Self, NameError> {
        match Self::check(pattern) {
            Ok(()) => Ok(Self(pattern.into())),
            Err(error) => Err(error.of(pattern)),
        }
    }

    /// Checks the rules, without the pattern in the error.
    fn check(pattern: &str) -> Result<(), NameError> {
        if pattern.starts_with('$') {
            return Err(NameErrorKind::Reserved.at(0));
        }
        let mut tail = None;
        check_tokens(pattern, |token, at| {
            if let Some(tail) = tail {
                return Err(NameErrorKind::TailNotLast.at(tail));
            }
            match token {
                "*" => Ok(()),
                ">" => {
                    tail = Some(at);
                    Ok(())
                }
                literal => check_token(literal, at),
            }
        })
    }

    /// Checks a pattern of a rule, which may be `$client.<client id>` or `$client.*` as well. No subscription may
    /// have those as filters.
    pub(crate) fn for_rule(pattern: &str) -> Result<Self, NameError> {
        match pattern.strip_prefix(CLIENT_PREFIX) {
            Some("*") => Ok(Self(pattern.into())),
            Some(_) => Topic::new(pattern).map(|topic| Self::from(&topic)),
            None => Self::new(pattern),
        }
    }

    /// The filter `>`: everything but events to single clients.
    #[must_use]
    pub fn everything() -> Self {
        Self(">".into())
    }

    /// The filter that every subscription of `id` has besides its own.
    pub(crate) fn for_client(id: &ClientId) -> Self {
        Self(Topic::for_client(id).as_str().into())
    }

    /// The filter as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the filter has no wildcard: it matches one topic.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.tokens().all(|token| token != "*" && token != ">")
    }

    /// Whether the filter matches `topic`.
    #[must_use]
    pub fn matches(&self, topic: &Topic) -> bool {
        let mut wanted = self.tokens();
        let mut given = topic.as_str().split('.');
        if topic.as_str().starts_with('$') && self.begins_with_wildcard() {
            return false;
        }
        loop {
            match (wanted.next(), given.next()) {
                (None, None) | (Some(">"), Some(_)) => return true,
                (Some("*"), Some(_)) => {}
                (Some(wanted), Some(given)) if wanted == given => {}
                _ => return false,
            }
        }
    }

    /// Whether both match some topic.
    ///
    /// The limits on the length of a topic are left out of account: two filters that only topics longer
    /// than allowed have in common overlap.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.tokens(), other.tokens());
        if self.reserved_against(other) || other.reserved_against(self) {
            return false;
        }
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
                (Some(ours), Some(theirs)) if ours == theirs => {}
                _ => return false,
            }
        }
    }

    /// Whether every topic that this filter matches is matched by at least one of `others`. It may take
    /// several of them: `a.*` and `a.*.>` together cover `a.>`.
    ///
    /// The limits on the length of a topic are left out of account: a filter of which only topics longer
    /// than allowed are left over is not covered. But for that the answer is exact.
    #[must_use]
    pub fn is_covered_by<'a>(&self, others: impl IntoIterator<Item = &'a Self>) -> bool {
        // There are more tokens than any filters name. So a wildcard stands, among others, for one that no
        // filter names, which only wildcards match; and where those cover, the rest is covered as well.
        let others = others.into_iter();
        let mut alive: Vec<_> = others
            .filter(|other| !self.reserved_against(other))
            .map(Self::tokens)
            .collect();
        for token in self.tokens() {
            match advance(&mut alive, token) {
                Advanced::Covered => return true,
                Advanced::Some if token != ">" => {}
                Advanced::Some => return covers_every_length(alive),
                Advanced::None => return false,
            }
        }
        alive.iter_mut().any(|other| other.next().is_none())
    }

    /// Whether it begins with `$` and `other` with a wildcard, which never match the same topic.
    fn reserved_against(&self, other: &Self) -> bool {
        self.0.starts_with('$') && other.begins_with_wildcard()
    }

    /// The tokens of the filter.
    pub(crate) fn tokens(&self) -> std::str::Split<'_, char> {
        self.0.split('.')
    }

    /// Whether the first token is `*` or `>`.
    fn begins_with_wildcard(&self) -> bool {
        matches!(self.tokens().next(), Some("*" | ">"))
    }
}

impl From<&Topic> for Filter {
    fn from(topic: &Topic) -> Self {
        Self(topic.as_str().into())
    }
}

impl TryFrom<&str> for Filter {
    type Error = NameError;

    fn try_from(pattern: &str) -> Result<Self, NameError> {
        Self::new(pattern)
    }
}

impl TryFrom<String> for Filter {
    type Error = NameError;

    fn try_from(pattern: String) -> Result<Self, NameError> {
        Self::new(&pattern)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({:?})", self.as_str())
    }
}

/// The filters that are left behind one more token.
enum Advanced {
    /// One of them matches every topic that begins so.
    Covered,
    /// Some go on.
    Some,
    /// None goes on.
    None,
}

/// Takes one token off each of the filters and leaves those that match `token`, or, if that is a wildcard, a
/// token that none of them names.
fn advance(filters: &mut Vec<std::str::Split<'_, char>>, token: &str) -> Advanced {
    let mut is_covered = false;
    filters.retain_mut(|filter| {
        let next = filter.next();
        is_covered |= next == Some(">");
        // A wildcard is the same as itself here.
        next.is_some_and(|next| next == "*" || next == token)
    });
    match filters.is_empty() {
        _ if is_covered => Advanced::Covered,
        true => Advanced::None,
        false => Advanced::Some,
    }
}

/// Whether a topic is matched that ends here, and each that goes on with tokens that no filter names.
fn covers_every_length(mut filters: Vec<std::str::Split<'_, char>>) -> bool {
    loop {
        if !filters.iter().any(|filter| filter.clone().next().is_none()) {
            return false;
        }
        match advance(&mut filters, ">") {
            Advanced::Covered => return true,
            Advanced::Some => {}
            Advanced::None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_refused_with_its_position() {
        use NameErrorKind::*;
        for good in ["a", "*", ">", "a.*", "*.b.>", "a.*.c", "a.>"] {
            assert_eq!(Filter::new(good).unwrap().as_str(), good);
        }
        for (bad, kind, position) in [
            ("", EmptyToken, 0),
            ("a.>.b", TailNotLast, 2),
            (">.>", TailNotLast, 0),
            ("a*", Wildcard, 1),
            ("a.b>", Wildcard, 3),
            ("**", Wildcard, 0),
            ("$client.alice", Reserved, 0),
            ("$>", Reserved, 0),
            ("a. ", WhiteSpace, 2),
        ] {
            assert_eq!(
                Filter::new(bad).unwrap_err(),
                kind.at(position).of(bad),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn wildcards_match_as_in_nats_but_never_a_reserved_topic() {
        let matches = |filter: &str, topic: &str| {
            Filter::new(filter)
                .unwrap()
                .matches(&Topic::new(topic).unwrap())
        };
        for (filter, topic) in [
            ("a", "a"),
            ("*", "a"),
            (">", "a"),
            (">", "a.b.c"),
            ("a.*", "a.b"),
            ("a.>", "a.b.c"),
            ("*.b", "a.b"),
        ] {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in [
            ("a", "b"),
            ("a", "A"),
            ("a", "a.b"),
            ("*", "a.b"),
            ("a.*", "a"),
            ("a.*", "a.b.c"),
            ("a.>", "a"),
            (">", "$client.alice"),
            ("*.alice", "$client.alice"),
        ] {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
        assert!(
            Filter::for_client(&ClientId::new("x").unwrap())
                .matches(&Topic::new("$client.x").unwrap())
        );
    }
}

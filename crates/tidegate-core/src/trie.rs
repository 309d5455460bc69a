//! A trie over the tokens of filters, with values where a filter ends.
//!
//! The hub finds the feeds of a topic with it, a subscription the overlaps among its own filters. A walk visits the
//! places of all filters that begin like the topic, whether they match to the end or not.
//!
//! # Work
//! The unit of work is a place: one token of one or more filters. A walk visits each place at most once, because a
//! place stands at one depth only, and from each place at most two at the next depth: that of the topic's token and that of
//! `*`. How many one topic can visit is up to the filters; [`Trie::most_work`] bounds it.
//!
//! # Memory
//! A node stands where filters part or end. The tokens in between are one string, so a filter that shares nothing
//! costs one node and its text.

use std::{mem, slice};

use crate::{filter::Filter, shards::Shards, topic::MAX_TOKENS};

/// Values by filter.
#[derive(Debug)]
pub(crate) struct Trie<T> {
    /// The node of no token.
    root: Node<T>,
}

/// A place where filters part or end.
#[derive(Debug)]
struct Node<T> {
    /// The tokens before this place and behind the first token of the branch that leads to it, joined by dots. Mostly
    /// empty or the whole rest of a filter. None is `>`.
    way: Box<str>,
    /// The nodes that follow.
    branches: Branches<T>,
    /// Values of the filters that end here.
    here: Values<T>,
    /// Values of the filters that end here with `>`.
    tail: Values<T>,
}

/// The nodes that follow a node, by the token that leads to them.
#[derive(Debug)]
enum Branches<T> {
    /// None.
    None,
    /// One, as most nodes have, by its token, which may be `*`.
    One(Box<(Box<str>, Node<T>)>),
    /// Several.
    Several(Box<Several<T>>),
}

/// See [`Branches::Several`].
#[derive(Debug)]
struct Several<T> {
    /// The nodes of the tokens that are literals.
    literals: Shards<Box<str>, Node<T>>,
    /// The node of `*`.
    star: Option<Node<T>>,
}

/// Values of one filter. Most have one.
#[derive(Debug)]
enum Values<T> {
    /// None.
    None,
    /// One.
    One(T),
    /// Several, in no order.
    Several(Vec<T>),
}

/// A place in the trie: a node, or a token on the way to it.
#[derive(Debug)]
struct Place<'a, T> {
    /// The tokens that are left on the way to the node; empty at the node.
    way: &'a str,
    /// The node.
    node: &'a Node<T>,
}

/// The tokens of a topic or filter, split once and kept on the stack.
struct Tokens<'a> {
    /// The tokens; empty ones behind `len`.
    tokens: [&'a str; MAX_TOKENS],
    /// How many there are.
    len: usize,
}

// ===== impl Trie =====

impl<T> Trie<T> {
    /// A trie without filters.
    pub(crate) fn new() -> Self {
        Self {
            root: Node::behind(""),
        }
    }

    /// Adds a value of `filter`. A filter may have several.
    pub(crate) fn insert(&mut self, filter: &Filter, value: T) {
        let (mut rest, is_tail) = split_tail(filter.as_str());
        let mut node = &mut self.root;
        while !rest.is_empty() {
            let (first, behind) = split_first(rest);
            node = node.branches.node_or_new(first, behind);
            rest = node.part(behind);
        }
        if is_tail {
            node.tail.push(value);
        } else {
            node.here.push(value);
        }
    }

    /// Removes the values of `filter` that `is_it` picks, and the nodes that hold nothing any more.
    pub(crate) fn remove(&mut self, filter: &Filter, is_it: impl Fn(&T) -> bool) {
        let (tokens, is_tail) = split_tail(filter.as_str());
        self.root.remove(tokens, is_tail, &is_it);
    }

    /// Calls `found` with each value whose filter matches `topic`. Returns the work, the values found not included.
    pub(crate) fn matching<'a>(&'a self, topic: &str, found: &mut impl FnMut(&'a T)) -> u64 {
        let tokens = Tokens::of(topic);
        let mut work = 0;
        let has_wildcards = !topic.starts_with('$');
        self.root()
            .matching(tokens.as_slice(), has_wildcards, &mut work, found);
        work
    }

    /// An upper bound of the work of [`matching`](Self::matching) for any topic, the values found included.
    pub(crate) fn most_work(&self) -> u64 {
        self.root.most_work()
    }

    /// Whether some filter whose value `counts` matches all that `filter` matches. Takes a step from
    /// `steps` for each place; false when none is left.
    pub(crate) fn covers(
        &self,
        filter: &Filter,
        steps: &mut usize,
        counts: &impl Fn(&T) -> bool,
    ) -> bool {
        let tokens = Tokens::of(filter.as_str());
        let has_wildcards = !filter.as_str().starts_with('$');
        self.root()
            .covers(tokens.as_slice(), has_wildcards, steps, counts)
    }

    /// Calls `found` with each value whose filter has a topic in common with `filter`. Takes a step
    /// from `steps` for each place, and stops and returns false when none is left.
    pub(crate) fn overlapping(
        &self,
        filter: &Filter,
        steps: &mut usize,
        found: &mut impl FnMut(&T),
    ) -> bool {
        let tokens = Tokens::of(filter.as_str());
        self.root()
            .overlapping(tokens.as_slice(), true, steps, found)
    }

    /// The place of no token.
    const fn root(&self) -> Place<'_, T> {
        Place {
            way: "",
            node: &self.root,
        }
    }

    #[cfg(test)]
    pub(crate) const fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

// ===== impl Node =====

impl<T> Node<T> {
    /// A node without filters, behind `way`.
    fn behind(way: &str) -> Self {
        Self {
            way: way.into(),
            branches: Branches::None,
            here: Values::None,
            tail: Values::None,
        }
    }

    /// Whether no filter ends here or beyond.
    const fn is_empty(&self) -> bool {
        matches!(
            (&self.branches, &self.here, &self.tail),
            (Branches::None, Values::None, Values::None)
        )
    }

    /// Moves this node to where its way and `rest` part, with a node of its old place behind it. Returns the tokens of `rest`
    /// behind it.
    fn part<'r>(&mut self, rest: &'r str) -> &'r str {
        let (common, beyond, rest) = split_common(&self.way, rest);
        if let Some(beyond) = beyond {
            let (first, behind) = split_first(beyond);
            let (first, behind) = (Box::from(first), Box::from(behind));
            let at_common = Self::behind(common);
            let mut parted = mem::replace(self, at_common);
            parted.way = behind;
            self.branches = Branches::One(Box::new((first, parted)));
        }
        rest
    }

    /// Removes values behind `rest`.
    fn remove(&mut self, rest: &str, is_tail: bool, is_it: &impl Fn(&T) -> bool) {
        if rest.is_empty() {
            let values = if is_tail {
                &mut self.tail
            } else {
                &mut self.here
            };
            return values.remove(is_it);
        }
        let (first, behind) = split_first(rest);
        let Some(node) = self.branches.node_mut(first) else {
            return;
        };
        let (_, None, behind) = split_common(&node.way, behind) else {
            return;
        };
        node.remove(behind, is_tail, is_it);
        if node.is_empty() {
            self.branches.remove(first);
        } else {
            node.join();
        }
    }

    /// If nothing parts or ends at this node, moves it to where something does.
    fn join(&mut self) {
        let Self {
            branches: branches @ Branches::One(_),
            here: Values::None,
            tail: Values::None,
            ..
        } = self
        else {
            return;
        };
        if let Branches::One(one) = mem::replace(branches, Branches::None) {
            let (first, mut node) = *one;
            let tokens = [&*self.way, &*first, &*node.way];
            let tokens = tokens.into_iter().filter(|tokens| !tokens.is_empty());
            node.way = tokens.collect::<Vec<_>>().join(".").into();
            *self = node;
        }
    }

    /// See [`Trie::most_work`]. A topic goes on by `*` and by one literal.
    fn most_work(&self) -> u64 {
        let on = match &self.branches {
            Branches::None => 0,
            Branches::One(one) => one.1.most_work(),
            Branches::Several(several) => {
                let star = several.star.as_ref().map_or(0, Self::most_work);
                let literals = several.literals.iter();
                let literals = literals.map(|(_, node)| node.most_work());
                star + literals.max().unwrap_or(0)
            }
        };
        let found = self.here.as_slice().len() + self.tail.as_slice().len();
        let way = if self.way.is_empty() {
            0
        } else {
            self.way.split('.').count()
        };
        1 + (found + way) as u64 + on
    }
}

// ===== impl Branches =====

impl<T> Branches<T> {
    /// The node that `first` leads to; if there is none, a new one behind the tokens `way`.
    fn node_or_new(&mut self, first: &str, way: &str) -> &mut Node<T> {
        if self.node_mut(first).is_none() {
            self.add(first.into(), Node::behind(way));
        }
        self.node_mut(first).expect("was added above")
    }

    /// The node that `first` leads to.
    fn node_mut(&mut self, first: &str) -> Option<&mut Node<T>> {
        match self {
            Self::None => None,
            Self::One(one) => (*one.0 == *first).then_some(&mut one.1),
            Self::Several(several) => {
                if first == "*" {
                    several.star.as_mut()
                } else {
                    several.literals.get_mut(first)
                }
            }
        }
    }

    /// Adds the node that `first` leads to, where there is none.
    fn add(&mut self, first: Box<str>, node: Node<T>) {
        *self = match mem::replace(self, Self::None) {
            Self::None => Self::One(Box::new((first, node))),
            Self::One(one) => {
                let mut several = Several {
                    literals: Shards::new(),
                    star: None,
                };
                several.add(one.0, one.1);
                several.add(first, node);
                Self::Several(Box::new(several))
            }
            Self::Several(mut several) => {
                several.add(first, node);
                Self::Several(several)
            }
        };
    }

    /// Removes the node that `first` leads to.
    fn remove(&mut self, first: &str) {
        match self {
            Self::None => {}
            // The caller has found the node: it is this one.
            Self::One(_) => *self = Self::None,
            Self::Several(several) => {
                if first == "*" {
                    several.star = None;
                } else {
                    several.literals.remove(first);
                }
                if let Some(one) = several.take_only() {
                    *self = Self::One(Box::new(one));
                }
            }
        }
    }
}

impl<T> Several<T> {
    /// Adds the node that `first` leads to.
    fn add(&mut self, first: Box<str>, node: Node<T>) {
        if &*first == "*" {
            self.star = Some(node);
        } else {
            self.literals.insert(first, node);
        }
    }

    /// Takes the node out if there is only one.
    fn take_only(&mut self) -> Option<(Box<str>, Node<T>)> {
        match (self.literals.len(), &self.star) {
            (0, Some(_)) => self.star.take().map(|star| ("*".into(), star)),
            (1, None) => {
                let (first, _) = self.literals.iter().next()?;
                let first = first.clone();
                self.literals.remove(&first)
            }
            _ => None,
        }
    }
}

// ===== impl Values =====

impl<T> Values<T> {
    /// Adds a value.
    fn push(&mut self, value: T) {
        *self = match mem::replace(self, Self::None) {
            Self::None => Self::One(value),
            Self::One(one) => Self::Several(vec![one, value]),
            Self::Several(mut several) => {
                several.push(value);
                Self::Several(several)
            }
        };
    }

    /// Removes the values that `is_it` picks.
    fn remove(&mut self, is_it: &impl Fn(&T) -> bool) {
        match self {
            Self::None => {}
            Self::One(one) => {
                if is_it(one) {
                    *self = Self::None;
                }
            }
            Self::Several(several) => {
                several.retain(|value| !is_it(value));
                if several.len() < 2 {
                    *self = several.pop().map_or(Self::None, Self::One);
                } else if several.len() < several.capacity() / 8 {
                    several.shrink_to_fit();
                }
            }
        }
    }

    /// The values.
    const fn as_slice(&self) -> &[T] {
        match self {
            Self::None => &[],
            Self::One(one) => slice::from_ref(one),
            Self::Several(several) => several.as_slice(),
        }
    }
}

// ===== impl Place =====

impl<T> Copy for Place<'_, T> {}

impl<T> Clone for Place<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<'a, T> Place<'a, T> {
    /// The place of `node`, which a token leads to.
    fn towards(node: &'a Node<T>) -> Self {
        Self {
            way: &node.way,
            node,
        }
    }

    /// The place that the literal `token` leads to.
    fn literal(self, token: &str) -> Option<Self> {
        if !self.way.is_empty() {
            let (first, way) = split_first(self.way);
            return (first == token && first != "*").then_some(Self { way, ..self });
        }
        let node = match &self.node.branches {
            Branches::None => None,
            Branches::One(one) => (*one.0 == *token && token != "*").then_some(&one.1),
            Branches::Several(several) => several.literals.get(token),
        };
        node.map(Self::towards)
    }

    /// The place that `*` leads to.
    fn star(self) -> Option<Self> {
        if !self.way.is_empty() {
            let (first, way) = split_first(self.way);
            return (first == "*").then_some(Self { way, ..self });
        }
        let node = match &self.node.branches {
            Branches::None => None,
            Branches::One(one) => (&*one.0 == "*").then_some(&one.1),
            Branches::Several(several) => several.star.as_ref(),
        };
        node.map(Self::towards)
    }

    /// The places that literals lead to, with those.
    fn literals(self) -> impl Iterator<Item = (&'a str, Self)> {
        let (one, several) = match &self.node.branches {
            _ if !self.way.is_empty() => {
                let (first, way) = split_first(self.way);
                (Some((first, Self { way, ..self })), None)
            }
            Branches::None => (None, None),
            Branches::One(one) => (Some((&*one.0, Self::towards(&one.1))), None),
            Branches::Several(several) => (None, Some(&several.literals)),
        };
        let several = several.into_iter().flat_map(Shards::iter);
        let several = several.map(|(token, node)| (&**token, Self::towards(node)));
        one.into_iter()
            .filter(|(token, _)| *token != "*")
            .chain(several)
    }

    /// Values of the filters that end here.
    const fn here(self) -> &'a [T] {
        if self.way.is_empty() {
            self.node.here.as_slice()
        } else {
            &[]
        }
    }

    /// Values of the filters that end here with `>`.
    const fn tail(self) -> &'a [T] {
        if self.way.is_empty() {
            self.node.tail.as_slice()
        } else {
            &[]
        }
    }

    /// See [`Trie::matching`].
    fn matching(
        self,
        tokens: &[&str],
        has_wildcards: bool,
        work: &mut u64,
        found: &mut impl FnMut(&'a T),
    ) {
        *work += 1;
        let [token, rest @ ..] = tokens else {
            return self.here().iter().for_each(found);
        };
        if has_wildcards {
            self.tail().iter().for_each(&mut *found);
            if let Some(star) = self.star() {
                star.matching(rest, true, work, found);
            }
        }
        if let Some(literal) = self.literal(token) {
            literal.matching(rest, true, work, found);
        }
    }

    /// See [`Trie::covers`].
    fn covers(
        self,
        tokens: &[&str],
        has_wildcards: bool,
        steps: &mut usize,
        counts: &impl Fn(&T) -> bool,
    ) -> bool {
        let Some(left) = steps.checked_sub(1) else {
            return false;
        };
        *steps = left;
        let [token, rest @ ..] = tokens else {
            return self.here().iter().any(counts);
        };
        if has_wildcards && self.tail().iter().any(counts) {
            return true;
        }
        let star = self.star().filter(|_| has_wildcards && *token != ">");
        star.into_iter()
            .chain(self.literal(token))
            .any(|place| place.covers(rest, true, steps, counts))
    }

    /// See [`Trie::overlapping`].
    fn overlapping(
        self,
        tokens: &[&str],
        at_root: bool,
        steps: &mut usize,
        found: &mut impl FnMut(&T),
    ) -> bool {
        let Some(left) = steps.checked_sub(1) else {
            return false;
        };
        *steps = left;
        let [token, rest @ ..] = tokens else {
            self.here().iter().for_each(found);
            return true;
        };
        if !(at_root && token.starts_with('$')) {
            self.tail().iter().for_each(&mut *found);
            if let Some(star) = self.star()
                && !star.below(*token == ">", rest, steps, found)
            {
                return false;
            }
        }
        if matches!(*token, "*" | ">") {
            let mut literals = self
                .literals()
                .filter(|(name, _)| !(at_root && name.starts_with('$')));
            literals.all(|(_, place)| place.below(*token == ">", rest, steps, found))
        } else {
            self.literal(token)
                .is_none_or(|place| place.overlapping(rest, false, steps, found))
        }
    }

    /// Goes on with `rest` below a token that both share, or, after `>`, finds every value below.
    fn below(
        self,
        after_tail: bool,
        rest: &[&str],
        steps: &mut usize,
        found: &mut impl FnMut(&T),
    ) -> bool {
        if !after_tail {
            return self.overlapping(rest, false, steps, found);
        }
        let Some(left) = steps.checked_sub(1) else {
            return false;
        };
        *steps = left;
        self.here().iter().chain(self.tail()).for_each(&mut *found);
        let literals = self.literals().map(|(_, place)| place);
        let mut places = self.star().into_iter().chain(literals);
        places.all(|place| place.below(true, rest, steps, found))
    }
}

// ===== tokens =====

impl<'a> Tokens<'a> {
    /// Splits `name`, which has at most [`MAX_TOKENS`] tokens.
    fn of(name: &'a str) -> Self {
        let mut tokens = [""; MAX_TOKENS];
        let mut len = 0;
        for (slot, token) in tokens.iter_mut().zip(name.split('.')) {
            *slot = token;
            len += 1;
        }
        Self { tokens, len }
    }

    /// The tokens.
    fn as_slice(&self) -> &[&'a str] {
        &self.tokens[..self.len]
    }
}

/// Splits a filter into its tokens without `>` at the end, and whether it has that.
fn split_tail(filter: &str) -> (&str, bool) {
    match filter.strip_suffix('>') {
        Some(tokens) => (tokens.strip_suffix('.').unwrap_or(tokens), true),
        None => (filter, false),
    }
}

/// Splits `tokens` into the first one and the rest.
// Called for each place of a search. Without the hint, a build of many codegen units may make it a call, which was 16 % of
// the time of a subscription.
#[inline]
fn split_first(tokens: &str) -> (&str, &str) {
    tokens.split_once('.').unwrap_or((tokens, ""))
}

/// Splits a way and `rest` where they part: the tokens that they have in common, those left of the way, if it goes on,
/// and those left of `rest`.
fn split_common<'w, 'r>(way: &'w str, rest: &'r str) -> (&'w str, Option<&'w str>, &'r str) {
    let (mut way_left, mut rest_left) = (way, rest);
    while !way_left.is_empty() && !rest_left.is_empty() {
        let ((token, way_on), (other, rest_on)) = (split_first(way_left), split_first(rest_left));
        if token != other {
            break;
        }
        (way_left, rest_left) = (way_on, rest_on);
    }
    let common = way[..way.len() - way_left.len()].trim_end_matches('.');
    (
        common,
        Some(way_left).filter(|left| !left.is_empty()),
        rest_left,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trie(filters: &[&str]) -> Trie<usize> {
        let mut trie = Trie::new();
        for (i, filter) in filters.iter().enumerate() {
            trie.insert(&Filter::new(filter).unwrap(), i);
        }
        trie
    }

    /// Nodes below `node`, which is not counted.
    fn nodes(node: &Node<usize>) -> usize {
        match &node.branches {
            Branches::None => 0,
            Branches::One(one) => 1 + nodes(&one.1),
            Branches::Several(several) => several
                .literals
                .iter()
                .map(|(_, node)| node)
                .chain(&several.star)
                .map(|node| 1 + nodes(node))
                .sum(),
        }
    }

    #[test]
    fn a_node_stands_only_where_filters_part_or_end() {
        let filters = ["a.b.c.d", "a.b.c.e", "a.b", "a.b.*.x", "z.y.x.>"];
        let mut trie = trie(&filters);
        // `a.b`, behind it `c` and `*.x`, behind `c` two leaves; and `z.y.x`.
        assert_eq!(nodes(&trie.root), 6);
        // In any order of removal nothing more is left than the rest needs.
        for (i, (filter, left)) in filters.iter().zip([4, 3, 2, 1, 0]).enumerate() {
            trie.remove(&Filter::new(filter).unwrap(), |&value| value == i);
            assert_eq!(nodes(&trie.root), left, "after {filter}: {trie:?}");
        }
        assert!(trie.is_empty());
    }

    #[test]
    fn work_is_bounded_by_what_the_filters_can_make_a_topic_visit() {
        for (filters, most) in [
            (&["a"][..], 3),
            // Literals beside one another: a topic goes on by one.
            (&["a.b", "a.c", "a.d"], 4),
            // The root, `*` and its value, `a`, `b` and its value.
            (&["*", "a.b"], 1 + 2 + 3),
            (&["x.>"], 3),
        ] {
            assert_eq!(trie(filters).most_work(), most, "{filters:?}");
        }
    }
}

//! A trie over the tokens of filters, with values where a filter ends.
//!
//! The hub finds the feeds of a topic with it, a subscription the overlaps among its own filters. A
//! walk visits each node at most once, because a node stands at one depth only; it visits those of all
//! filters that begin like the topic, whether they match to the end or not.

use std::collections::HashMap;

use crate::{filter::Filter, topic::MAX_TOKENS};

/// Values by filter.
#[derive(Debug)]
pub(crate) struct Trie<T> {
    /// The node of no token.
    root: Node<T>,
}

/// The filters that begin with the same tokens.
#[derive(Debug)]
struct Node<T> {
    /// By the next token, where it is a literal.
    children: HashMap<Box<str>, Self>,
    /// Where the next token is `*`.
    star: Option<Box<Self>>,
    /// Values of the filters that end here.
    here: Vec<T>,
    /// Values of the filters that end here with `>`.
    tail: Vec<T>,
}

/// The tokens of a topic or filter, split once and kept on the stack.
struct Tokens<'a> {
    /// The tokens; empty ones behind `len`.
    tokens: [&'a str; MAX_TOKENS],
    /// How many there are.
    len: usize,
}

impl<T> Trie<T> {
    /// A trie without filters.
    pub(crate) fn new() -> Self {
        Self { root: Node::new() }
    }

    /// Adds a value of `filter`. A filter may have several.
    pub(crate) fn insert(&mut self, filter: &Filter, value: T) {
        let mut node = &mut self.root;
        for token in filter.tokens() {
            match token {
                ">" => return node.tail.push(value),
                "*" => node = node.star.get_or_insert_with(|| Box::new(Node::new())),
                literal => {
                    // Three look-ups for a new token, two and no allocation for a known one.
                    if !node.children.contains_key(literal) {
                        node.children.insert(literal.into(), Node::new());
                    }
                    node = node.children.get_mut(literal).expect("inserted above");
                }
            }
        }
        node.here.push(value);
    }

    /// Removes the values of `filter` that `is_it` picks, and the nodes that hold nothing any more.
    pub(crate) fn remove(&mut self, filter: &Filter, is_it: impl Fn(&T) -> bool) {
        let tokens = Tokens::of(filter.as_str());
        self.root.remove(tokens.as_slice(), &is_it);
    }

    /// Calls `found` with each value whose filter matches `topic`. Returns the work: how many nodes were visited.
    pub(crate) fn matching<'a>(&'a self, topic: &str, found: &mut impl FnMut(&'a T)) -> u64 {
        let tokens = Tokens::of(topic);
        let mut work = 0;
        self.root
            .matching(tokens.as_slice(), !topic.starts_with('$'), &mut work, found);
        work
    }

    /// Whether some filter whose value `counts` matches all that `filter` matches. Takes a step from
    /// `steps` for each node; false when none is left.
    pub(crate) fn covers(
        &self,
        filter: &Filter,
        steps: &mut usize,
        counts: &impl Fn(&T) -> bool,
    ) -> bool {
        let tokens = Tokens::of(filter.as_str());
        self.root.covers(
            tokens.as_slice(),
            !filter.as_str().starts_with('$'),
            steps,
            counts,
        )
    }

    /// Calls `found` with each value whose filter has a topic in common with `filter`. Takes a step
    /// from `steps` for each node, and stops and returns false when none is left.
    pub(crate) fn overlapping(
        &self,
        filter: &Filter,
        steps: &mut usize,
        found: &mut impl FnMut(&T),
    ) -> bool {
        let tokens = Tokens::of(filter.as_str());
        self.root.overlapping(tokens.as_slice(), true, steps, found)
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

impl<T> Node<T> {
    fn new() -> Self {
        Self {
            children: HashMap::new(),
            star: None,
            here: Vec::new(),
            tail: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty()
            && self.star.is_none()
            && self.here.is_empty()
            && self.tail.is_empty()
    }

    fn remove(&mut self, tokens: &[&str], is_it: &impl Fn(&T) -> bool) {
        match tokens {
            [] => self.here.retain(|value| !is_it(value)),
            [">"] => self.tail.retain(|value| !is_it(value)),
            ["*", rest @ ..] => {
                if let Some(star) = &mut self.star {
                    star.remove(rest, is_it);
                    if star.is_empty() {
                        self.star = None;
                    }
                }
            }
            [literal, rest @ ..] => {
                if let Some(child) = self.children.get_mut(*literal) {
                    child.remove(rest, is_it);
                    if child.is_empty() {
                        self.children.remove(*literal);
                        if self.children.is_empty() {
                            self.children.shrink_to_fit();
                        }
                    }
                }
            }
        }
    }

    fn matching<'a>(
        &'a self,
        tokens: &[&str],
        wildcards: bool,
        work: &mut u64,
        found: &mut impl FnMut(&'a T),
    ) {
        *work += 1;
        let [token, rest @ ..] = tokens else {
            return self.here.iter().for_each(found);
        };
        if wildcards {
            self.tail.iter().for_each(&mut *found);
            if let Some(star) = &self.star {
                star.matching(rest, true, work, found);
            }
        }
        if let Some(child) = self.children.get(*token) {
            child.matching(rest, true, work, found);
        }
    }

    fn covers(
        &self,
        tokens: &[&str],
        wildcards: bool,
        steps: &mut usize,
        counts: &impl Fn(&T) -> bool,
    ) -> bool {
        let Some(left) = steps.checked_sub(1) else {
            return false;
        };
        *steps = left;
        let [token, rest @ ..] = tokens else {
            return self.here.iter().any(counts);
        };
        if wildcards && self.tail.iter().any(counts) {
            return true;
        }
        let star = self.star.as_deref().filter(|_| wildcards && *token != ">");
        let child = self.children.get(*token);
        star.into_iter()
            .chain(child)
            .any(|node| node.covers(rest, true, steps, counts))
    }

    fn overlapping(
        &self,
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
            self.here.iter().for_each(found);
            return true;
        };
        if !(at_root && token.starts_with('$')) {
            self.tail.iter().for_each(&mut *found);
            if let Some(star) = &self.star
                && !star.below(*token == ">", rest, steps, found)
            {
                return false;
            }
        }
        if matches!(*token, "*" | ">") {
            let mut children = self
                .children
                .iter()
                .filter(|(name, _)| !(at_root && name.starts_with('$')));
            children.all(|(_, child)| child.below(*token == ">", rest, steps, found))
        } else {
            self.children
                .get(*token)
                .is_none_or(|child| child.overlapping(rest, false, steps, found))
        }
    }

    /// Goes on with `rest` below a token that both share, or, after `>`, finds every value below.
    fn below(
        &self,
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
        self.here.iter().chain(&self.tail).for_each(&mut *found);
        let mut nodes = self
            .star
            .as_deref()
            .into_iter()
            .chain(self.children.values());
        nodes.all(|node| node.below(true, rest, steps, found))
    }
}

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

//! Topics and client ids: names that are checked when they are made.
//!
//! A topic is one to [`MAX_TOKENS`] tokens with dots between them, at most [`MAX_TOPIC_BYTES`] bytes:
//! `orders.eu.created`. A token is any text but white space, control characters, `.`, `*` and `>`; it
//! is compared byte by byte, so case matters.
//!
//! Topics that begin with `$` are reserved. One form exists: `$client.<client id>`, whose events reach
//! that client alone, whatever its filters ([`Topic::for_client`]).

use std::{convert::Infallible, fmt, sync::Arc};

/// The longest topic or filter, in bytes.
pub const MAX_TOPIC_BYTES: usize = 256;

/// The most tokens in a topic or filter.
pub const MAX_TOKENS: usize = 32;

/// The longest client id, in bytes.
pub const MAX_CLIENT_ID_BYTES: usize = 128;

/// The prefix of the topic of one client.
pub(crate) const CLIENT_PREFIX: &str = "$client.";

/// The most of a name that an error quotes, in bytes.
const MAX_QUOTED_BYTES: usize = 64;

/// The name an event is published under: `orders.eu.created`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

/// The name of a client, which holds subscriptions: one topic token of at most [`MAX_CLIENT_ID_BYTES`] bytes. Cheap
/// to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(Arc<str>);

/// The reason why a topic, a filter or a client id was refused, and the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {position} of {name:?}")]
#[non_exhaustive]
pub struct NameError {
    /// The rule that it breaks.
    pub kind: NameErrorKind,
    /// The offset in bytes of the first character that breaks it.
    pub position: usize,
    /// The name that was refused; of one longer than 64 bytes the beginning, and `...`.
    pub name: Box<str>,
}

/// The rule that a topic, a filter or a client id breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameErrorKind {
    /// Nothing between two dots, or nothing at all.
    #[error("empty token")]
    EmptyToken,
    /// White space.
    #[error("white space")]
    WhiteSpace,
    /// A control character.
    #[error("control character")]
    ControlCharacter,
    /// `*` or `>` where none is allowed: in a topic or client id, or as a part of a token of a filter.
    #[error("wildcard where none is allowed")]
    Wildcard,
    /// `>` that is not the last token of a filter.
    #[error("`>` before the last token")]
    TailNotLast,
    /// A dot in a client id.
    #[error("dot in a client id")]
    Dot,
    /// A topic or filter that begins with `$`.
    #[error("topics that begin with `$` are reserved")]
    Reserved,
    /// Longer than allowed; the position is the limit.
    #[error("too long")]
    TooLong,
    /// More than [`MAX_TOKENS`] tokens; the position is where the first token too many begins.
    #[error("too many tokens")]
    TooManyTokens,
}

// ===== impl Topic =====

impl Topic {
    /// Checks `name` and makes a topic of it.
    ///
    /// # Errors
    /// When `name` breaks a rule of [the module](self): the error says which, and where. Of the
    /// reserved topics only `$client.<client id>` is accepted.
    pub fn new(name: &str) -> Result<Self, NameError> {
        match Self::check(name) {
            Ok(()) => Ok(Self(name.into())),
            Err(error) => Err(error.of(name)),
        }
    }

    /// Checks the rules, without the name in the error.
    fn check(name: &str) -> Result<(), NameError> {
        check_tokens(name, check_token)?;
        // The one reserved form; the error is that of the client id, at its place in the topic.
        if name.starts_with('$') {
            let id = name.strip_prefix(CLIENT_PREFIX);
            let id = id.ok_or_else(|| NameErrorKind::Reserved.at(0))?;
            ClientId::check(id).map_err(|e| e.kind.at(e.position + CLIENT_PREFIX.len()))?;
        }
        Ok(())
    }

    /// The topic whose events reach the client `id` alone: `$client.<id>`.
    #[must_use]
    pub fn for_client(id: &ClientId) -> Self {
        Self(format!("{CLIENT_PREFIX}{id}").into())
    }

    /// The topic as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Topic {
    /// Whether the topic begins with `$`: it is that of one client.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with('$')
    }
}

impl TryFrom<&str> for Topic {
    type Error = NameError;

    fn try_from(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl TryFrom<String> for Topic {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(&name)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topic({:?})", self.as_str())
    }
}

// ===== impl ClientId =====

impl ClientId {
    /// Checks `id` and makes a client id of it.
    ///
    /// # Errors
    /// When `id` is not one token as [the module](self) describes it, or is longer than
    /// [`MAX_CLIENT_ID_BYTES`].
    pub fn new(id: &str) -> Result<Self, NameError> {
        match Self::check(id) {
            Ok(()) => Ok(Self(id.into())),
            Err(error) => Err(error.of(id)),
        }
    }

    /// Checks the rules, without the id in the error.
    fn check(id: &str) -> Result<(), NameError> {
        if let Some(dot) = id.find('.') {
            return Err(NameErrorKind::Dot.at(dot));
        }
        if id.len() > MAX_CLIENT_ID_BYTES {
            return Err(NameErrorKind::TooLong.at(MAX_CLIENT_ID_BYTES));
        }
        check_token(id, 0)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for ClientId {
    type Error = NameError;

    fn try_from(id: &str) -> Result<Self, NameError> {
        Self::new(id)
    }
}

impl TryFrom<String> for ClientId {
    type Error = NameError;

    fn try_from(id: String) -> Result<Self, NameError> {
        Self::new(&id)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientId({:?})", self.as_str())
    }
}

// ===== impl NameError =====

impl NameError {
    /// The same error, with as much of `name` as it quotes.
    pub(crate) fn of(self, name: &str) -> Self {
        let name = match name.len() <= MAX_QUOTED_BYTES {
            true => name.into(),
            false => {
                let mut ends = (0..=MAX_QUOTED_BYTES).rev();
                let end = ends.find(|end| name.is_char_boundary(*end));
                format!("{}...", &name[..end.unwrap_or(0)]).into()
            }
        };
        Self { name, ..self }
    }
}

/// Lets `TryInto<Topic>` take a topic that was checked before as well.
impl From<Infallible> for NameError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl NameErrorKind {
    /// An error at `position`, without the name, which [`NameError::of`] adds.
    pub(crate) fn at(self, position: usize) -> NameError {
        NameError {
            kind: self,
            position,
            name: Box::default(),
        }
    }
}

// ===== the rules =====

/// Checks the length of `name` and the number of its tokens, and each token, at its offset, with `check`.
pub(crate) fn check_tokens(
    name: &str,
    mut check: impl FnMut(&str, usize) -> Result<(), NameError>,
) -> Result<(), NameError> {
    if name.len() > MAX_TOPIC_BYTES {
        return Err(NameErrorKind::TooLong.at(MAX_TOPIC_BYTES));
    }
    let mut at = 0;
    for (i, token) in name.split('.').enumerate() {
        if i == MAX_TOKENS {
            return Err(NameErrorKind::TooManyTokens.at(at));
        }
        check(token, at)?;
        at += token.len() + 1;
    }
    Ok(())
}

/// Checks one literal token that begins at byte `at` of its name.
pub(crate) fn check_token(token: &str, at: usize) -> Result<(), NameError> {
    if token.is_empty() {
        return Err(NameErrorKind::EmptyToken.at(at));
    }
    for (i, c) in token.char_indices() {
        let kind = match c {
            '*' | '>' => NameErrorKind::Wildcard,
            // A tab or a line feed is both; "white space" says more to people.
            c if c.is_whitespace() => NameErrorKind::WhiteSpace,
            c if c.is_control() => NameErrorKind::ControlCharacter,
            _ => continue,
        };
        return Err(kind.at(at + i));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_topic_is_refused_with_its_position() {
        use NameErrorKind::*;
        for good in [
            "a",
            "a.b",
            "orders.eu.created",
            "$client.alice",
            "ünï.cødé",
            &"x".repeat(256),
        ] {
            assert_eq!(Topic::new(good).unwrap().as_str(), good);
        }
        for (bad, kind, position) in [
            ("", EmptyToken, 0),
            (".a", EmptyToken, 0),
            ("a..b", EmptyToken, 2),
            ("a.", EmptyToken, 2),
            ("a b", WhiteSpace, 1),
            ("a.\u{2003}", WhiteSpace, 2),
            ("a.b\n", WhiteSpace, 3),
            ("a.\0", ControlCharacter, 2),
            ("a.*", Wildcard, 2),
            ("a.b>", Wildcard, 3),
            ("$sys.x", Reserved, 0),
            ("$client", Reserved, 0),
            ("$client.a.b", Dot, 9),
            (&"x".repeat(257), TooLong, 256),
            (&["x"; 33].join("."), TooManyTokens, 64),
        ] {
            assert_eq!(
                Topic::new(bad).unwrap_err(),
                kind.at(position).of(bad),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_client_id_is_one_token() {
        use NameErrorKind::*;
        assert_eq!(
            Topic::for_client(&ClientId::new("bob").unwrap()),
            Topic::new("$client.bob").unwrap()
        );
        assert!(ClientId::new(&"x".repeat(128)).is_ok());
        for (bad, kind, position) in [
            ("", EmptyToken, 0),
            ("a.b", Dot, 1),
            ("a*", Wildcard, 1),
            ("a\t", WhiteSpace, 1),
            (&"x".repeat(129), TooLong, 128),
        ] {
            assert_eq!(
                ClientId::new(bad).unwrap_err(),
                kind.at(position).of(bad),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn an_error_quotes_the_name_and_cuts_a_long_one() {
        let told = |name: &str| Topic::new(name).unwrap_err().to_string();
        assert_eq!(told("a b"), "white space at byte 1 of \"a b\"");
        assert_eq!(
            told("$client.a b"),
            "white space at byte 9 of \"$client.a b\""
        );
        assert_eq!(
            told("a\u{1b}"),
            "control character at byte 1 of \"a\\u{1b}\""
        );
        // No character is cut in two.
        let long = format!("x{}", "é".repeat(200));
        let beginning = format!("x{}...", "é".repeat(31));
        assert_eq!(
            told(&long),
            format!("too long at byte 256 of {beginning:?}")
        );
    }

    #[test]
    fn an_error_names_the_fault_and_its_position() {
        assert_eq!(
            Topic::new("a..b").unwrap_err().to_string(),
            "empty token at byte 2 of \"a..b\""
        );
    }
}

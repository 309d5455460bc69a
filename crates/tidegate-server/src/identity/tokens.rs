//! Bearer tokens in a file, by their hashes.
//!
//! # The file
//! Each line is a token: its principal, and `sha256:` with the hash in hexadecimal, as `tidegate token` prints it.
//! Empty lines and lines that begin with `#` are skipped. A principal may have several tokens.
//!
//! ```text
//! # The billing service, since March.
//! billing sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//! ```
//!
//! # Why a plain hash
//! A token is meant to be 32 random bytes or more. Nobody finds such a token by trying, however fast the hash is. A
//! password would need a slow hash, and has no place here.

use std::sync::Arc;

use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use crate::{
    digest::{Digest, digest},
    text::{is_unseen, lines_of_text},
};

/// The text before each hash in the file.
const SCHEME: &str = "sha256:";

/// The tokens of a file.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Vec<Token>);

#[derive(Debug)]
struct Token {
    principal: Arc<str>,
    hash: Digest,
}

/// The line of a token file for a token of `principal`.
///
/// # Errors
/// When the principal is empty, contains white space or begins with `#`, or the token is empty or is not printable
/// ASCII. The error says how it has to be.
pub fn token_line(principal: &str, token: &str) -> Result<String, &'static str> {
    if principal.is_empty()
        || principal.starts_with('#')
        || principal.contains(|character: char| character.is_whitespace() || is_unseen(character))
    {
        return Err(
            "a principal is one word of characters that can be seen, and does not begin with `#`",
        );
    }
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a token is printable ASCII without white space, and not empty");
    }
    let hash = digest(token.as_bytes());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{principal} {SCHEME}{hash}"))
}

impl Tokens {
    /// Parses the text of a token file.
    ///
    /// # Errors
    /// The number of the first bad line, and its form.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let text = lines_of_text(text)?;
        let lines = text.lines().enumerate();
        let lines = lines.map(|(i, line)| (i, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let tokens = lines.map(|(i, line)| {
            Token::parse(line).ok_or_else(|| {
                let line = i + 1;
                format!("line {line}: write it as `principal {SCHEME}...`, as `tidegate token` prints it")
            })
        });
        Ok(Self(tokens.collect::<Result<_, _>>()?))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The principal of the token with this hash. Takes the same time whichever token it is, and if there is none.
    pub(crate) fn principal(&self, hash: &Digest) -> Option<&Arc<str>> {
        let none = self.0.len() as u64;
        let mut found = none;
        for (i, token) in self.0.iter().enumerate() {
            let is_it: Choice = token.hash.ct_eq(hash);
            found.conditional_assign(&(i as u64), is_it);
        }
        let token = self.0.get(usize::try_from(found).ok()?)?;
        Some(&token.principal)
    }
}

impl Token {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (principal, hash) = (words.next()?, words.next()?.strip_prefix(SCHEME)?);
        let is_whole = words.next().is_none()
            && !principal.contains(is_unseen)
            && hash.len() == 64
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_whole.then_some(())?;
        let mut bytes = Digest::default();
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hash[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Self {
            principal: principal.into(),
            hash: bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_by_its_hash() {
        let (alice, bob) = (
            token_line("alice", "a").unwrap(),
            token_line("bob", "b").unwrap(),
        );
        let text = format!("# people\n\n{alice}\n{bob}\n");
        let tokens = Tokens::parse(text.as_bytes()).unwrap();
        let principal = |token: &str| tokens.principal(&digest(token.as_bytes())).map(|p| &**p);
        assert_eq!(principal("a"), Some("alice"));
        assert_eq!(principal("b"), Some("bob"));
        assert_eq!(principal("c"), None);
        assert_eq!(Tokens::default().principal(&digest(b"a")), None);
    }

    #[test]
    fn a_bad_token_line_is_refused_with_its_number() {
        let good = token_line("alice", "a").unwrap();
        for bad in [
            "alice",
            "alice sha256:12",
            "alice 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            &format!("{good} more"),
            &good
                .replace("sha256:", "sha256:\u{e9}")
                .replacen("\u{e9}", "zz", 1)[..good.len()],
        ] {
            let error = Tokens::parse(format!("{good}\n{bad}\n").as_bytes()).unwrap_err();
            assert!(error.starts_with("line 2: "), "{bad}: {error}");
        }
        assert!(Tokens::parse(b"\xff").is_err());
    }

    #[test]
    fn a_token_line_holds_only_what_a_header_can() {
        for (principal, token) in [
            ("", "t"),
            ("a b", "t"),
            ("#a", "t"),
            ("a", ""),
            ("a", "t t"),
            ("a", "\u{e9}"),
        ] {
            assert!(
                token_line(principal, token).is_err(),
                "{principal:?} {token:?}"
            );
        }
    }
}

//! Client ids for clients that give none.
//!
//! Where callers authenticate, their [`Authority`](crate::Authority) makes these ids instead. An id that cannot be
//! guessed is no right: whoever publishes to a client knows its id, and so does everyone who sees a list of clients.

use tidegate_core::ClientId;

/// Prefix of every id that is made for a client.
const ANONYMOUS: &str = "anonymous-";

/// The fewest hexadecimal digits behind the prefix.
const MIN_DIGITS: usize = 16;

/// Makes a client id that no other client has: 64 random bits behind a prefix.
pub(crate) fn anonymous() -> Result<ClientId, getrandom::Error> {
    let random = getrandom::u64()?;
    Ok(ClientId::new(&format!("{ANONYMOUS}{random:016x}")).expect("is one token"))
}

/// Whether an id has the form of those that are made for clients that give none.
pub(crate) fn looks_made(id: &ClientId) -> bool {
    let digits = id.as_str().strip_prefix(ANONYMOUS);
    digits.is_some_and(|digits| {
        digits.len() >= MIN_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

//! Client ids for clients that give none.

use tidegate_core::ClientId;

/// Prefix of every id that is made here.
const ANONYMOUS: &str = "anonymous-";

/// Makes a client id that no other client has: 64 random bits behind a prefix.
pub(crate) fn anonymous() -> Result<ClientId, getrandom::Error> {
    let random = getrandom::u64()?;
    Ok(ClientId::new(&format!("{ANONYMOUS}{random:016x}")).expect("is one token"))
}

/// Whether [`anonymous`] made this id. Nobody can guess such an id, so a client that gives one was given it before.
pub(crate) fn is_anonymous(id: &ClientId) -> bool {
    let random = id.as_str().strip_prefix(ANONYMOUS);
    random.is_some_and(|random| {
        random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

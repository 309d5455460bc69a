//! Client ids that are made here, for clients that give none.

use tidegate_core::ClientId;

/// What begins the client ids that are made here.
const ANONYMOUS: &str = "anonymous-";

/// A client id that nobody else has.
pub(crate) fn anonymous() -> Result<ClientId, getrandom::Error> {
    let random = getrandom::u64()?;
    Ok(ClientId::new(&format!("{ANONYMOUS}{random:016x}")).expect("is one token"))
}

/// Whether the id is one that is made here. Nobody can guess one, so who names it was given it.
pub(crate) fn is_anonymous(id: &ClientId) -> bool {
    let random = id.as_str().strip_prefix(ANONYMOUS);
    random.is_some_and(|random| {
        random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

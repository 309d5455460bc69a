//! Epochs of hubs.

/// An epoch that no other hub has: 63 random bits and a one, so never 0.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn random_epoch() -> std::io::Result<u64> {
    let random = getrandom::u64().map_err(|e| std::io::Error::other(e.to_string()))?;
    Ok(random | 1)
}

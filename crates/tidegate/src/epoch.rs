//! Epochs: the identities of sequence spaces.

/// Makes an epoch for a new hub: 63 random bits and a one, so that it is never 0 and no other hub has it.
///
/// # Errors
/// When the operating system provides no randomness.
pub fn random_epoch() -> std::io::Result<u64> {
    let random = getrandom::u64().map_err(|e| std::io::Error::other(e.to_string()))?;
    Ok(random | 1)
}

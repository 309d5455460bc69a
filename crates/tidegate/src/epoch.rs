//! Epochs: the identities of sequence spaces.

/// Makes an epoch for a new hub: 52 random bits and a one, so that it is never 0 and no other hub has it.
///
/// It has at most 53 bits, so that it survives a language whose numbers are doubles.
///
/// # Errors
/// When the operating system provides no randomness.
pub fn random_epoch() -> std::io::Result<u64> {
    let random = getrandom::u64().map_err(|e| std::io::Error::other(e.to_string()))?;
    Ok(random >> 11 | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_epoch_is_exact_as_a_double_and_never_0() {
        for _ in 0..1000 {
            let epoch = random_epoch().unwrap();
            assert_ne!(epoch, 0);
            assert!(epoch < 1 << 53);
        }
    }
}

//! SHA-256: of tokens, of keys, and of files that are compared with what they were.

use aws_lc_rs::digest::SHA256;

/// A SHA-256.
pub(crate) type Digest = [u8; 32];

/// The SHA-256 of `bytes`.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    let digest = aws_lc_rs::digest::digest(&SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

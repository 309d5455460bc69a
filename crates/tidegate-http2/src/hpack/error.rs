//! The one error of compression.

use std::{error, fmt};

/// A header block that cannot be decoded. The peer's table and ours differ from here on, so it is an error of the connection:
/// `COMPRESSION_ERROR` (RFC 9113, section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidBlock;

impl fmt::Display for InvalidBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a header block cannot be decoded")
    }
}

impl error::Error for InvalidBlock {}

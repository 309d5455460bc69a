//! The one error of compression.

use crate::error::{Code, Error};

/// A header block that cannot be decoded. The peer's table and ours differ from here on, so it is an error of the connection:
/// `COMPRESSION_ERROR` (RFC 9113, section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidBlock;

impl From<InvalidBlock> for Error {
    fn from(InvalidBlock: InvalidBlock) -> Self {
        Self::new(Code::COMPRESSION_ERROR, "a header block cannot be decoded")
    }
}

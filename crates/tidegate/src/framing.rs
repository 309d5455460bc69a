//! gRPC messages in chunks of HTTP/2.

use bytes::BufMut as _;

/// The most bytes of one chunk: the payload of one HTTP/2 frame of the default size (RFC 9113, section
/// 6.5.2).
pub const CHUNK_BYTES: usize = 16_384;

/// The gRPC prefix of a message: a flag for compression and four bytes of length.
pub(crate) const PREFIX: usize = 5;

/// Appends the prefix of an uncompressed message of `len` bytes.
pub(crate) fn write_prefix(len: usize, out: &mut Vec<u8>) {
    out.put_u8(0);
    out.put_u32(u32::try_from(len).expect("a message is far smaller than 4 GiB"));
}

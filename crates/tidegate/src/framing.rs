//! gRPC messages in chunks of HTTP/2.

use bytes::BufMut as _;

/// Size limit of one chunk: 16,384 bytes, the payload of one HTTP/2 frame of the default size (RFC 9113, section
/// 6.5.2). A larger chunk would be sent in two frames.
pub const CHUNK_BYTES: usize = 16_384;

/// Length of the gRPC prefix of a message: a flag for compression and four bytes of length.
pub(crate) const PREFIX: usize = 5;

/// Appends the prefix of an uncompressed message of `len` bytes.
///
/// # Panics
/// When `len` is 4 GiB or more. No message here is: events are limited when they are published.
pub(crate) fn write_prefix(len: usize, out: &mut Vec<u8>) {
    out.put_u8(0);
    out.put_u32(u32::try_from(len).expect("a message is far smaller than 4 GiB"));
}

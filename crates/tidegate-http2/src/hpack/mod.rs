//! Compression of header lists: HPACK, RFC 7541.
//!
//! The decoder keeps the dynamic table that the peer's encoder asks for, up to [`TABLE_BYTES`]. The encoder keeps none: what
//! a stream of events answers is a status and two or three fields, once in its life.

mod decoder;
mod encoder;
mod error;
mod huffman;
mod integer;
mod table;

#[cfg(test)]
mod tests;

pub(crate) use self::{
    decoder::{Decoder, Field},
    encoder::Encoder,
};

/// Size of the decoder's dynamic table: the one that a peer may assume before it has our settings (RFC 9113, section
/// 6.5.2).
pub(crate) const TABLE_BYTES: usize = 4_096;

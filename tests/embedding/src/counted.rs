//! A message that counts its encodings.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prost::{
    DecodeError,
    bytes::{Buf, BufMut},
    encoding::{DecodeContext, WireType, uint64},
};

/// The number of encodings in this process.
static ENCODINGS: AtomicU64 = AtomicU64::new(0);

/// `feed.v1.Counted`: a number that counts its encodings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// The number.
    pub number: u64,
}

impl Counted {
    /// Returns how often a message of this type was encoded in this process.
    pub fn encodings() -> u64 {
        ENCODINGS.load(Relaxed)
    }
}

impl prost::Message for Counted {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        ENCODINGS.fetch_add(1, Relaxed);
        uint64::encode(1, &self.number, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => uint64::merge(wire_type, &mut self.number, buf, ctx),
            _ => prost::encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        uint64::encoded_len(1, &self.number)
    }

    fn clear(&mut self) {
        self.number = 0;
    }
}

//! The position of an event, written into the message behind its encoding.
//!
//! A value is encoded before the hub has numbered it. Protobuf lets the fields of a message come in any order, so the
//! position is written as fields after the shared bytes. If the value has these fields set, the later ones count.

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, fixed64, key_len};

/// Numbers of the fields of a message that carry its position. 0 is none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PositionFields {
    epoch: u64,
    sequence_field: u32,
    epoch_field: u32,
}

impl PositionFields {
    /// Fields of a value that no hub has published: none.
    pub(crate) const NONE: Self = Self::new(0, 0, 0);

    pub(crate) const fn new(epoch: u64, sequence_field: u32, epoch_field: u32) -> Self {
        Self {
            epoch,
            sequence_field,
            epoch_field,
        }
    }

    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn len(&self, sequence: u64) -> usize {
        let sequence_len = match self.sequence_field {
            0 => 0,
            field => key_len(field) + encoded_len_varint(sequence),
        };
        let epoch_len = match self.epoch_field {
            0 => 0,
            field => fixed64::encoded_len(field, &self.epoch),
        };
        sequence_len + epoch_len
    }

    pub(crate) fn write(&self, sequence: u64, buf: &mut impl BufMut) {
        if self.sequence_field != 0 {
            encode_key(self.sequence_field, WireType::Varint, buf);
            encode_varint(sequence, buf);
        }
        if self.epoch_field != 0 {
            fixed64::encode(self.epoch_field, &self.epoch, buf);
        }
    }
}

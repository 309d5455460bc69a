//! Decoding of header blocks (RFC 7541, section 6).

use super::{
    error::InvalidBlock,
    huffman, integer,
    table::{self, DynamicTable},
};

/// Size of a field in a header list besides its name and value.
const FIELD_BYTES: usize = 32;

/// A field of a header list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    /// Whether it is never to be put into a table (RFC 7541, section 7.1.3).
    pub(crate) is_sensitive: bool,
}

impl Field<'_> {
    /// Number of bytes that it counts in a header list (RFC 9113, section 6.5.2).
    pub(crate) const fn size(&self) -> usize {
        self.name.len() + self.value.len() + FIELD_BYTES
    }
}

/// Decoder of the blocks of one connection, in their order.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: DynamicTable,
}

/// A string of a block: as it lies there, or decoded into a buffer.
enum Text<'a> {
    Plain(&'a [u8]),
    Decoded,
}

impl<'a> Text<'a> {
    fn of<'b>(&self, decoded: &'b [u8]) -> &'b [u8]
    where
        'a: 'b,
    {
        match self {
            Self::Plain(text) => text,
            Self::Decoded => decoded,
        }
    }
}

impl Decoder {
    pub(crate) const fn new() -> Self {
        Self {
            table: DynamicTable::new(),
        }
    }

    /// Decodes a block, and calls `add` with each of its fields, which may be about 4,000 bytes for each byte of the block.
    ///
    /// # Errors
    /// When the block is none, or `add` wants no more of it. Fields that came before the error have been added.
    pub(crate) fn decode<E: From<InvalidBlock>>(
        &mut self,
        block: &[u8],
        mut add: impl FnMut(Field<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = block;
        // A change of the table's size comes first (RFC 7541, section 4.2).
        while let Some(0x20..=0x3f) = rest.first() {
            let size = integer::take(&mut rest, 5)?;
            self.table.resize(size)?;
        }
        let (mut name_buffer, mut value_buffer) = (Vec::new(), Vec::new());
        while let Some(first) = rest.first() {
            let (prefix, is_indexed, is_sensitive) = match first {
                0x80.. => {
                    let index = integer::take(&mut rest, 7)?;
                    let (name, value) = table::find(&self.table, index)?;
                    add(Field {
                        name,
                        value,
                        is_sensitive: false,
                    })?;
                    continue;
                }
                0x40..=0x7f => (6, true, false),
                0x20..=0x3f => return Err(InvalidBlock.into()),
                0x10..=0x1f => (4, false, true),
                ..=0x0f => (4, false, false),
            };
            let index = integer::take(&mut rest, prefix)?;
            name_buffer.clear();
            let name = if index == 0 {
                take_string(&mut rest, &mut name_buffer)?
            } else {
                let (name, _) = table::find(&self.table, index)?;
                // The field that is added may evict the one that has the name.
                name_buffer.extend_from_slice(name);
                Text::Decoded
            };
            value_buffer.clear();
            let value = take_string(&mut rest, &mut value_buffer)?;
            let field = Field {
                name: name.of(&name_buffer),
                value: value.of(&value_buffer),
                is_sensitive,
            };
            add(field)?;
            if is_indexed {
                self.table.add(field.name, field.value);
            }
        }
        Ok(())
    }
}

/// Takes a string from the front of `bytes` (RFC 7541, section 5.2). Huffman codes are decoded into the buffer.
fn take_string<'a>(bytes: &mut &'a [u8], buffer: &mut Vec<u8>) -> Result<Text<'a>, InvalidBlock> {
    let is_huffman = bytes.first().ok_or(InvalidBlock)? & 0x80 != 0;
    let length = integer::take(bytes, 7)?;
    let (text, rest) = bytes.split_at_checked(length).ok_or(InvalidBlock)?;
    *bytes = rest;
    if !is_huffman {
        return Ok(Text::Plain(text));
    }
    huffman::decode(text, buffer)?;
    Ok(Text::Decoded)
}

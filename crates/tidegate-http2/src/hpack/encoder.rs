//! Encoding of header blocks (RFC 7541, section 6).

use http::{HeaderName, HeaderValue, StatusCode};

use super::{TABLE_BYTES, integer, table::STATIC};

/// Encoder of the blocks of one connection. It adds nothing to the peer's table, so a block says the same wherever it comes.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    /// Whether the next block has to begin with the size of the table.
    is_resized: bool,
}

impl Encoder {
    /// Notes the size of the peer's table.
    pub(crate) const fn set_peer_table(&mut self, bytes: u32) {
        // A smaller table has to be acknowledged (RFC 7541, section 4.2). One that was set to 0 is never too large again.
        if (bytes as usize) < TABLE_BYTES {
            self.is_resized = true;
        }
    }

    /// Returns a block with the status, if there is one, and the fields.
    pub(crate) fn encode<'a>(
        &mut self,
        status: Option<StatusCode>,
        fields: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>,
    ) -> Vec<u8> {
        let mut block = Vec::new();
        let out = &mut block;
        if self.is_resized {
            self.is_resized = false;
            out.push(0x20);
        }
        if let Some(status) = status {
            let text = status.as_str();
            let is_known = |field: &(&str, &str)| *field == (":status", text);
            match STATIC.iter().position(is_known) {
                Some(at) => integer::put(out, 0x80, 7, at + 1),
                None => {
                    integer::put(out, 0x00, 4, STATUS);
                    put_string(out, text.as_bytes());
                }
            }
        }
        for (name, value) in fields {
            put_field(out, name, value);
        }
        block
    }
}

/// Index of the first field that is a status.
const STATUS: usize = 8;

fn put_field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    let pattern = if value.is_sensitive() { 0x10 } else { 0x00 };
    let name = name.as_str();
    let known = STATIC.iter().position(|(known, _)| *known == name);
    integer::put(out, pattern, 4, known.map_or(0, |at| at + 1));
    if known.is_none() {
        put_string(out, name.as_bytes());
    }
    put_string(out, value.as_bytes());
}

/// Appends a string as it is: Huffman codes would save a few bytes, once in a stream.
fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    integer::put(out, 0x00, 7, text.len());
    out.extend_from_slice(text);
}

//! Header blocks into the engine and into another decoder: both must find the same fields.

use std::{io::IoSlice, sync::Arc, time::Instant};

use http::Request;
use loona_hpack::{Decoder, decoder::DecoderError};
use tidegate_http2::{Code, Config, Connection, Error, Event, StreamState};

use crate::frames::{END_HEADERS, END_STREAM, HEADERS, MAX_PAYLOAD, SETTINGS, field, frame};

/// Size of the table that a peer may have.
const TABLE_BYTES: usize = 4_096;

/// `:method: POST`, `:scheme: http` and `:path: /`, by their numbers: with them a block is a request more often.
const PSEUDO: [u8; 3] = [0x83, 0x86, 0x84];

/// Nothing is kept with a stream.
#[derive(Debug)]
struct Nothing;

impl StreamState for Nothing {
    fn sent(&mut self, _: usize) {}
}

/// A connection that takes blocks and answers none.
struct Server {
    http2: Connection<Nothing>,
    next: u32,
}

/// The outcome of a block.
struct Outcome {
    /// The request, and whether it is not all of what came.
    request: Option<(Request<()>, bool)>,
    /// Bytes that the peer is sent.
    output: Vec<u8>,
}

/// Decodes blocks, one behind the other: a byte for the length of each, above 127 for one with the fields that each request
/// has, and its bytes.
///
/// The fields that the other decoder finds come to another connection of the engine, without table and compression. Whatever
/// rules there are for them, both connections must see the same.
///
/// # Panics
/// If they differ.
pub fn hpack(bytes: &[u8]) {
    let (mut coded, mut plain) = (Server::new(), Server::new());
    let mut decoder = Decoder::new();
    decoder.set_max_allowed_table_size(TABLE_BYTES);
    let mut rest = bytes;
    while let Some((length, behind)) = rest.split_first() {
        let (block, behind) = behind.split_at(usize::from(length % 128).min(behind.len()));
        rest = behind;
        let block = match length {
            // Changes of the table's size stay in front.
            128.. => {
                let (sizes, fields) = block.split_at(sizes(block));
                [sizes, &PSEUDO, fields].concat()
            }
            _ => block.to_vec(),
        };
        let mut fields = Vec::new();
        let decoded = decoder.decode_with_cb(&block, |name, value| {
            fields.extend(field(&name, &value));
        });
        // The other decoder takes a change of the size anywhere but at the end. It belongs to the front (RFC 7541, section
        // 4.2), and may be all.
        let is_valid = match decoded {
            Ok(()) => !has_late_size(&block),
            Err(DecoderError::SizeUpdateAtEnd) => sizes(&block) == block.len(),
            Err(_) => false,
        };
        let outcome = match coded.take(&block) {
            Ok(outcome) if is_valid => outcome,
            Err(error) if !is_valid && error.code() == Code::COMPRESSION_ERROR => return,
            Ok(_) => panic!("only the engine decodes {block:x?}: {decoded:?}"),
            Err(error) => panic!("only the engine refuses {block:x?}: {error}"),
        };
        if fields.len() > MAX_PAYLOAD {
            // Few bytes may say many.
            return;
        }
        let expected = plain.take(&fields).expect("plain fields can be decoded");
        assert_eq!(outcome.output, expected.output, "of {block:x?}");
        match (&outcome.request, &expected.request) {
            (None, None) => {}
            (Some((request, is_truncated)), Some((expected, was_truncated))) => {
                assert_eq!(request.method(), expected.method(), "of {block:x?}");
                assert_eq!(request.uri(), expected.uri(), "of {block:x?}");
                assert_eq!(request.headers(), expected.headers(), "of {block:x?}");
                assert_eq!(is_truncated, was_truncated, "of {block:x?}");
            }
            _ => panic!("one of them is no request: {block:x?}"),
        }
    }
}

impl Server {
    fn new() -> Self {
        let mut http2 = Connection::new(Arc::new(Config::default()), Instant::now());
        let settings = frame(SETTINGS, 0, 0, &[]);
        let event = http2.receive(&mut &*settings);
        assert!(matches!(event, Ok(None)));
        let mut server = Self { http2, next: 1 };
        server.output();
        server
    }

    /// Takes a block as the headers of a new stream, which is reset then.
    fn take(&mut self, block: &[u8]) -> Result<Outcome, Error> {
        let headers = frame(HEADERS, END_STREAM | END_HEADERS, self.next, block);
        self.next += 2;
        let mut input = &*headers;
        let request = match self.http2.receive(&mut input)? {
            Some(Event::Request {
                stream,
                request,
                ends,
                is_truncated,
            }) => {
                assert!(ends);
                self.http2.reset(stream, Code::CANCEL);
                Some((request, is_truncated))
            }
            Some(event) => panic!("{event:?}"),
            None => None,
        };
        assert!(input.is_empty());
        Ok(Outcome {
            request,
            output: self.output(),
        })
    }

    fn output(&mut self) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 8];
        let count = self.http2.output(&mut slices);
        let output: Vec<u8> = slices[..count]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect();
        self.http2.advance(output.len());
        assert_eq!(self.http2.output_len(), 0);
        output
    }
}

/// Number of bytes at the front of a block that change the size of the table.
fn sizes(block: &[u8]) -> usize {
    let mut rest = block;
    while let Some(0x20..=0x3f) = rest.first() {
        let Some(behind) = skip_integer(rest, 5) else {
            break;
        };
        rest = behind.1;
    }
    block.len() - rest.len()
}

/// Whether a block that can be decoded otherwise changes the size of the table behind a field.
fn has_late_size(block: &[u8]) -> bool {
    let mut rest = &block[sizes(block)..];
    while let Some(first) = rest.first() {
        let prefix = match first {
            0x80.. => 7,
            0x40..=0x7f => 6,
            0x20..=0x3f => return true,
            _ => 4,
        };
        let (index, behind) = skip_integer(rest, prefix).expect("it was decoded");
        rest = behind;
        let strings = match (first, index) {
            (0x80.., _) => 0,
            (_, 0) => 2,
            _ => 1,
        };
        for _ in 0..strings {
            let (length, behind) = skip_integer(rest, 7).expect("it was decoded");
            rest = &behind[length..];
        }
    }
    false
}

/// Reads an integer at the front (RFC 7541, section 5.1), unless it is cut or long.
fn skip_integer(bytes: &[u8], prefix: u32) -> Option<(usize, &[u8])> {
    let (first, mut rest) = bytes.split_first()?;
    let full = (1 << prefix) - 1;
    let mut value = usize::from(*first) & full;
    if value < full {
        return Some((value, rest));
    }
    for place in 0..4 {
        let (byte, behind) = rest.split_first()?;
        rest = behind;
        value += usize::from(byte % 128) << (7 * place);
        if *byte < 128 {
            return Some((value, rest));
        }
    }
    None
}

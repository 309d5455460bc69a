//! Just enough of gRPC and of `tidegate.v1` to count events.
//!
//! A client that decoded every event would take longer to read than the server takes to write, and the benchmark
//! would measure the client. So this module encodes requests and parses responses by hand, and parses only the number
//! of events in a batch, its first index, the count of a gap, and on request the payloads. The tests compare it with
//! the generated code.

use crate::{Error, target::Position};

/// The gRPC prefix of a message: a flag for compression and four bytes of length.
const PREFIX: usize = 5;

/// The longest message in bytes: 64 times the server's default limit on an event, 1 MiB.
const MAX_MESSAGE: usize = 64 << 20;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// Assembles the messages of one stream from its chunks.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    /// The start of a message whose end has not arrived.
    pending: Vec<u8>,
}

/// The parts of a `SubscribeResponse` that a benchmark needs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Response<'a> {
    /// The first response of a stream.
    Subscribed {
        /// The index of the first event or gap to come.
        next_index: u64,
    },
    /// Events.
    Batch(Batch<'a>),
    /// Missing events.
    Gap {
        /// The index of the first missing event.
        first_index: u64,
        /// Number of missing events; 0 if it is unknown.
        count: u64,
    },
    /// Any other response, such as a heartbeat.
    Other,
}

/// The encoded events of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch<'a> {
    /// The index of the first event.
    pub(crate) first_index: u64,
    /// Number of events.
    pub(crate) count: u64,
    /// The encoded `Batch`.
    encoded: &'a [u8],
}

/// The parts of a `SubscribeResponse` that a client needs to know how far it has come back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Return {
    /// The first response of a stream, with the newest position of the server.
    Subscribed(Position),
    /// This number of events.
    Events(u64),
    /// Missing events, of an unknown number if it is 0.
    Gap(u64),
    /// Replay has ended.
    CaughtUp,
    /// Any other response.
    Other,
}

/// The fields of an encoded message, in their order.
struct Fields<'a>(&'a [u8]);

/// The value of a field.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

// ===== impl Messages =====

impl Messages {
    /// Takes the next chunk, and passes each message that it completes to `each`.
    ///
    /// # Errors
    ///
    /// Every error of `each`, and [`Error::Violation`] if the chunk is not gRPC.
    pub(crate) fn push(
        &mut self,
        mut chunk: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while !self.pending.is_empty() {
            let want = match message_len(&self.pending)? {
                None => PREFIX,
                Some(len) if self.pending.len() == PREFIX + len => {
                    each(&self.pending[PREFIX..])?;
                    self.pending.clear();
                    break;
                }
                Some(len) => PREFIX + len,
            };
            if chunk.is_empty() {
                return Ok(());
            }
            let (taken, rest) = chunk.split_at(chunk.len().min(want - self.pending.len()));
            self.pending.extend_from_slice(taken);
            chunk = rest;
        }
        while let Some(len) = message_len(chunk)? {
            let Some(message) = chunk.get(PREFIX..PREFIX + len) else {
                break;
            };
            each(message)?;
            chunk = &chunk[PREFIX + len..];
        }
        self.pending.extend_from_slice(chunk);
        Ok(())
    }
}

/// Returns the length of the message that `bytes` begins with. `None` if its prefix is incomplete.
fn message_len(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some(&[compressed, a, b, c, d]) = bytes.first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if compressed != 0 || len > MAX_MESSAGE {
        return Err(Error::Violation(
            "a message is compressed, or longer than 64 MiB".into(),
        ));
    }
    Ok(Some(len))
}

// ===== impl Response =====

impl<'a> Response<'a> {
    /// Parses an encoded `SubscribeResponse`.
    ///
    /// # Errors
    ///
    /// [`Error::Violation`] if it is no protobuf message.
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Error> {
        let mut response = Self::Other;
        for field in Fields(message) {
            response = match field? {
                (1, Value::Bytes(subscribed)) => Self::Subscribed {
                    next_index: number(subscribed, 4)?,
                },
                (2, Value::Bytes(batch)) => Self::Batch(Batch::parse(batch)?),
                (3, Value::Bytes(gap)) => Self::Gap {
                    first_index: number(gap, 5)?,
                    count: number(gap, 3)?,
                },
                _ => response,
            };
        }
        Ok(response)
    }
}

impl Return {
    /// Parses an encoded `SubscribeResponse`.
    ///
    /// # Errors
    ///
    /// [`Error::Violation`] if it is no protobuf message.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, Error> {
        Ok(match Response::parse(message)? {
            Response::Batch(batch) => Self::Events(batch.count),
            Response::Gap { count, .. } => Self::Gap(count),
            Response::Subscribed { .. } => {
                let subscribed = submessage(message, 1)?;
                let position = submessage(subscribed, 3)?;
                Self::Subscribed(Position {
                    epoch: number(position, 1)?,
                    sequence: number(position, 2)?,
                })
            }
            Response::Other if has(message, 5)? => Self::CaughtUp,
            Response::Other => Self::Other,
        })
    }
}

impl<'a> Batch<'a> {
    fn parse(encoded: &'a [u8]) -> Result<Self, Error> {
        let (mut first_index, mut count) = (0, 0);
        for field in Fields(encoded) {
            match field? {
                (1, Value::Bytes(_)) => count += 1,
                (2, Value::Number(index)) => first_index = index,
                _ => {}
            }
        }
        Ok(Self {
            first_index,
            count,
            encoded,
        })
    }

    /// Returns the payloads of its events. Stops at a malformed field: [`Response::parse`] has refused those already.
    pub(crate) fn payloads(&self) -> impl Iterator<Item = &'a [u8]> {
        let events = Fields(self.encoded).map_while(Result::ok);
        events.filter_map(|field| match field {
            (1, Value::Bytes(event)) => payload(event),
            _ => None,
        })
    }
}

/// Returns the payload of an encoded `Event`.
fn payload(event: &[u8]) -> Option<&[u8]> {
    Fields(event)
        .map_while(Result::ok)
        .find_map(|field| match field {
            (3, Value::Bytes(payload)) => Some(payload),
            _ => None,
        })
}

/// Returns a number of a message: the last one with that tag, or 0 if there is none.
///
/// # Errors
///
/// [`Error::Violation`] if `message` is no protobuf message.
pub(crate) fn number(message: &[u8], tag: u64) -> Result<u64, Error> {
    let mut found = 0;
    for field in Fields(message) {
        if let (number, Value::Number(value)) = field?
            && number == tag
        {
            found = value;
        }
    }
    Ok(found)
}

/// Returns a message within a message: the last one with that tag, or an empty one if there is none.
fn submessage(message: &[u8], tag: u64) -> Result<&[u8], Error> {
    let mut found: &[u8] = &[];
    for field in Fields(message) {
        if let (number, Value::Bytes(bytes)) = field?
            && number == tag
        {
            found = bytes;
        }
    }
    Ok(found)
}

/// Whether a message has a field with that tag.
fn has(message: &[u8], tag: u64) -> Result<bool, Error> {
    for field in Fields(message) {
        if field?.0 == tag {
            return Ok(true);
        }
    }
    Ok(false)
}

// ===== impl Fields =====

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| Error::Violation("a response is not a protobuf message".into())))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            VARINT => Value::Number(self.varint()?),
            FIXED64 => Value::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            BYTES => {
                let len = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(len)?)
            }
            FIXED32 => Value::Number(u32::from_le_bytes(self.take(4)?.try_into().ok()?).into()),
            _ => return None,
        };
        Some((key >> 3, value))
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

// ===== Requests =====

/// Encodes a `SubscribeRequest` for these filters, which resumes after a position if there is one, as one gRPC message.
#[must_use]
pub(crate) fn subscribe_request(filters: &[String], after: Option<Position>) -> Vec<u8> {
    let mut message = vec![0; PREFIX];
    for filter in filters {
        put_bytes(&mut message, 2, filter.as_bytes());
    }
    if let Some(Position { epoch, sequence }) = after {
        let mut position = Vec::new();
        put_varint(&mut position, 1 << 3 | FIXED64);
        position.extend_from_slice(&epoch.to_le_bytes());
        put_varint(&mut position, 2 << 3 | VARINT);
        put_varint(&mut position, sequence);
        put_bytes(&mut message, 4, &position);
    }
    finish_message(message)
}

/// Begins a `PublishRequest`. [`put_event`] adds events, and [`finish_message`] completes it.
#[must_use]
pub(crate) fn publish_request(capacity: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(PREFIX + capacity);
    message.resize(PREFIX, 0);
    message
}

/// Adds a `NewEvent` with a payload of `size` bytes: `head`, and the rest zeros.
pub(crate) fn put_event(message: &mut Vec<u8>, topic: &str, head: &[u8], size: usize) {
    let len = bytes_len(topic.len()) + bytes_len(size);
    put_varint(message, 1 << 3 | BYTES);
    put_varint(message, len as u64);
    put_bytes(message, 1, topic.as_bytes());
    put_varint(message, 2 << 3 | BYTES);
    put_varint(message, size as u64);
    message.extend_from_slice(head);
    message.resize(message.len() + size - head.len(), 0);
}

/// Writes the length into the prefix, and returns the complete message.
///
/// # Panics
///
/// If the message is longer than 4 GiB, the most that the prefix can hold.
#[must_use]
pub(crate) fn finish_message(mut message: Vec<u8>) -> Vec<u8> {
    let len = u32::try_from(message.len() - PREFIX).expect("a request is far smaller");
    message[1..PREFIX].copy_from_slice(&len.to_be_bytes());
    message
}

fn put_bytes(message: &mut Vec<u8>, tag: u64, bytes: &[u8]) {
    put_varint(message, tag << 3 | BYTES);
    put_varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// Returns the encoded length of a field of `len` bytes with a tag below 16.
fn bytes_len(len: usize) -> usize {
    let bits = usize::BITS - (len | 1).leading_zeros();
    1 + (bits as usize).div_ceil(7) + len
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

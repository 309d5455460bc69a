//! A value and its encoding, shared by all its receivers.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock},
};

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError,
    encoding::{DecodeContext, WireType},
};
use tidegate_core::{Event, Payload, Position, Topic};

use super::{position::PositionFields, value::Value};
use crate::rest::Encoding;

/// A value that all its receivers share, with its encoding, which is made once. Cheap to clone: a clone is a reference.
///
/// It dereferences to the value. For tonic it is a message like the value itself, with the same encoding. A
/// value that a hub has published is encoded already, so sending it copies bytes and does nothing more.
///
/// A published value also has a [`topic`](Self::topic), a [`position`](Self::position), and a
/// [`key`](Self::key) if it was given one. One that was not published has none of them: a message in place of a
/// gap, or one of a snapshot.
pub struct Shared<T>(Repr<T>);

enum Repr<T> {
    /// Published: an event as the hub keeps it.
    Published(Arc<Event<EncodedValue<T>>>),
    /// Not published: a message in place of a gap, or one of a snapshot.
    Unpublished(Arc<EncodedValue<T>>),
}

/// Function that tells the bytes of memory behind a value.
pub(super) type ValueMemory<T> = dyn Fn(&T) -> usize + Send + Sync;

/// Payload of an event of a typed hub: the value and its encoding.
#[derive(Debug)]
pub(crate) struct EncodedValue<T> {
    value: T,
    /// Encoding of the value without a position. Set when it is published, or when it is first needed.
    encoding: OnceLock<Bytes>,
    position: PositionFields,
    /// Bytes of memory behind the value, as the memory budget counts them. 0 if it was not published.
    value_memory: usize,
}

// ===== impl EncodedValue =====

impl<T> EncodedValue<T> {
    pub(crate) const fn value(&self) -> &T {
        &self.value
    }
}

impl<T: Value> EncodedValue<T> {
    /// Encodes a value that is about to be published. `memory` tells the bytes of memory behind it; without it, those
    /// are taken to be as many as the encoding has.
    pub(crate) fn encoded(
        value: T,
        position: PositionFields,
        memory: Option<&ValueMemory<T>>,
    ) -> Self {
        let encoding = Bytes::from(value.encode_to_vec());
        let value_memory = memory.map_or(encoding.len(), |memory| memory(&value));
        Self {
            value,
            encoding: encoding.into(),
            position,
            value_memory,
        }
    }

    const fn new(value: T) -> Self {
        Self {
            value,
            encoding: OnceLock::new(),
            position: PositionFields::NONE,
            value_memory: 0,
        }
    }

    pub(crate) const fn position(&self) -> &PositionFields {
        &self.position
    }
}

impl<T: Value> Encoding for EncodedValue<T> {
    fn encoding(&self) -> &Bytes {
        self.encoding
            .get_or_init(|| Bytes::from(self.value.encode_to_vec()))
    }
}

impl<T: Value> Payload for EncodedValue<T> {
    fn size(&self) -> usize {
        self.encoding().len()
    }

    fn extra_memory(&self) -> usize {
        self.value_memory
    }
}

// ===== impl Shared =====

impl<T> Shared<T> {
    pub(crate) const fn published(event: Arc<Event<EncodedValue<T>>>) -> Self {
        Self(Repr::Published(event))
    }

    fn body(&self) -> &EncodedValue<T> {
        match &self.0 {
            Repr::Published(event) => event.payload(),
            Repr::Unpublished(body) => body,
        }
    }

    pub(super) const fn event(&self) -> Option<&Arc<Event<EncodedValue<T>>>> {
        match &self.0 {
            Repr::Published(event) => Some(event),
            Repr::Unpublished(_) => None,
        }
    }

    /// Returns the topic that it was published to, or `None` if it was not published.
    #[must_use]
    pub fn topic(&self) -> Option<&Topic> {
        self.event().map(|event| event.topic())
    }

    /// Returns the key that it was published with, if any.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.event().and_then(|event| event.key())
    }

    /// Returns its position in the order of the hub, or `None` if it was not published. A subscription that
    /// resumes after it begins with the next event.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.event().map(|event| Position {
            epoch: event.payload().position.epoch(),
            sequence: event.sequence(),
        })
    }
}

impl<T: Value> Shared<T> {
    /// Returns the encoding, without the position that the hub may add.
    #[must_use]
    pub fn encoding(&self) -> &Bytes {
        self.body().encoding()
    }

    /// Returns the value to be changed, after making it a copy of its own if others have it too. The encoding
    /// is dropped.
    fn make_mut(&mut self) -> &mut T {
        let is_own = match &mut self.0 {
            Repr::Published(_) => false,
            Repr::Unpublished(body) => Arc::get_mut(body).is_some(),
        };
        if !is_own {
            *self = Self::from(T::clone(self));
        }
        let Repr::Unpublished(body) = &mut self.0 else {
            unreachable!("made so above")
        };
        let body = Arc::get_mut(body).expect("nobody else has it");
        body.encoding.take();
        &mut body.value
    }
}

impl<T: Value> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self(Repr::Unpublished(Arc::new(EncodedValue::new(value))))
    }
}

impl<T: Value + Default> Default for Shared<T> {
    fn default() -> Self {
        Self::from(T::default())
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Repr::Published(event) => Repr::Published(Arc::clone(event)),
            Repr::Unpublished(body) => Repr::Unpublished(Arc::clone(body)),
        })
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.body().value
    }
}

impl<T> AsRef<T> for Shared<T> {
    fn as_ref(&self) -> &T {
        self
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: PartialEq> PartialEq<T> for Shared<T> {
    fn eq(&self, other: &T) -> bool {
        **self == *other
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: Value> prost::Message for Shared<T> {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(self.encoding());
        if let Some(event) = self.event() {
            event.payload().position.write(event.sequence(), buf);
        }
    }

    fn encoded_len(&self) -> usize {
        let position = self
            .event()
            .map_or(0, |event| event.payload().position.len(event.sequence()));
        self.encoding().len() + position
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        self.make_mut().merge_field(tag, wire_type, buf, ctx)
    }

    fn clear(&mut self) {
        self.make_mut().clear();
    }
}

//! Messages that a hub can carry.

/// A value that a [`Hub`](super::Hub) can carry: any protobuf message. It is implemented for all of them, and you never
/// implement it yourself.
pub trait Value: prost::Message + Clone + 'static {}

impl<M: prost::Message + Clone + 'static> Value for M {}

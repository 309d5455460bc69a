//! Messages of any type.

/// What a [`Hub`](super::Hub) can be for: any protobuf message. It is implemented for all of them.
pub trait Value: prost::Message + Clone + 'static {}

impl<M: prost::Message + Clone + 'static> Value for M {}

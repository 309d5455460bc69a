//! The responses of `tidegate.v1`, decoded without an allocation for each event.
//!
//! Topic, payload and key stay slices of the bytes that arrived. Rare messages use the generated types. The numbers of
//! the fields are written here a second time, from the protocol's documentation.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidegate_proto::v1::{self, subscribe_response};

/// A `SubscribeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SubscribeResponse {
    /// The kind of response.
    #[prost(oneof = "Response", tags = "1, 2, 3, 4, 5, 6")]
    pub response: Option<Response>,
}

/// The kinds of `SubscribeResponse`.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Response {
    /// The first response of every stream.
    #[prost(message, tag = "1")]
    Subscribed(v1::Subscribed),
    /// Events.
    #[prost(message, tag = "2")]
    Batch(Batch),
    /// Missing events.
    #[prost(message, tag = "3")]
    Gap(v1::Gap),
    /// A sign that the server is alive.
    #[prost(message, tag = "4")]
    Heartbeat(v1::Heartbeat),
    /// The replay has ended.
    #[prost(message, tag = "5")]
    CaughtUp(v1::CaughtUp),
    /// The server is about to end the stream.
    #[prost(message, tag = "6")]
    GoingAway(v1::GoingAway),
}

/// Events, in order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Batch {
    /// The events.
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<Event>,
    /// The index of the first event.
    #[prost(uint64, tag = "2")]
    pub first_index: u64,
}

/// One event, without its time.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    /// Its sequence.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// Its topic.
    #[prost(bytes = "bytes", tag = "2")]
    pub topic: Bytes,
    /// Its payload.
    #[prost(bytes = "bytes", tag = "3")]
    pub payload: Bytes,
    /// Its key.
    #[prost(bytes = "bytes", tag = "4")]
    pub key: Bytes,
    /// Its attributes.
    #[prost(btree_map = "string, string", tag = "5")]
    pub attributes: BTreeMap<String, String>,
}

impl From<subscribe_response::Response> for Response {
    fn from(response: subscribe_response::Response) -> Self {
        use subscribe_response::Response as Generated;
        match response {
            Generated::Subscribed(subscribed) => Self::Subscribed(subscribed),
            Generated::Batch(batch) => Self::Batch(Batch {
                events: batch.events.into_iter().map(Event::from).collect(),
                first_index: batch.first_index,
            }),
            Generated::Gap(gap) => Self::Gap(gap),
            Generated::Heartbeat(heartbeat) => Self::Heartbeat(heartbeat),
            Generated::CaughtUp(caught_up) => Self::CaughtUp(caught_up),
            Generated::GoingAway(going_away) => Self::GoingAway(going_away),
        }
    }
}

impl From<v1::Event> for Event {
    fn from(event: v1::Event) -> Self {
        Self {
            sequence: event.sequence,
            topic: event.topic.into(),
            payload: event.payload,
            key: event.key.into(),
            attributes: event.attributes,
        }
    }
}

//! Stream events over gRPC to every connected client, each at the pace its own connection allows.
//!
//! The crate has two forms on one core:
//!
//! * [`typed`]: **your own messages**, streamed by a method of your own tonic service. Begin there.
//! * [`EventService`]: `tidegate.v1.EventService` over a [`Hub`], as a tower service for hyper or tonic. The program
//!   `tidegate serve` serves it, to clients in any language.
//!
//! The hub and everything about it comes from [`tidegate_core`], which this crate re-exports. Its guarantees hold here
//! too: this crate takes them over the wire.
//!
//! The oldest Rust that builds this crate is 1.88, as for tonic. Only a new minor version asks for a newer one.
//!
//! # Pull
//! A subscription's stream is *pulled*: the transport asks for the next chunk when HTTP/2 flow control lets it send
//! one. The events that are ready then, up to [`CHUNK_BYTES`], become one message. No timer holds an event back, and
//! nothing is taken from the hub before. So a client that does not read costs a cursor in each of its feeds, and the
//! events it misses are counted.
//!
//! # Beyond recall
//! Three things can no longer be dropped: the one chunk that the transport holds (it asks before it knows that the
//! window is open), the transport's send buffer for the stream, and the socket's. They are how stale a slow client's
//! events can be; [`EventService`] says how to keep them small.
//! An event larger than a chunk is sent to its end once it was begun, and counts against the
//! [memory budget](HubConfig::memory_budget) until then.
//!
//! # Example
//! This publishes events of `tidegate.v1`. For messages of your own, see [`typed`].
//!
//! ```
//! use std::time::Instant;
//! use tidegate::{EventService, Hub, HubConfig, NewEvent, ServiceConfig, Topic, random_epoch, proto};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hub = Hub::new(HubConfig::new(random_epoch()?));
//! let service = EventService::new(hub.clone(), ServiceConfig::default());
//! // Serve `service`, and publish from anywhere in the process:
//! let event = tidegate::encode(proto::NewEvent {
//!     topic: "orders.eu.created".into(),
//!     payload: "42".into(),
//!     ..Default::default()
//! })?;
//! hub.publish([event], Instant::now())?;
//! # drop(service);
//! # Ok(())
//! # }
//! ```

mod chunk_body;
mod chunks;
mod client_ids;
mod epoch;
mod framing;
mod pace;
mod reason;
mod rest;
mod service;
mod status;
mod stream;
pub mod typed;

pub use tidegate_core::*;
pub use tidegate_macros::encode_once;

/// Handles of the streams of calls, which whoever serves a connection leaves in the extensions of its requests.
pub use tidegate_http2::{StreamControl, StreamHandle};

/// Messages of the wire contract, package `tidegate.v1`.
pub use tidegate_proto::v1 as proto;

/// Descriptors of the messages and services of `tidegate.v1`, encoded, for server reflection.
pub use tidegate_proto::FILE_DESCRIPTOR_SET;

pub use crate::{
    chunks::ChunkStats,
    epoch::random_epoch,
    framing::CHUNK_BYTES,
    reason::{Advice, DOMAIN, OverQuota, Reason},
    service::{
        Access, Authority, CallBody, Caller, Calls, Drainer, EncodeError, Encoded, EventService,
        Gate, Permit, PublishLimits, PublishStream, ResponseBody, ResponseFuture, ServiceConfig,
        check_encoding, encode, limits_in_force,
    },
    status::request_timed_out,
};

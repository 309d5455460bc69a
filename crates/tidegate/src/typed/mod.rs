//! A hub for your own messages, inside your own tonic service.
//!
//! For a method that streams, `rpc Watch(WatchRequest) returns (stream ServerEvent)`, put one line into the
//! build script:
//!
//! ```text
//! .server_mod_attribute("chat.v1", "#[tidegate::encode_once(ServerEvent)]")
//! ```
//!
//! and return a [`Subscription`] from tonic's generated method:
//!
//! ```
//! use tidegate::typed::{Hub, Subscription};
//! # use tidegate::typed::Shared;
//! use tonic::{Request, Response, Status};
//! # #[derive(Clone, PartialEq, prost::Message)]
//! # pub struct ServerEvent { #[prost(string, tag = "1")] text: String, #[prost(uint64, tag = "2")] missed: u64 }
//! # #[derive(Clone, PartialEq, prost::Message)]
//! # pub struct WatchRequest { #[prost(string, tag = "1")] client_id: String, #[prost(string, tag = "2")] room: String }
//! # // What tonic generates, with the attribute.
//! # #[tonic::async_trait]
//! # pub trait Chat: Send + Sync + 'static {
//! #     type WatchStream: futures_core::Stream<Item = Result<Shared<ServerEvent>, Status>> + Send + 'static;
//! #     async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status>;
//! # }
//!
//! struct ChatService {
//!     hub: Hub<ServerEvent>,
//! }
//!
//! #[tonic::async_trait]
//! impl Chat for ChatService {
//!     type WatchStream = Subscription<ServerEvent>;
//!
//!     async fn watch(
//!         &self,
//!         request: Request<WatchRequest>,
//!     ) -> Result<Response<Self::WatchStream>, Status> {
//!         let WatchRequest { client_id, room } = request.into_inner();
//!         let subscription = self.hub.subscribe().client_id(client_id).topic(room);
//!         let subscription = subscription.on_loss(|gap| {
//!             Some(ServerEvent { missed: gap.count, ..Default::default() })
//!         });
//!         Ok(Response::new(subscription.open()?))
//!     }
//! }
//! ```
//!
//! From anywhere in the process, publish:
//!
//! ```
//! # use tidegate::typed::{Hub, Publication};
//! # #[derive(Clone, PartialEq, prost::Message)]
//! # pub struct ServerEvent { #[prost(string, tag = "1")] text: String }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let hub = Hub::<ServerEvent>::new();
//! # let event = ServerEvent { text: "hello".into() };
//! hub.publish(event.clone())?;
//! hub.publish(Publication::new(event.clone()).topic("rooms.blue").key("anna"))?;
//! hub.send("anna", event)?;
//! # Ok(())
//! # }
//! ```
//!
//! The guarantees are those of [the core](tidegate_core): order, no silent loss, isolation, bounded memory,
//! freshness, resume, clean-up, honest endings.
//!
//! # Encoding
//! A value is encoded once, when it is published. Subscribers get it as [`Shared`], which for tonic is a
//! message whose encoding is there already. [`encode_once`](crate::encode_once) puts that type into the
//! generated server in place of the message; the message and the generated client stay as they are.
//!
//! A [`Subscription`] that a method returns itself, and not mapped or in a box, is sent in chunks that are shared
//! by all who are equally far. Any other stream works as well, and costs what tonic's encoding costs; so does one
//! for which the generated server was told to compress, or to limit the size of what it encodes.
//!
//! # Losses
//! A subscription that falls behind by more than its [`Limits`](crate::Limits) loses its oldest events, and
//! knows how many. How the receiver is told is up to you, and has to be said:
//! [`on_loss`](Subscribe::on_loss), [`fail_on_loss`](Subscribe::fail_on_loss),
//! [`ignore_losses`](Subscribe::ignore_losses).
//!
//! # Resuming
//! With [`sequence_field`](Builder::sequence_field) and [`epoch_field`](Builder::epoch_field) each event tells
//! its receiver its [`Position`](crate::Position) in fields of your message. A receiver that comes back with
//! it goes on from there: [`resume_after`](Subscribe::resume_after).
//!
//! # Snapshot, then live
//! A subscriber that needs state first, and then what changes, begins with a
//! [`snapshot`](Subscribe::snapshot) of the application at a [`Position`](crate::Position). Live goes on from
//! there; nothing is missed or repeated in between.
//!
//! # Filters
//! By topic and pattern, [`topic`](Subscribe::topic), and by what a value is, [`matching`](Subscribe::matching):
//! a [`Predicate`] is run once for each event, whatever the number of subscriptions that have it.
//!
//! # In the process
//! A [`Subscription`] is a stream of shared values, for subscribers in the process as well:
//!
//! ```
//! use futures_util::StreamExt as _;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let hub = tidegate::typed::Hub::<String>::new();
//! let mut events = hub.subscribe().ignore_losses().open()?;
//! hub.publish("hello".to_owned())?;
//! let event = events.next().await.expect("it does not end by itself")?;
//! assert_eq!(*event, "hello");
//! # Ok(())
//! # }
//! ```
//!
//! # What can no longer be dropped
//! For each stream, beyond its limits: one chunk of 16 KiB, and the transport's send buffer. An event larger than
//! that counts whole. Where tonic encodes, it is 16 KiB that were taken from the hub, and what tonic encodes into
//! one chunk: 32 KiB, and what the last event is beyond.
//!
//! # Ending
//! A stream that the hub ends says why with its status: see [`Reason`](crate::Reason). For a server that has to
//! end, see [`Hub::serve_until`].
//!
//! A peer that does not read cannot be told. tonic's own server keeps its stream for as long as there is the
//! connection; over connections of the crate `tidegate-transport`, [`Hub::sweep`] has it reset.

mod body;
mod chunk;
mod drain;
mod entry;
mod error;
mod grpc;
mod hooks;
mod hub;
mod inner;
mod losses;
mod position;
mod predicate;
mod publication;
mod shared;
mod snapshot;
mod subscribe;
mod subscription;
mod value;

pub use self::{
    drain::{Shutdown, Unfinished},
    error::Error,
    hooks::{Arrival, Departure, LeaveReason},
    hub::{Builder, Client, Hub},
    losses::{Losses, Undecided},
    predicate::Predicate,
    publication::{DEFAULT_TOPIC, Publication},
    shared::Shared,
    snapshot::Snapshot,
    subscribe::Subscribe,
    subscription::{Closed, Subscription},
    value::Value,
};

#[doc(hidden)]
pub use self::grpc::Grpc;

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
//! A value is encoded once, when it is published. Subscribers get it as [`Shared`], which for tonic is a message whose
//! encoding is there already. [`encode_once`](crate::encode_once) puts that type into the generated server in place of
//! the message; the message and the generated client stay as they are.
//!
//! Return the [`Subscription`] itself, not mapped and not in a box: then it is sent in chunks that all
//! subscribers share that have come equally far. Any other stream works too, at the cost of tonic's encoding.
//! So does a subscription where the generated server was told to compress, or to limit the size of encoded
//! messages.
//!
//! # Losses
//! A subscription that falls behind by more than its [`Limits`](crate::Limits) loses its oldest events, and knows how
//! many. You decide how its receiver is told, and have to say it: [`on_loss`](Subscribe::on_loss),
//! [`fail_on_loss`](Subscribe::fail_on_loss) or [`ignore_losses`](Subscribe::ignore_losses).
//!
//! # Resuming
//! With [`sequence_field`](Builder::sequence_field) and [`epoch_field`](Builder::epoch_field) each event tells
//! its receiver its [`Position`](crate::Position), in fields of your message. A receiver that comes back with a
//! position goes on from there: [`resume_after`](Subscribe::resume_after).
//!
//! # Snapshot, then live
//! A subscriber that needs the state first, and then its changes, begins with a
//! [`snapshot`](Subscribe::snapshot) of the application at a [`Position`](crate::Position). Live events follow
//! from there; nothing is missed or repeated in between.
//!
//! # Filters
//! A subscription selects events by topic and pattern, [`topic`](Subscribe::topic), and by value,
//! [`matching`](Subscribe::matching). A [`Predicate`] runs once for each event, whatever the number of
//! subscriptions that have it.
//!
//! # In the process
//! Subscribers in the process itself use the [`Subscription`] as a stream of shared values:
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
//! # Beyond recall
//! On connections of the crate `tidegate-transport`, what the windows of the peer had room for can no longer be dropped;
//! on tonic's own server, one chunk of 16 KiB and its send buffer. An event larger than a chunk counts whole, and against
//! the [memory budget](Builder::memory_budget). Where tonic encodes, it is 16 KiB taken from the hub, and a chunk of
//! tonic's: 32 KiB and the part of the last event that goes beyond.
//!
//! # Ending
//! A stream that the hub ends says why with its status: see [`Reason`](crate::Reason). To end a server, see
//! [`Hub::serve_until`].
//!
//! On tonic's own server a peer that does not read cannot be told, and its stream stays as long as its connection. On
//! connections of the crate `tidegate-transport` it is told, and [`Hub::sweep`] resets a stream in the middle of a large
//! message.

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

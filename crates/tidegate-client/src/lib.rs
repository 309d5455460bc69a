//! A client for Tidegate: subscriptions that survive, and publishing that says what was accepted.
//!
//! ```no_run
//! use tidegate_client::{Client, SubscribeOptions, Update};
//!
//! # async fn run() -> Result<(), tidegate_client::Error> {
//! let client = Client::connect_lazy("http://127.0.0.1:50051")?;
//! let mut subscription = client.subscribe(SubscribeOptions::new(["orders.>"]));
//! while let Some(update) = subscription.next().await {
//!     match update? {
//!         Update::Event(event) => println!("{} {:?}", event.topic, event.payload),
//!         Update::Gap(gap) => println!("{} events are missing", gap.count),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Ordering
//! A [`Subscription`] yields its events in sequence order, none twice, also across reconnects. The client
//! checks this, and that the indexes the server counts have no hole; a server that breaks either is
//! reported as [`Error::Violation`], which ends the subscription.
//!
//! # Lag
//! Whatever will not be delivered is an [`Update::Gap`] in its place. A program that ignores gaps loses
//! events without knowing.
//!
//! # Resuming
//! After a broken connection the client asks for everything after [`Subscription::position`]: what has
//! been yielded, not what has been received. To survive a restart of your own program, store that position
//! *after* you have processed an update and start from it with [`SubscribeOptions::resume_after`]. What was
//! processed but not stored comes again: at least once. Stored before processing, it would be at most once.
//! Store all of the position: a sequence alone does not tell whether the server still counts as it did, for a
//! server that was started anew may give the number 500 to something else.
//!
//! # Reconnecting
//! Transport errors, silence, and the statuses `UNAVAILABLE`, `UNKNOWN`, `INTERNAL`, `CANCELLED` and
//! `DEADLINE_EXCEEDED` lead to another attempt, after exponential back-off with full jitter
//! ([`Backoff`]) on top of the time the server asked for. Every other status is an answer that asking again
//! would not change: it is an [`Error`] and ends the subscription.
//!
//! # Credentials
//! A token goes with every call, and one from a file is read for each: [`ClientBuilder::token`],
//! [`ClientBuilder::token_file`]. An `https` address is spoken to by TLS, with whom the system trusts or with
//! [`ClientBuilder::tls_ca`]; [`ClientBuilder::tls_identity`] is the client's own certificate. When a server no
//! longer accepts what a subscription began with, it resumes with what the file of the token has then. If that is
//! refused, or there is no such file, it ends with [`Error::Unauthenticated`].
//!
//! # Closing
//! Dropping a [`Subscription`] or a [`Publisher`] closes its stream; nothing goes on in the background.
//!
//! # Connections and memory
//! Each subscription and each publisher has a connection of its own, so that one that is not read cannot hold
//! up another. See [`ClientBuilder::stream_window`] for what a subscription buffers.

mod admin;
mod backoff;
mod client;
mod credentials;
mod error;
mod options;
mod position;
mod publisher;
mod subscription;
mod tracker;

pub use admin::{Admin, ListOptions};
pub use backoff::Backoff;
pub use client::{Client, ClientBuilder};
pub use error::{Error, Violation};
pub use options::{OutOfRange, SubscribeOptions};
pub use position::{ParsePositionError, Position};
pub use publisher::{Closed, Progress, PublishFailure, Publisher, PublisherOptions};
pub use subscription::{Subscription, Update};

/// The protocol's own messages, as this crate takes and returns them.
pub use tidegate_proto::v1::{
    Event, Gap, GapReason, GetServerResponse, GoingAway, Limits, NewEvent, Overflow,
    PublishResponse, Statistics, Subscribed, SubscriptionOrder, SubscriptionState,
};
/// A gRPC status, as it appears in [`Error`] and [`Update`].
pub use tonic::{Code, Status};

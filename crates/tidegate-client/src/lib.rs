//! A client for Tidegate: subscriptions that reconnect and resume, and publishing with an exact account.
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
//! A [`Subscription`] yields its events in sequence order, none twice, across reconnects too. The client verifies
//! this, and that the server's indexes have no hole. If a server breaks either, the subscription ends with
//! [`Error::Violation`].
//!
//! # Lag
//! An event that will not be delivered is counted by an [`Update::Gap`] in its place. A program that ignores gaps
//! loses events silently.
//!
//! # Resuming
//! After a broken connection the client resumes after [`Subscription::position`]: the events that it has yielded, not
//! those that it has received. To survive a restart of your own program, store that position *after* you have
//! processed an update, and start from it with [`SubscribeOptions::resume_after`]. Events that were processed but not
//! stored come again: at least once. If you store the position before processing, delivery is at most once.
//!
//! Store the whole position, epoch and sequence. A sequence alone does not identify an event: a server that was
//! restarted may give the number 500 to another event.
//!
//! # Reconnecting
//! A subscription does what the protocol advises for the reason that the server gave, in the rich details of the status
//! or in the trailer `tidegate-reason`, and for the code if there is no reason or a newer one than this crate knows.
//!
//! Transport errors, silence, and the codes `UNAVAILABLE`, `RESOURCE_EXHAUSTED`, `UNKNOWN`, `INTERNAL`, `CANCELLED` and
//! `DEADLINE_EXCEEDED` lead to another attempt, after exponential back-off with full jitter ([`Backoff`]) on top of
//! the delay that the server asked for. So a subscription resumes after `TOO_SLOW`, `STALLED` and `QUOTA_EXCEEDED` too.
//! Every other code is an answer that a retry would not change. It ends the subscription with an [`Error`].
//!
//! A stream is silent when no byte of a response has arrived for three heartbeat intervals. A large event may take
//! longer than that to arrive over a slow link; it is waited for as long as it moves. A connection on which nothing
//! moves, although the client pings, is dropped after the time of [`ClientBuilder::keep_alive`].
//!
//! Until something is settled there is no position, and the subscription repeats its original request, such as
//! [`SubscribeOptions::replay_last`].
//!
//! # Credentials
//! The client sends a token with every call; a token file is read for each call, so that a token can be renewed. See
//! [`ClientBuilder::token`] and [`ClientBuilder::token_file`]. An `https` endpoint uses TLS and trusts the
//! certificates of the system, or those of [`ClientBuilder::tls_ca`]; [`ClientBuilder::tls_identity`] is the client's
//! own certificate. When a server ends a subscription because its token has expired or was withdrawn, the subscription
//! resumes with the token that the file has then. If the server refuses that token, or the token is not from a file,
//! the subscription ends with [`Error::Unauthenticated`].
//!
//! # Closing
//! Dropping a [`Subscription`] or a [`Publisher`] closes its stream and its connection. Nothing goes on in the
//! background.
//!
//! # Connections and memory
//! Each subscription and each publisher has a connection of its own, so that one that is not read cannot delay
//! another. A subscription buffers up to [`ClientBuilder::stream_window`] bytes, 256 KiB by default, and the batch that
//! it is yielding.

mod admin;
mod advice;
mod backoff;
mod cause;
mod client;
mod connector;
mod credentials;
mod error;
mod liveness;
mod options;
mod outbox;
mod position;
mod publisher;
mod reason;
mod subscription;
mod tls;
mod tracker;

pub use admin::{Admin, ListOptions};
pub use backoff::Backoff;
pub use client::{Client, ClientBuilder};
pub use error::{Error, Violation};
pub use options::{OutOfRange, PublisherOptions, SubscribeOptions};
pub use position::{ParsePositionError, Position};
pub use publisher::{Closed, Progress, PublishFailure, Publisher, PublisherState, Refusal};
pub use reason::reason;
pub use subscription::{Subscription, Update};

/// The protocol's own messages, as this crate takes and returns them.
pub use tidegate_proto::v1::{
    Event, Gap, GapReason, GetServerResponse, GoingAway, Limits, NewEvent, Overflow,
    PublishResponse, PublishStreamState, Statistics, Subscribed, SubscriptionOrder,
    SubscriptionState,
};
/// A gRPC status, as it appears in [`Error`] and [`Update`].
pub use tonic::{Code, Status};

//! Fan events out to many subscribers, without letting a slow one slow the rest.
//!
//! # Vocabulary
//! An [`Event`] is published to a [`Topic`] of a [`Hub`], which gives it a **sequence**. A [`Filter`] is a
//! topic or a pattern of topics. A **feed** holds the events of one filter, numbered densely, for every
//! subscription with that filter. A [`Subscription`] is one cursor in each of its feeds; it owns no queue.
//! A [`Gap`] counts events that a subscription will not be given. A [`Position`], an epoch and a sequence,
//! is all you need to resume.
//!
//! # Guarantees
//! 1. **Order.** A subscription sees its events in sequence order, none twice.
//! 2. **No silent loss.** Every matching event is handed out, or counted by a gap before any event that
//!    follows it.
//! 3. **Isolation.** Publishing never waits for a subscriber.
//! 4. **Bounded memory.** A feed keeps no more than the largest limits among its subscriptions, history
//!    no more than its own limits, and all events together hold no more than the memory budget.
//! 5. **Freshness.** Overflow drops the oldest.
//! 6. **Resume.** From a position still in history nothing is missed and nothing repeated; from any
//!    other, the subscriber is told before the first event. Ranges that the hub was never handed are told at their
//!    place.
//! 7. **Clean-up.** Dropping a subscription frees at once everything that it held.
//! 8. **Honest endings.** A subscription that the hub ends says why: [`CloseReason`].
//!
//! # What this crate does not do
//! It opens no socket, spawns no task, reads no clock, and never looks inside a payload. You hand it the
//! time and wakers.
//!
//! # A hub versus tokio's `broadcast`
//! Both fan out, bound memory, drop the oldest and count what a slow receiver missed.
//! `tokio::sync::broadcast` is one ring of values that every receiver reads whole: its capacity is the same
//! for everybody and counts values, and a receiver that is gone cannot resume. A hub has topics and filters:
//! publishing costs one append for each distinct filter that matches, however many share it. Each
//! subscription has its own limits, in events and in bytes; a gap says which sequences are missing and why;
//! history and positions let a client come back. Take `broadcast` for a few values between tasks, a hub for
//! clients that connect, fall behind and return.
//!
//! # Example
//! ```
//! use std::{task::{Context, Poll, Waker}, time::Instant};
//! use bytes::Bytes;
//! use tidegate_core::{Batch, ClientId, Filter, Hub, HubConfig, NewEvent, Room, SubscribeOptions, Topic};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hub = Hub::new(HubConfig::new(1));
//! let options = SubscribeOptions::new(ClientId::new("me")?, vec![Filter::new("orders.>")?]);
//! let mut subscription = hub.subscribe(options, Instant::now())?;
//!
//! let event = NewEvent::new(Topic::new("orders.eu.created")?, Bytes::from_static(b"42"));
//! let published = hub.publish([event], Instant::now())?;
//! assert_eq!(published.matched, 1);
//!
//! let mut batch = Batch::default();
//! let mut cx = Context::from_waker(Waker::noop());
//! assert_eq!(subscription.poll_next(&mut cx, Room::events(100), &mut batch), Poll::Ready(Ok(())));
//! assert_eq!(batch.events[0].payload(), "42");
//! assert_eq!(subscription.position(), Some(hub.position()));
//! # Ok(())
//! # }
//! ```
//!
//! # Lock order
//! appending -> members of the index -> publish -> history -> feed -> signal, publish -> registry -> signal where an epoch
//! begins, publish -> epoch, and members -> topics of the index. Two feed locks are never held together. No waker is called
//! or dropped under any lock, and no payload is dropped under one.

// The model in `tests/` runs a second time as a unit test, where the strides of a replay are small.
#[cfg(test)]
extern crate self as tidegate_core;
#[cfg(all(test, not(tidegate_loom)))]
#[path = "../tests/model.rs"]
mod model;

mod backlog;
mod bisect;
mod bounds;
mod close;
mod cost;
#[cfg(all(test, not(tidegate_loom)))]
mod cost_tests;
mod counters;
mod event;
mod evicted;
mod feed;
pub mod filter;
mod freed;
mod gap;
mod groups;
#[cfg(all(test, not(tidegate_loom)))]
mod held;
mod history;
mod hub;
mod index;
mod info;
mod latest;
mod limits;
mod options;
mod part;
pub mod predicate;
mod publish;
mod publishing;
mod registry;
mod replay;
mod retained;
mod sending;
mod sequencing;
mod shards;
mod signal;
mod standing;
mod subject;
pub mod subscription;
mod survivors;
mod sync;
pub mod topic;
mod topic_set;
mod transport;
mod trie;
mod wake;

#[cfg(all(test, not(tidegate_loom)))]
mod conflate_tests;
#[cfg(all(test, tidegate_loom))]
mod loom_tests;

pub use crate::{
    close::CloseReason,
    cost::FilterCost,
    counters::{GapStats, Stats},
    event::{Event, NewEvent, Payload, Position},
    filter::Filter,
    gap::{Gap, GapReason},
    history::HistoryLimits,
    hub::{Hub, SubscribeError},
    info::SubscriptionInfo,
    limits::{Limits, Overflow},
    options::{HubConfig, Start, SubscribeOptions},
    predicate::Predicate,
    publish::{PublishError, Published},
    publishing::Publishing,
    registry::{ClientIdPolicy, StallPolicy, SweepRules, Swept},
    sending::Sending,
    subscription::{Batch, EventRange, Room, Subscription},
    topic::{ClientId, NameError, NameErrorKind, Topic},
    topic_set::TopicSet,
    transport::Transport,
};

//! How a hub is made, and what a subscriber asks for.

use std::{sync::Arc, task::Waker};

use crate::{
    event::Position, filter::Filter, history::HistoryLimits, limits::Limits,
    registry::ClientIdPolicy, topic::ClientId,
};

/// How a hub is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubConfig {
    /// Identity of the sequence space that begins with this hub. Choose one at random for each hub: it
    /// is what tells positions of another time apart. The core has no source of chance of its own.
    pub epoch: u64,
    /// How much history is kept.
    pub history: HistoryLimits,
    /// The most that a subscription may ask for; what is asked beyond is lowered to it. Default: 65,536
    /// events, 64 MiB. Its `overflow` has no meaning.
    pub max_limits: Limits,
    /// What happens when a client id that is in use subscribes again.
    pub client_ids: ClientIdPolicy,
    /// The most bytes that events may hold, in history and in feeds, with what they take besides their
    /// payloads. Beyond, the oldest go, for everyone alike, and whoever had still to see one is told. What
    /// is being handed to a subscriber is counted and cannot be taken back. Default: none.
    pub memory_budget: u64,
}

/// What a subscriber asks for.
#[derive(Debug, Clone)]
pub struct SubscribeOptions {
    /// Who it is.
    pub client_id: ClientId,
    /// On whose behalf, where clients prove who they are. A client id that is in use by one principal is
    /// taken for all others, whatever the [`ClientIdPolicy`].
    pub principal: Option<Arc<str>>,
    /// What it wants: the union of these, each event once. Its own `$client.<id>` comes with it.
    pub filters: Vec<Filter>,
    /// How far it may fall behind.
    pub limits: Limits,
    /// Where it begins.
    pub start: Start,
    /// Woken when the subscription was ended and has not been polled for the grace of [`Hub::sweep`](crate::Hub::sweep): its
    /// transport holds something that the peer does not take, so no status can reach it. Whoever owns the
    /// transport drops the stream then.
    pub reset: Option<Waker>,
}

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// With the next event.
    #[default]
    Live,
    /// With what came after a position, as far as history has it, and then live.
    After(Position),
    /// With the newest so many matching events of history, and then live.
    Last(u32),
}

impl HubConfig {
    /// The defaults, in the given epoch.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        const EVENTS: std::num::NonZeroU64 = std::num::NonZeroU64::new(65_536).expect("not zero");
        const BYTES: std::num::NonZeroU64 = std::num::NonZeroU64::new(64 << 20).expect("not zero");
        Self {
            epoch,
            history: HistoryLimits::default(),
            max_limits: Limits {
                max_events: EVENTS,
                max_bytes: BYTES,
                ..Limits::default()
            },
            client_ids: ClientIdPolicy::default(),
            memory_budget: u64::MAX,
        }
    }
}

impl SubscribeOptions {
    /// A live subscription with default limits.
    #[must_use]
    pub fn new(client_id: ClientId, filters: Vec<Filter>) -> Self {
        Self {
            client_id,
            principal: None,
            filters,
            limits: Limits::default(),
            start: Start::default(),
            reset: None,
        }
    }
}

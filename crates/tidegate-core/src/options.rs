//! The configuration of a hub, and the options of a subscriber.

use std::sync::Arc;

use crate::{
    event::Position, filter::Filter, history::HistoryLimits, limits::Limits,
    registry::ClientIdPolicy, topic::ClientId, transport::Transport,
};

/// The configuration of a hub. [`HubConfig::new`] has the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubConfig {
    /// Identity of the sequence space that begins with this hub. Choose one at random for each hub: it
    /// tells positions of an earlier hub apart. The core has no random source of its own.
    pub epoch: u64,
    /// How much history is kept. Default: 10,000 events, 64 MiB, 5 minutes.
    pub history: HistoryLimits,
    /// The largest limits of a subscription; larger ones are lowered to these. Default: 65,536 events,
    /// 64 MiB. The `overflow` of this value is ignored.
    pub max_limits: Limits,
    /// The policy for a client id that is in use and subscribes again. Default:
    /// [`ClientIdPolicy::Takeover`].
    pub client_ids: ClientIdPolicy,
    /// The most bytes that events may hold, in history and in feeds, allocation overhead included. Beyond
    /// it the hub evicts the oldest events, for all subscriptions alike, and a gap of
    /// [`GapReason::Evicted`](crate::GapReason::Evicted) tells each one that had not seen them. Events
    /// that a subscriber holds are counted and cannot be evicted. Those that transports are
    /// [sending](crate::Sending) may have half of it; when they need more, the subscriptions that have been sending
    /// the longest are ended as [stalled](crate::CloseReason::Stalled). Default: [`u64::MAX`], no limit.
    pub memory_budget: u64,
    /// The most work that the filters of one subscription may add to the search for the subscriptions of an event, as
    /// [`FilterCost::work`](crate::FilterCost::work) counts it. Default: 256. Ten thousand literals cost as much as one; filters that people write
    /// cost less than 20.
    pub max_filter_work: u64,
    /// The most bytes that all filters may hold, as [`FilterCost::bytes`](crate::FilterCost::bytes) estimates them; filters that share a feed count once. Beyond it
    /// subscriptions with new filters are refused. Not part of `memory_budget`. Default: 256 MiB.
    pub max_filter_bytes: u64,
}

/// The options of a subscriber. [`SubscribeOptions::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct SubscribeOptions {
    /// The client that holds the subscription.
    pub client_id: ClientId,
    /// The principal on whose behalf it subscribes, where clients authenticate. While one principal uses a
    /// client id, it is taken for all others, whatever the [`ClientIdPolicy`]. Default: `None`.
    pub principal: Option<Arc<str>>,
    /// The events that it wants: the union of these filters, each event once. The client's own topic,
    /// `$client.<id>`, is added.
    pub filters: Vec<Filter>,
    /// How far it may fall behind. [`HubConfig::max_limits`] lowers them.
    pub limits: Limits,
    /// Where it begins. Default: [`Start::Live`].
    pub start: Start,
    /// The transport of this subscription. [`Hub::sweep`](crate::Hub::sweep) asks it whether bytes are moving, and
    /// tells it to give up when the subscription was ended and has taken nothing for the grace of the rules: it
    /// holds a chunk that the peer does not take, so no status can reach the peer. Default: `None`.
    pub transport: Option<Arc<dyn Transport>>,
}

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// With the next event.
    #[default]
    Live,
    /// With the events after a position, as far as history has them, and then live. A position of another
    /// epoch gets all of history.
    After(Position),
    /// With the newest matching events of history, at most this many, and then live.
    Last(u32),
}

impl HubConfig {
    /// The default configuration, in the given epoch.
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
            max_filter_work: 256,
            max_filter_bytes: 256 << 20,
        }
    }
}

impl SubscribeOptions {
    /// Options of a live subscription with default limits and without a principal.
    #[must_use]
    pub fn new(client_id: ClientId, filters: Vec<Filter>) -> Self {
        Self {
            client_id,
            principal: None,
            filters,
            limits: Limits::default(),
            start: Start::default(),
            transport: None,
        }
    }
}

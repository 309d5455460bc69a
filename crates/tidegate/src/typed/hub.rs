//! The typed hub and its builder.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tidegate_core::{
    ClientId, ClientIdPolicy, CloseReason, Filter, HistoryLimits, HubConfig, Limits, NameError,
    NewEvent, Position, Published, Stats, SweepRules, Swept,
};
use tokio::sync::Notify;
use tonic::Status;

use super::{
    error::Error,
    hooks::{Arrival, Departure, Hooks},
    inner::Inner,
    losses::Undecided,
    position::PositionFields,
    publication::Publication,
    shared::{EncodedValue, ValueMemory},
    subscribe::Subscribe,
    value::Value,
};
use crate::{chunks::Sharing, epoch::random_epoch};

/// A hub for values of one message type. Clones are handles to the same hub. See [the module](super) for how to
/// use it in a service.
///
/// When the last handle is dropped, subscriptions go on with what is published already; they do not end.
pub struct Hub<T> {
    pub(super) inner: Arc<Inner<T>>,
}

/// A client that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Client {
    /// Client id that it has.
    pub client_id: ClientId,
    /// Identity of its subscription within the hub.
    pub subscription_id: u64,
    /// Topics and patterns that it subscribed to.
    pub filters: Vec<Filter>,
    /// Number of matching events that it has still to see, including those that its limits will skip.
    pub backlog: u64,
    /// Number of events that were taken for it so far.
    pub delivered: u64,
    /// Number of events that it lost so far, except those of conflation.
    pub lost: u64,
    /// Number of events that newer ones replaced so far under [`Overflow::Conflate`](crate::Overflow::Conflate).
    pub conflated: u64,
}

/// Builder of a [`Hub`]: [`Hub::builder`] begins, [`build`](Self::build) ends.
///
/// ```
/// use tidegate::{HistoryLimits, typed::Hub};
///
/// # #[derive(Clone, PartialEq, prost::Message)]
/// # pub struct Price { #[prost(uint64, tag = "1")] cents: u64, #[prost(uint64, tag = "9")] sequence: u64 }
/// let hub = Hub::<Price>::builder()
///     .sequence_field(9)
///     .memory_budget(256 << 20)
///     .on_leave(|left| println!("{} has gone, {} events lost", left.client_id, left.lost))
///     .build();
/// # drop(hub);
/// ```
#[must_use = "it makes a hub with `build`"]
pub struct Builder<T> {
    config: HubConfig,
    limits: Limits,
    hooks: Hooks,
    reconnect_spread: Duration,
    sequence_field: u32,
    epoch_field: u32,
    value_memory: Option<Box<ValueMemory<T>>>,
}

// ===== impl Builder =====

impl<T: Value> Builder<T> {
    fn new() -> Self {
        Self {
            config: HubConfig::new(0),
            limits: Limits::default(),
            hooks: Hooks::new(),
            reconnect_spread: Duration::from_secs(5),
            sequence_field: 0,
            epoch_field: 0,
            value_memory: None,
        }
    }

    /// Sets what happens when a client id that is in use subscribes again. Default: [`ClientIdPolicy::Takeover`].
    pub fn client_ids(mut self, policy: ClientIdPolicy) -> Self {
        self.config.client_ids = policy;
        self
    }

    /// Sets how far a subscription may fall behind that has no limits of its own. Default: 1,024 events and 1
    /// MiB, beyond which it loses its oldest.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the largest limits that a subscription can have. One that asks for more gets these. Default: 65,536
    /// events and 64 MiB.
    pub fn max_limits(mut self, limits: Limits) -> Self {
        self.config.max_limits = limits;
        self
    }

    /// Sets how much history is kept for subscriptions that resume. Default: that of [`HistoryLimits`].
    pub fn history(mut self, history: HistoryLimits) -> Self {
        self.config.history = history;
        self
    }

    /// Sets the maximum number of bytes that events hold in memory: each as a value and encoded, and with what they take
    /// besides. Beyond it the oldest events go, for every subscription alike, and those that had still to see one
    /// get a gap. Default: no limit.
    ///
    /// Events larger than a chunk that streams are sending may hold half of it, each counted once. When they need more,
    /// the streams that have been sending the longest are ended with
    /// [`Reason::Stalled`](crate::Reason::Stalled).
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.config.memory_budget = bytes;
        self
    }

    /// Sets how many bytes of memory the [budget](Self::memory_budget) counts for a value, in addition to the size of
    /// its type and its encoding: those of its strings, lists and maps. Set it for messages that take
    /// much more memory than they have bytes on the wire, such as lists of small numbers. `memory` is
    /// called when a value is published. Default: as many as its encoding has.
    pub fn value_memory(mut self, memory: impl Fn(&T) -> usize + Send + Sync + 'static) -> Self {
        self.value_memory = Some(Box::new(memory));
        self
    }

    /// Sets the number of a `uint64` field of the message, in which each receiver finds the sequence of the
    /// event. Together with the epoch it is what a receiver needs to resume. Leave the field unset in the
    /// values that you publish. Default: 0, for none.
    pub fn sequence_field(mut self, number: u32) -> Self {
        self.sequence_field = number;
        self
    }

    /// Sets the number of a `fixed64` field of the message, in which each receiver finds the epoch of the hub.
    /// Leave the field unset in the values that you publish. Default: 0, for none.
    pub fn epoch_field(mut self, number: u32) -> Self {
        self.epoch_field = number;
        self
    }

    /// Sets the identity of this hub's sequence space. A hub that numbers its events anew needs a new one. Default,
    /// and 0: a random one.
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.config.epoch = epoch;
        self
    }

    /// Sets the maximum delay after which clients are told to come back when the hub closes. Each gets a delay
    /// between zero and this, so that they do not all come at once. Default: 5 s.
    pub fn reconnect_spread(mut self, spread: Duration) -> Self {
        self.reconnect_spread = spread;
        self
    }

    /// Sets a hook that is called when a client comes. Default: none.
    ///
    /// Hooks are called in the order in which things happened, one at a time, outside of all locks. They run on
    /// a thread on which one of these things happened, often one that serves streams, so they must not block.
    /// They may use the hub.
    pub fn on_join(mut self, hook: impl Fn(&Arrival) + Send + Sync + 'static) -> Self {
        self.hooks.on_join = Some(Box::new(hook));
        self
    }

    /// Sets a hook that is called when a client goes, with the cause and its final counts. Default: none.
    pub fn on_leave(mut self, hook: impl Fn(&Departure) + Send + Sync + 'static) -> Self {
        self.hooks.on_leave = Some(Box::new(hook));
        self
    }

    /// Sets a hook that is called when a topic or pattern gets its first subscriber, for example to begin to fetch its
    /// data. Default: none.
    pub fn on_first_subscriber(mut self, hook: impl Fn(&Filter) + Send + Sync + 'static) -> Self {
        self.hooks.on_first = Some(Box::new(hook));
        self
    }

    /// Sets a hook that is called when a topic or pattern has lost its last subscriber. Default: none.
    pub fn on_last_subscriber(mut self, hook: impl Fn(&Filter) + Send + Sync + 'static) -> Self {
        self.hooks.on_last = Some(Box::new(hook));
        self
    }

    /// Makes the hub.
    ///
    /// # Panics
    /// When no epoch was given and the operating system provides no randomness.
    #[must_use]
    pub fn build(mut self) -> Hub<T> {
        if self.config.epoch == 0 {
            self.config.epoch = random_epoch().expect("the system has randomness");
        }
        let position =
            PositionFields::new(self.config.epoch, self.sequence_field, self.epoch_field);
        let inner = Inner {
            core: tidegate_core::Hub::new(self.config),
            hooks: self.hooks,
            entries: Mutex::default(),
            departed: Notify::new(),
            limits: self.limits,
            reconnect_spread: self.reconnect_spread,
            position,
            value_memory: self.value_memory,
            sharing: Sharing::new(),
        };
        Hub {
            inner: Arc::new(inner),
        }
    }
}

// ===== impl Hub =====

impl<T: Value> Hub<T> {
    /// Makes a hub with the defaults of its [`Builder`].
    ///
    /// # Panics
    /// When the operating system provides no randomness for an epoch.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Begins to build a hub with other than the default settings.
    pub fn builder() -> Builder<T> {
        Builder::new()
    }

    /// Publishes a value, or a [`Publication`] with a topic and a key, and returns its position and the number of
    /// subscriptions that it matched. The value is encoded here, once. It never waits for a subscriber.
    ///
    /// ```
    /// # use tidegate::typed::{Hub, Publication};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let hub = Hub::<String>::new();
    /// let _blue = hub.subscribe().topic("rooms.blue").ignore_losses().open()?;
    /// let published = hub.publish(Publication::new("hello".to_owned()).topic("rooms.blue"))?;
    /// assert_eq!(published.matched, 1);
    /// // Without a topic of its own, a value goes to the default one.
    /// let published = hub.publish("anyone?".to_owned())?;
    /// assert_eq!((published.first_sequence, published.matched), (2, 0));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the topic is not valid, or the hub is closed. Nothing is published then.
    pub fn publish(&self, event: impl Into<Publication<T>>) -> Result<Published, Error> {
        self.publish_all([event])
    }

    /// Publishes several values in their order, with no others between them. They become visible at once, unless
    /// there are so many that [they are published in parts](tidegate_core::Hub::publish).
    ///
    /// # Errors
    /// When a topic is not valid, or the hub is closed. None is published then.
    pub fn publish_all<E>(&self, events: impl IntoIterator<Item = E>) -> Result<Published, Error>
    where
        E: Into<Publication<T>>,
    {
        let events: Result<Vec<_>, Error> = events
            .into_iter()
            .map(|event| self.encode(event.into()))
            .collect();
        let published = self.inner.core.publish(events?, Instant::now());
        published.map_err(Error::Publish)
    }

    /// Publishes a value to one client alone, whatever it has subscribed to. The value is part of that client's
    /// order and counts like any other. Returns whether the client is here; if it is not, the value waits in
    /// history until the client resumes.
    ///
    /// # Errors
    /// When the client id is not valid, or the hub is closed.
    pub fn send<N>(&self, client: N, value: T) -> Result<bool, Error>
    where
        N: TryInto<ClientId>,
        N::Error: Into<NameError>,
    {
        let client = client.try_into().map_err(|e| Error::ClientId(e.into()))?;
        let published = self.publish(Publication::new(value).to(&client))?;
        Ok(published.matched > 0)
    }

    fn encode(&self, event: Publication<T>) -> Result<NewEvent<EncodedValue<T>>, Error> {
        let (value, topic, key) = event.into_parts()?;
        Ok(NewEvent {
            topic,
            key,
            payload: EncodedValue::encoded(
                value,
                self.inner.position,
                self.inner.value_memory.as_deref(),
            ),
        })
    }

    /// Begins to describe a subscription. It needs a policy for losses before it can be opened.
    pub fn subscribe(&self) -> Subscribe<T, Undecided> {
        Subscribe::new(Arc::clone(&self.inner))
    }

    /// Lists every subscription, in the order in which they came.
    #[must_use]
    pub fn clients(&self) -> Vec<Client> {
        let subscriptions = self.inner.core.subscriptions();
        let entries = self.inner.entries();
        let clients = subscriptions.into_iter().filter_map(|info| {
            let entry = entries.get(&info.id)?;
            Some(Client {
                client_id: info.client_id,
                subscription_id: info.id,
                filters: entry.filters.to_vec(),
                backlog: info.backlog,
                delivered: info.handed_off,
                lost: info.lost,
                conflated: info.conflated,
            })
        });
        clients.collect()
    }

    /// Returns the number of subscriptions that have exactly this topic or pattern.
    #[must_use]
    pub fn subscribers(&self, filter: &Filter) -> usize {
        self.inner.hooks.subscribers(filter)
    }

    /// Ends every subscription of a client with `status`, and returns their number. Those that begin later are
    /// not ended.
    pub fn disconnect(&self, client: &ClientId, status: &Status) -> usize {
        let ids: Vec<u64> = {
            let entries = self.inner.entries();
            let of_client = entries
                .iter()
                .filter(|(_, entry)| entry.client_id == *client);
            of_client
                .inspect(|(_, entry)| entry.set_status(status.clone()))
                .map(|(id, _)| *id)
                .collect()
        };
        // By identity: a subscription of the same client that came in the meantime is another one, and stays.
        ids.into_iter()
            .filter(|id| self.inner.core.end(*id, CloseReason::Disconnected))
            .count()
    }

    /// Ends every subscription with `UNAVAILABLE`, a delay after which to come back, and a position to resume
    /// from. From then on the hub refuses to publish and to subscribe. To end a server with it, see
    /// [`serve_until`](Self::serve_until).
    pub fn close(&self) {
        self.inner.core.close(CloseReason::ShuttingDown);
    }

    /// Looks for subscriptions that do not take their events, and ends those that the rules name. It also drops history
    /// that is too old. Call it about once a second: it is what ends a subscription with
    /// [`Overflow::Disconnect`](crate::Overflow::Disconnect) whose transport never asks for more.
    pub fn sweep(&self, rules: &SweepRules) -> Swept {
        let now = Instant::now();
        self.inner.core.expire_history(now);
        self.inner.core.sweep(rules, now)
    }

    /// Returns the position of the newest event.
    #[must_use]
    pub fn position(&self) -> Position {
        self.inner.core.position()
    }

    /// Returns the counters of the hub.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.core.stats()
    }
}

impl<T> Clone for Hub<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<T: Value> Default for Hub<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Hub<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Builder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_values_is_counted() {
        let held_by = |hub: Hub<String>| {
            hub.publish("x".repeat(10_000)).unwrap();
            hub.stats().retained_bytes
        };
        // The string, and its encoding.
        let as_encoded = held_by(Hub::new());
        assert!((20_000..25_000).contains(&as_encoded), "{as_encoded}");
        let none = held_by(Hub::builder().value_memory(|_| 0).build());
        assert!((10_000..15_000).contains(&none), "{none}");
        let told = Hub::builder().value_memory(|value: &String| 8 * value.len());
        let told = held_by(told.build());
        assert!((90_000..100_000).contains(&told), "{told}");
    }
}

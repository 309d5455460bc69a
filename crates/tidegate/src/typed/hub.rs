//! The typed hub and how it is made.

use std::{
    fmt,
    marker::PhantomData,
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
    shared::EncodedValue,
    subscribe::Subscribe,
    value::Value,
};
use crate::{chunks::Sharing, epoch::random_epoch};

/// A hub for values of one message type. Its clones are handles to the same hub. See
/// [the module](super).
pub struct Hub<T> {
    pub(super) inner: Arc<Inner<T>>,
}

/// A client that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Client {
    /// Who it is.
    pub client_id: ClientId,
    /// The identity of its subscription within the hub.
    pub subscription_id: u64,
    /// What it wants.
    pub filters: Vec<Filter>,
    /// How many matching events it has still to see, those included that its limits will skip.
    pub backlog: u64,
    /// How many events were taken for it so far.
    pub delivered: u64,
    /// How many events it lost so far, those of conflation aside.
    pub lost: u64,
    /// How many events newer ones replaced so far, because it asked for that.
    pub conflated: u64,
}

/// Makes a [`Hub`].
#[must_use = "it makes a hub with `build`"]
pub struct Builder<T> {
    config: HubConfig,
    limits: Limits,
    hooks: Hooks,
    reconnect_spread: Duration,
    sequence_field: u32,
    epoch_field: u32,
    value: PhantomData<fn() -> T>,
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
            value: PhantomData,
        }
    }

    /// What happens when a client id that is in use subscribes again. Default:
    /// [`ClientIdPolicy::Takeover`].
    pub fn client_ids(mut self, policy: ClientIdPolicy) -> Self {
        self.config.client_ids = policy;
        self
    }

    /// How far a subscription may fall behind that does not say so itself. Default: 1,024 events and
    /// 1 MiB, and beyond that it loses its oldest.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The largest limits that a subscription can have: one that asks for more is held to these. Default: 65,536
    /// events, 64 MiB.
    pub fn max_limits(mut self, limits: Limits) -> Self {
        self.config.max_limits = limits;
        self
    }

    /// How much history is kept, for those who resume. Default: that of [`HistoryLimits`].
    pub fn history(mut self, history: HistoryLimits) -> Self {
        self.config.history = history;
        self
    }

    /// The most bytes that events may hold, encoded, with what they take besides; beyond, the oldest go, for
    /// everyone alike, and whoever had still to see one is told. The values are kept beside their encodings
    /// and not counted. Default: none.
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.config.memory_budget = bytes;
        self
    }

    /// The number of a `uint64` field of the message, in which each receiver finds the sequence of the
    /// event: what it needs to resume, together with the epoch. Leave the field unset in what you publish.
    /// Default: 0, for none.
    pub fn sequence_field(mut self, number: u32) -> Self {
        self.sequence_field = number;
        self
    }

    /// The number of a `fixed64` field of the message, in which each receiver finds the epoch of the hub.
    /// Default: 0, for none.
    pub fn epoch_field(mut self, number: u32) -> Self {
        self.epoch_field = number;
        self
    }

    /// Identity of the sequence space of this hub. Default: random.
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.config.epoch = epoch;
        self
    }

    /// When the hub closes, clients are told to come back after a delay between zero and this, so that they
    /// do not all come at once. Default: 5 s.
    pub fn reconnect_spread(mut self, spread: Duration) -> Self {
        self.reconnect_spread = spread;
        self
    }

    /// Called when a client comes. Hooks are called in the order of what happened, one at a time, outside of
    /// all locks, on the thread on which one of it happened; so they must not block. Default: none.
    pub fn on_join(mut self, hook: impl Fn(&Arrival) + Send + Sync + 'static) -> Self {
        self.hooks.on_join = Some(Box::new(hook));
        self
    }

    /// Called when a client goes, with the reason and what it had come to. Default: none.
    pub fn on_leave(mut self, hook: impl Fn(&Departure) + Send + Sync + 'static) -> Self {
        self.hooks.on_leave = Some(Box::new(hook));
        self
    }

    /// Called when a topic, or pattern, gets its first subscriber: to begin to fetch what nobody wanted
    /// before. Default: none.
    pub fn on_first_subscriber(mut self, hook: impl Fn(&Filter) + Send + Sync + 'static) -> Self {
        self.hooks.on_first = Some(Box::new(hook));
        self
    }

    /// Called when a topic, or pattern, has lost its last subscriber. Default: none.
    pub fn on_last_subscriber(mut self, hook: impl Fn(&Filter) + Send + Sync + 'static) -> Self {
        self.hooks.on_last = Some(Box::new(hook));
        self
    }

    /// Makes the hub.
    ///
    /// # Panics
    /// When no epoch was given and the operating system has no randomness to give.
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
            sharing: Sharing::new(),
        };
        Hub {
            inner: Arc::new(inner),
        }
    }
}

// ===== impl Hub =====

impl<T: Value> Hub<T> {
    /// A hub with the defaults of its [`Builder`].
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// What a hub is made with.
    pub fn builder() -> Builder<T> {
        Builder::new()
    }

    /// Publishes a value, or a [`Publication`] with a topic and a key. It is encoded here, once. Never waits
    /// for a subscriber.
    ///
    /// # Errors
    /// When the topic is not valid, or the hub is closed; then nothing is published.
    pub fn publish(&self, event: impl Into<Publication<T>>) -> Result<Published, Error> {
        self.publish_all([event])
    }

    /// Publishes several in their order, with no others' between them. All become visible at once.
    ///
    /// # Errors
    /// When a topic is not valid, or the hub is closed; then none is published.
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

    /// Publishes a value to one client alone, whatever it has subscribed to, in its order and with its
    /// accounting. Returns whether it is here; if it is not, the value is in history, for it to resume.
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
            payload: EncodedValue::encoded(value, self.inner.position),
        })
    }

    /// Begins to describe a subscription. It must say what becomes of losses before it can be opened.
    pub fn subscribe(&self) -> Subscribe<T, Undecided> {
        Subscribe::new(Arc::clone(&self.inner))
    }

    /// Who is here: every subscription, in the order in which they came.
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

    /// How many subscriptions have exactly this topic or pattern.
    #[must_use]
    pub fn subscribers(&self, filter: &Filter) -> usize {
        self.inner.hooks.subscribers(filter)
    }

    /// Ends every subscription of a client with `status`. Returns how many.
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
        // One that came meanwhile, and took over, is another.
        ids.into_iter()
            .filter(|id| self.inner.core.end(*id, CloseReason::Disconnected))
            .count()
    }

    /// Ends every subscription with `UNAVAILABLE`, a delay after which to come back, and a position to resume
    /// from, and lets no further one in. To serve until then and end in good order, see
    /// [`serve_until`](Self::serve_until).
    pub fn close(&self) {
        self.inner.core.close(CloseReason::ShuttingDown);
    }

    /// Looks for consumers that do not take what is there, and ends those that the rules say. Call it every
    /// second or so where subscriptions with [`Overflow::Disconnect`](crate::Overflow::Disconnect) are to be
    /// ended although their transport never asks for more.
    pub fn sweep(&self, rules: &SweepRules) -> Swept {
        let now = Instant::now();
        self.inner.core.expire_history(now);
        self.inner.core.sweep(rules, now)
    }

    /// The position of the newest event.
    #[must_use]
    pub fn position(&self) -> Position {
        self.inner.core.position()
    }

    /// The state of the hub in numbers.
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

//! The description of a subscription, and its opening.

use std::{fmt, future::Future, sync::Arc, time::Instant};

use tidegate_core::{
    ClientId, Filter, Gap, Limits, NameError, Overflow, Position, Start, SubscribeOptions,
};
use tonic::Status;

use super::{
    error::Error,
    inner::Inner,
    losses::{Losses, Undecided},
    predicate::Predicate,
    snapshot::{Load, Snapshot},
    subscription::Subscription,
    value::Value,
};
use crate::{client_ids::anonymous, stream::LateStream};

/// Description of a subscription: [`Hub::subscribe`](super::Hub::subscribe) begins it, [`open`](Self::open) ends it.
///
/// It can be opened only with a policy for losses: [`on_loss`](Self::on_loss),
/// [`fail_on_loss`](Self::fail_on_loss) or [`ignore_losses`](Self::ignore_losses). There is no default, because
/// any default would hide losses from somebody. So this does not compile:
///
/// ```compile_fail,E0599
/// # let hub = tidegate::typed::Hub::<String>::new();
/// let subscription = hub.subscribe().open();
/// ```
#[must_use = "nothing is subscribed before `open`"]
pub struct Subscribe<T, L = Losses<T>> {
    hub: Arc<Inner<T>>,
    client: Option<Result<ClientId, NameError>>,
    filters: Vec<Result<Filter, NameError>>,
    limits: Limits,
    start: Start,
    predicate: Option<Predicate<T>>,
    snapshot: Option<Load<T>>,
    losses: L,
}

impl<T: Value> Subscribe<T, Undecided> {
    pub(super) fn new(hub: Arc<Inner<T>>) -> Self {
        Self {
            limits: hub.limits,
            hub,
            client: None,
            filters: Vec::new(),
            start: Start::Live,
            predicate: None,
            snapshot: None,
            losses: Undecided::new(),
        }
    }

    /// Tells losses by a message of your own, which stands exactly where events are missing.
    ///
    /// `message` is given each [`Gap`], with its exact count, and returns the message, or `None` for a gap that
    /// the receiver need not know of. Values that [`Overflow::Conflate`] superseded are gaps too, with a reason
    /// of their own. It is called while the stream is polled, and must not block.
    ///
    /// ```
    /// use futures_util::StreamExt as _;
    /// use tidegate::{Limits, typed::Hub};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let hub = Hub::<String>::new();
    /// let limits = Limits { max_events: 2_u64.try_into()?, ..Limits::default() };
    /// let subscription = hub.subscribe().limits(limits);
    /// let mut events = subscription
    ///     .on_loss(|gap| Some(format!("{} missed", gap.count)))
    ///     .open()?;
    /// hub.publish_all(["a", "b", "c", "d", "e"].map(str::to_owned))?;
    /// let mut received = Vec::new();
    /// for _ in 0..3 {
    ///     let event = events.next().await.expect("it does not end by itself")?;
    ///     received.push(String::clone(&event));
    /// }
    /// assert_eq!(received, ["3 missed", "d", "e"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_loss(self, message: impl FnMut(&Gap) -> Option<T> + Send + 'static) -> Subscribe<T> {
        self.with_losses(Losses::report(message))
    }

    /// Ends the stream with a status at the first loss, after the events before it. Values that [`Overflow::Conflate`]
    /// superseded are no losses. `status` is called while the stream is polled, and must not block.
    pub fn fail_on_loss(self, status: impl FnMut(&Gap) -> Status + Send + 'static) -> Subscribe<T> {
        self.with_losses(Losses::fail(status))
    }

    /// Hides losses from the receiver: it sees the newest events and does not learn of others. Losses are still
    /// counted, in [`Hub::clients`](super::Hub::clients) and [`Departure`](super::Departure).
    pub fn ignore_losses(self) -> Subscribe<T> {
        self.with_losses(Losses::ignore())
    }

    fn with_losses(self, losses: Losses<T>) -> Subscribe<T> {
        Subscribe {
            hub: self.hub,
            client: self.client,
            filters: self.filters,
            limits: self.limits,
            start: self.start,
            predicate: self.predicate,
            snapshot: self.snapshot,
            losses,
        }
    }
}

impl<T: Value, L> Subscribe<T, L> {
    /// Sets the client id: one token of at most 128 bytes. It is the address for
    /// [`Hub::send`](super::Hub::send), and only one subscription has it at a time, unless the hub's
    /// [`ClientIdPolicy`](crate::ClientIdPolicy) allows several. Default: a random one.
    pub fn client_id<N>(mut self, id: N) -> Self
    where
        N: TryInto<ClientId>,
        N::Error: Into<NameError>,
    {
        self.client = Some(id.try_into().map_err(Into::into));
        self
    }

    /// Adds a topic or a pattern of topics: `rooms.blue`, `rooms.*`, `orders.>`. An event that several of them
    /// match comes once. Default, if you add none: every event, except those for single other clients.
    pub fn topic<N>(mut self, filter: N) -> Self
    where
        N: TryInto<Filter>,
        N::Error: Into<NameError>,
    {
        self.filters.push(filter.try_into().map_err(Into::into));
        self
    }

    /// Adds several topics or patterns.
    pub fn topics<N>(mut self, filters: impl IntoIterator<Item = N>) -> Self
    where
        N: TryInto<Filter>,
        N::Error: Into<NameError>,
    {
        for filter in filters {
            self = self.topic(filter);
        }
        self
    }

    /// Sets how far it may fall behind, and what happens then. Limits above the hub's maximum become that. Default: the
    /// hub's [`limits`](super::Builder::limits).
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets what happens when it falls behind by more than its limits. Default: that of the hub's limits.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.limits.overflow = overflow;
        self
    }

    /// Sets where it begins. Default: [`Start::Live`], with the next event.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Begins after a position, with the events that history still has, and goes on live. Nothing is repeated, and if
    /// events are missing a [`Gap`] says so before the first event. `None` begins with the next event.
    pub fn resume_after(self, position: Option<Position>) -> Self {
        self.start(position.map_or(Start::Live, Start::After))
    }

    /// Selects only values that pass the predicate. Values for this client alone come in any case. Gaps count
    /// only selected values. Default: all.
    pub fn matching(mut self, predicate: &Predicate<T>) -> Self {
        self.predicate = Some(predicate.clone());
        self
    }

    /// Begins with a snapshot of the application's state, and goes on live from the snapshot's position:
    /// nothing is missed or repeated in between. Default: none.
    ///
    /// The subscription is registered first. Then `load` is called with the position at which that was, and its
    /// snapshot must not be older; if it is, the stream ends with `INTERNAL`. While the snapshot is loaded and
    /// sent, the subscription's limits apply to the live events that collect. A status in place of a snapshot
    /// ends the stream.
    ///
    /// A subscription that does not begin with [`Start::Live`] gets no snapshot: one that comes back with a
    /// position resumes from there.
    ///
    /// ```
    /// use futures_util::StreamExt as _;
    /// use tidegate::typed::{Hub, Snapshot};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let hub = Hub::<String>::new();
    /// let description = hub.subscribe().ignore_losses();
    /// let mut events = description
    ///     .snapshot(|position| async move { Ok(Snapshot::new(position, ["state".to_owned()])) })
    ///     .open()?;
    /// hub.publish("change".to_owned())?;
    /// assert_eq!(*events.next().await.expect("a value of the snapshot")?, "state");
    /// assert_eq!(*events.next().await.expect("a live event")?, "change");
    /// # Ok(())
    /// # }
    /// ```
    pub fn snapshot<F>(mut self, load: impl FnOnce(Position) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Snapshot<T>, Status>> + Send + 'static,
    {
        self.snapshot = Some(Box::new(move |position| Box::pin(load(position))));
        self
    }
}

impl<T: Value> Subscribe<T> {
    /// Opens the subscription. From here on every matching event is delivered or counted by a gap.
    ///
    /// A method of a service with [`encode_once`](crate::encode_once) returns it as its response's stream. One that returns
    /// something around it, or whose service has no such attribute, [attaches](Subscription::attach) it first to the stream
    /// of the call.
    ///
    /// ```
    /// use futures_util::StreamExt as _;
    /// use tidegate::typed::{Hub, Publication};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let hub = Hub::<String>::new();
    /// let mut blue = hub.subscribe().client_id("anna").topic("rooms.blue").ignore_losses().open()?;
    /// hub.publish(Publication::new("hello".to_owned()).topic("rooms.blue"))?;
    /// hub.publish(Publication::new("hi".to_owned()).topic("rooms.red"))?;
    /// hub.send("anna", "psst".to_owned())?;
    /// assert_eq!(*blue.next().await.expect("it does not end by itself")?, "hello");
    /// assert_eq!(*blue.next().await.expect("it does not end by itself")?, "psst");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When a name is not valid, the client id is in use, the position is ahead of the hub, or the hub is
    /// closed. Nothing has changed then.
    pub fn open(self) -> Result<Subscription<T>, Error> {
        let filters: Result<Vec<_>, _> = self.filters.into_iter().collect();
        let mut filters = filters.map_err(Error::Filter)?;
        if filters.is_empty() {
            filters.push(Filter::everything());
        }
        filters.sort_unstable();
        filters.dedup();
        let stream = Arc::<LateStream>::default();
        let options = SubscribeOptions {
            client_id: client_id(self.client)?,
            principal: None,
            filters: filters.clone(),
            limits: self.limits,
            start: self.start,
            transport: Some(Arc::clone(&stream) as _),
        };
        let core = &self.hub.core;
        let predicate = self.predicate.map(|predicate| predicate.core());
        let subscription = core
            .subscribe_matching(options, predicate.as_ref(), Instant::now())
            .map_err(Error::Subscribe)?;
        // One that resumes has its state: a snapshot would repeat it, and could not stand before the replay.
        let snapshot = self.snapshot.filter(|_| self.start == Start::Live);
        Ok(Subscription::new(
            self.hub,
            subscription,
            filters,
            self.losses,
            snapshot,
            stream,
        ))
    }
}

fn client_id(given: Option<Result<ClientId, NameError>>) -> Result<ClientId, Error> {
    match given {
        Some(given) => given.map_err(Error::ClientId),
        None => anonymous().map_err(|_| Error::NoRandomness),
    }
}

impl<T, L> fmt::Debug for Subscribe<T, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribe")
            .field("client", &self.client)
            .field("filters", &self.filters)
            .field("limits", &self.limits)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

//! Describing a subscription, and opening it.

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
use crate::{client_ids::anonymous, reset};

/// A subscription that is about to be opened.
///
/// It can be opened only when it was said what becomes of losses: [`on_loss`](Self::on_loss),
/// [`fail_on_loss`](Self::fail_on_loss) or [`ignore_losses`](Self::ignore_losses). There is no default,
/// because any default would hide from somebody what they lose.
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

    /// Losses are told by a message of the application, which stands exactly where events are missing.
    ///
    /// `message` is given each [`Gap`], with its exact count, and returns the message, or `None` for one that
    /// the receiver need not know of. Superseded values of [`Overflow::Conflate`] are gaps too, with a reason
    /// of their own. It is called while the stream is polled, and must not block.
    pub fn on_loss(self, message: impl FnMut(&Gap) -> Option<T> + Send + 'static) -> Subscribe<T> {
        self.with_losses(Losses::report(message))
    }

    /// A loss ends the stream with a status. What a subscription with [`Overflow::Conflate`] has seen
    /// superseded was not lost.
    pub fn fail_on_loss(self, status: impl FnMut(&Gap) -> Status + Send + 'static) -> Subscribe<T> {
        self.with_losses(Losses::fail(status))
    }

    /// The receiver is not told what it loses: it sees the newest events, and does not know of others. Losses
    /// are still counted, in [`Hub::clients`](super::Hub::clients) and [`Departure`](super::Departure).
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
    /// Who subscribes: one token of at most 128 bytes, by which others can send to it
    /// ([`Hub::send`](super::Hub::send)) and which no two hold at a time, unless the hub was made to allow that. Default: a
    /// random one.
    pub fn client_id<N>(mut self, id: N) -> Self
    where
        N: TryInto<ClientId>,
        N::Error: Into<NameError>,
    {
        self.client = Some(id.try_into().map_err(Into::into));
        self
    }

    /// Adds a topic, or a pattern of topics: `rooms.blue`, `rooms.*`, `orders.>`. Each event comes once,
    /// however many match it. Default, when none is added: everything but what is sent to single clients.
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

    /// How far it may fall behind, and what happens then. Default: what the hub was made with.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// What happens when it falls behind by more than its limits. Default: what the hub was made with.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.limits.overflow = overflow;
        self
    }

    /// Where it begins. Default: with the next event.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// It begins after a position, as far as history has it: nothing is missed and nothing repeated, or a
    /// [`Gap`] says that something is missing before the first event. `None` begins with the next event.
    pub fn resume_after(self, position: Option<Position>) -> Self {
        self.start(position.map_or(Start::Live, Start::After))
    }

    /// Only values that pass the predicate, besides what is sent to this client alone. Gaps count only such
    /// values, too. Default: all.
    pub fn matching(mut self, predicate: &Predicate<T>) -> Self {
        self.predicate = Some(predicate.clone());
        self
    }

    /// It begins with a snapshot of the application's state, and goes on live from the snapshot's position:
    /// nothing is missed or repeated in between. Default: none.
    ///
    /// The subscription is registered first. Then `load` is called with the position at which that was; what
    /// it returns must not be older than that. While it loads and is sent, the subscription's limits hold for
    /// what comes live. A status in place of a snapshot ends the stream.
    ///
    /// It is for those who begin: whoever comes back with a position resumes without it.
    pub fn snapshot<F>(mut self, load: impl FnOnce(Position) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Snapshot<T>, Status>> + Send + 'static,
    {
        self.snapshot = Some(Box::new(move |position| Box::pin(load(position))));
        self
    }
}

impl<T: Value> Subscribe<T> {
    /// Opens the subscription. From here on it misses nothing that it is not told of.
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
        let options = SubscribeOptions {
            client_id: client_id(self.client)?,
            principal: None,
            filters: filters.clone(),
            limits: self.limits,
            start: self.start,
            reset: reset::current(),
        };
        let core = &self.hub.core;
        let predicate = self.predicate.map(|predicate| predicate.core());
        let subscription = core
            .subscribe_matching(options, predicate.as_ref(), Instant::now())
            .map_err(Error::Subscribe)?;
        let snapshot = self.snapshot.filter(|_| self.start == Start::Live);
        Ok(Subscription::new(
            self.hub,
            subscription,
            filters,
            self.losses,
            snapshot,
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

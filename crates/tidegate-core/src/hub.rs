//! The hub: publishes events to whoever wants them, and lets subscribers in.
//!
//! # Publishing
//! [`Hub::publish`] never waits for a subscriber. It numbers the events, appends them to history and to
//! the feed of each distinct filter that matches, and wakes who was parked there. Its cost is in
//! distinct matching filters and parked subscribers, never in the backlog of anyone.
//!
//! # Closing
//! [`Hub::close`] ends every subscription with a reason and lets no further one in.

use std::{
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed},
    },
    time::Instant,
};

use crate::{
    close::CloseReason,
    counters::{Counters, Stats, add},
    event::{NewEvent, Payload, Position},
    feed::FeedKind,
    filter::Filter,
    groups::disjoint_groups,
    history::HistoryLimits,
    info::{Holder, SubscriptionInfo},
    limits::Overflow,
    options::{HubConfig, Start, SubscribeOptions},
    predicate::Predicate,
    publish::{PublishError, Published, Shared},
    registry::{Feeds, Listed, Refusal, SweepRules, Swept},
    signal::Signal,
    subscription::{Parts, Subscription},
    topic::ClientId,
};

/// The handle to a hub; its clones are handles to the same one. See [the crate](crate).
#[derive(Debug)]
pub struct Hub<P> {
    shared: Arc<Shared<P>>,
}

/// Why a subscription was not let in. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The client id is in use, and [`ClientIdPolicy::Reject`](crate::ClientIdPolicy::Reject) holds, or it is another principal that uses
    /// it.
    #[error("the client id is in use")]
    ClientIdTaken,
    /// The position to resume from is of this epoch and after its newest event.
    #[error("the position to resume from is ahead of the newest event, {head}")]
    PositionAhead {
        /// The sequence of the newest event.
        head: u64,
    },
    /// The hub is closed.
    #[error("not subscribed: {0}")]
    Closed(CloseReason),
}

impl<P: Payload> Hub<P> {
    /// Makes a hub.
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        Self {
            shared: Arc::new(Shared::new(config)),
        }
    }

    /// Publishes `events` in their order, with consecutive sequences and no others' between. All become
    /// visible at once. Never waits for a subscriber.
    ///
    /// `now` is the time that the age of history is measured by.
    ///
    /// # Errors
    /// [`PublishError::Closed`] when the hub was closed; then none is published.
    pub fn publish(
        &self,
        events: impl IntoIterator<Item = NewEvent<P>>,
        now: Instant,
    ) -> Result<Published, PublishError> {
        let events: Vec<_> = events
            .into_iter()
            .map(|event| self.shared.share(event))
            .collect();
        self.shared
            .commit(events, now, |head, i| head + 1 + i as u64)
    }

    /// Appends events that a sequencer outside has numbered. Sequences must increase, within the call
    /// and from call to call; they need not be consecutive.
    ///
    /// # Errors
    /// [`PublishError`]; then none is appended.
    pub fn append(
        &self,
        events: impl IntoIterator<Item = (u64, NewEvent<P>)>,
        now: Instant,
    ) -> Result<Published, PublishError> {
        let (sequences, events): (Vec<_>, Vec<_>) = events
            .into_iter()
            .map(|(sequence, event)| (sequence, self.shared.share(event)))
            .unzip();
        self.shared.commit(events, now, |_, i| sequences[i])
    }

    /// Lets a subscriber in. From here on it misses nothing that it is not told of.
    ///
    /// `now` is the time that the age of history is measured by.
    ///
    /// # Errors
    /// [`SubscribeError`]; then nothing has changed, and a subscription that holds the client id goes on.
    pub fn subscribe(
        &self,
        options: SubscribeOptions,
        now: Instant,
    ) -> Result<Subscription<P>, SubscribeError> {
        self.subscribe_matching(options, None, now)
    }

    /// As [`subscribe`](Self::subscribe), for those matching events only whose payload passes `predicate`.
    /// Those to this client alone come in any case.
    ///
    /// A subscription that conflates keeps the latest event of each key that passes: one that does not pass
    /// replaces nothing.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub fn subscribe_matching(
        &self,
        options: SubscribeOptions,
        predicate: Option<&Predicate<P>>,
        now: Instant,
    ) -> Result<Subscription<P>, SubscribeError> {
        let shared = &self.shared;
        if let Start::After(position) = options.start {
            let head = shared.committed.load(Acquire);
            if position.epoch == shared.epoch && position.sequence > head {
                return Err(SubscribeError::PositionAhead { head });
            }
        }
        let groups = disjoint_groups(options.filters).into_iter();
        let mut kinds: Vec<_> = groups
            .map(|filters| FeedKind {
                filters,
                predicate: predicate.cloned(),
            })
            .collect();
        kinds.push(FeedKind {
            filters: [Filter::for_client(&options.client_id)].into(),
            predicate: None,
        });

        let ends_when_stalled = options.limits.overflow == Overflow::Disconnect;
        let signal = Arc::new(Signal::new(ends_when_stalled, options.reset));
        let holder = Holder {
            client: options.client_id,
            principal: options.principal,
        };
        let id = shared.registry.enter(&holder, &signal)?;
        shared.history.lock().expire(now);
        let parts = Parts {
            id,
            holder,
            limits: options.limits.clamped(shared.max_limits),
            signal,
        };

        let (subscription, feeds) = {
            let mut state = shared.publish.lock();
            let feeds: Feeds<P> = kinds
                .into_iter()
                .map(|kind| shared.feed(&mut state, kind))
                .collect();
            let shared = Arc::clone(shared);
            let subscription =
                Subscription::begin(shared, parts, &feeds, options.start, state.head);
            (subscription, feeds)
        };
        shared.registry.joined(id, feeds);
        Ok(subscription)
    }

    /// Every subscription that was not dropped, in the order in which they came, as its last poll left it.
    /// Takes each of their feeds' locks in turn, for a moment.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<SubscriptionInfo> {
        let mut subscriptions: Vec<_> = self
            .shared
            .registry
            .list()
            .iter()
            .map(Listed::info)
            .collect();
        subscriptions.sort_unstable_by_key(|subscription| subscription.id);
        subscriptions
    }

    /// Ends every subscription of `client` with [`CloseReason::Disconnected`]. Returns how many.
    pub fn disconnect(&self, client: &ClientId) -> usize {
        let registry = &self.shared.registry;
        registry.end_client(client, CloseReason::Disconnected)
    }

    /// Ends every subscription with `reason` and refuses all that comes after. The first reason holds.
    pub fn close(&self, reason: CloseReason) {
        self.shared.close(reason);
    }

    /// Ends one subscription, by its [identity](Subscription::id), unless it has ended before. The first
    /// reason holds. Returns whether it is there.
    pub fn end(&self, id: u64, reason: CloseReason) -> bool {
        self.shared.registry.end(id, reason)
    }

    /// Lets go of history that is too old at `now`. Publishing and subscribing do so too; call this
    /// from time to time for hubs where neither happens.
    pub fn expire_history(&self, now: Instant) {
        self.shared.history.lock().expire(now);
    }

    /// Keeps as much history as `limits` allow from here on. What they do not allow goes at once; what has gone
    /// does not come back.
    pub fn set_history_limits(&self, limits: HistoryLimits, now: Instant) {
        self.shared.history.lock().set_limits(limits, now);
    }

    /// Looks at all subscriptions for consumers that do not take what is there, and does what the rules
    /// say. Call it every second or so, or a few times within the shortest of the rules' times: what a
    /// sweep cannot see, it cannot count. It takes no lock that publishing takes, but for a moment that of one
    /// subscription at a time.
    pub fn sweep(&self, rules: &SweepRules, now: Instant) -> Swept {
        let swept = self.shared.registry.sweep(rules, now);
        let Counters {
            stalled,
            ended_stalled,
            reset,
            ..
        } = &self.shared.counters;
        stalled.store(swept.stalled, Relaxed);
        add(ended_stalled, swept.closed);
        add(reset, swept.reset);
        swept
    }

    /// The position of the newest event.
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.position(self.shared.committed.load(Acquire))
    }

    /// The state of the hub in numbers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let feeds = shared.feeds();
        let clients = shared.registry.clients();
        let history = shared.history.lock();
        let (history_events, history_bytes) = (history.len(), history.bytes());
        Stats {
            retained_bytes: shared.retained_bytes(),
            clients,
            feeds,
            history_events,
            history_bytes,
            ..shared.counters.snapshot()
        }
    }
}

impl<P> Clone for Hub<P> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl From<Refusal> for SubscribeError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Taken => Self::ClientIdTaken,
            Refusal::Closed(reason) => Self::Closed(reason),
        }
    }
}

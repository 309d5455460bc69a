//! The hub: a handle that publishes events and lets subscribers in.
//!
//! # Publishing
//! [`Hub::publish`] never waits for a subscriber. It numbers the events, appends them to history and to
//! the feed of each distinct filter that matches, and wakes the subscriptions that were parked there. Its
//! cost is in distinct matching filters and parked subscribers, never in anyone's backlog.
//!
//! # Closing
//! [`Hub::close`] ends every subscription with a reason and lets no further one in.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use crate::{
    close::CloseReason,
    cost::FilterCost,
    counters::{Counters, Stats, add},
    event::{NewEvent, Payload, Position},
    feed::FeedKind,
    filter::Filter,
    freed::Freed,
    groups::disjoint_groups,
    history::HistoryLimits,
    index::FilterBytesExceeded,
    info::{Holder, SubscriptionInfo},
    limits::Overflow,
    options::{HubConfig, Start, SubscribeOptions},
    predicate::Predicate,
    publish::{Numbering, PublishError, Published, Shared, check_sequence},
    publishing::Publishing,
    registry::{Listed, Refusal, SweepRules, Swept},
    signal::Signal,
    standing::Standing,
    subscription::{Parts, Subscription},
    topic::ClientId,
};

/// A handle to a hub. Its clones are handles to the same hub. See [the crate](crate).
///
/// Dropping the last handle ends nothing: subscriptions keep what they share. Call [`Hub::close`].
#[derive(Debug)]
pub struct Hub<P> {
    /// The hub itself, which subscriptions hold too.
    shared: Arc<Shared<P>>,
}

/// The reason why a subscription was not let in. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The client id is in use, and [`ClientIdPolicy::Reject`](crate::ClientIdPolicy::Reject) holds or
    /// another principal uses it.
    #[error("the client id is in use")]
    ClientIdTaken,
    /// The position to resume from is of this epoch and after its newest event.
    #[error("the position to resume from is ahead of the newest event, {head}")]
    PositionAhead {
        /// The sequence of the newest event.
        head: u64,
    },
    /// The filters add more work to the search for the subscriptions of an event than one subscription may.
    #[error(
        "the filters are too costly to match: {work} units, of at most {max}; use fewer wildcards in the same places, or several subscriptions"
    )]
    FiltersTooCostly {
        /// Their cost: [`FilterCost::work`].
        work: u64,
        /// The most: [`HubConfig::max_filter_work`].
        max: u64,
    },
    /// All filters together would hold more memory than they may.
    #[error(
        "the filters of all subscriptions hold {max} bytes, which is the most they may; come back later"
    )]
    FilterMemoryExceeded {
        /// The most: [`HubConfig::max_filter_bytes`].
        max: u64,
    },
    /// The hub is closed.
    #[error("not subscribed: {0}")]
    Closed(CloseReason),
}

impl<P: Payload> Hub<P> {
    /// Makes a hub without events and subscriptions.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use tidegate_core::{HistoryLimits, Hub, HubConfig};
    ///
    /// // A program would choose the epoch at random.
    /// let hub = Hub::<bytes::Bytes>::new(HubConfig {
    ///     history: HistoryLimits {
    ///         max_age: Duration::from_secs(60),
    ///         ..HistoryLimits::default()
    ///     },
    ///     memory_budget: 512 << 20,
    ///     ..HubConfig::new(0x5eed)
    /// });
    /// assert_eq!(hub.position().epoch, 0x5eed);
    /// // Sequence 0 is before the first event.
    /// assert_eq!(hub.position().sequence, 0);
    /// ```
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        Self {
            shared: Arc::new(Shared::new(config, None)),
        }
    }

    /// Makes a hub whose sequences go on after `after`: one that is fed from the middle of a log, by
    /// [`append`](Self::append). Its [`position`](Self::position) is there from the start, and whoever resumes from
    /// before it is told that what came before is gone.
    ///
    /// A hub that [`new`](Self::new) made begins with the first sequence that it is handed. Until then it knows no
    /// position but 0.
    ///
    /// # Examples
    /// ```
    /// use std::{task::{Context, Waker}, time::Instant};
    /// use bytes::Bytes;
    /// use tidegate_core::{
    ///     Batch, ClientId, Filter, GapReason, Hub, HubConfig, NewEvent, Position, Room, Start, SubscribeOptions, Topic,
    /// };
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // The log has dropped the events up to 999 before this hub began.
    /// let hub = Hub::begin_at(HubConfig::new(7), 999);
    /// hub.append([(1_000, NewEvent::new(Topic::new("a")?, Bytes::new()))], Instant::now())?;
    ///
    /// let mut options = SubscribeOptions::new(ClientId::new("me")?, vec![Filter::new("a")?]);
    /// options.start = Start::After(Position { epoch: 7, sequence: 50 });
    /// let mut subscription = hub.subscribe(options, Instant::now())?;
    /// let mut batch = Batch::default();
    /// let mut cx = Context::from_waker(Waker::noop());
    /// while subscription.poll_next(&mut cx, Room::events(10), &mut batch).is_pending() {}
    /// let gap = batch.gaps[0];
    /// assert_eq!((gap.reason, gap.first_sequence, gap.last_sequence), (GapReason::Expired, 51, 999));
    /// assert_eq!(batch.events[0].sequence(), 1_000);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn begin_at(config: HubConfig, after: u64) -> Self {
        // Nothing could come behind the last of all sequences. One before it, the first event is refused, and told why.
        let after = after.min(u64::MAX - 1);
        Self {
            shared: Arc::new(Shared::new(config, Some(after))),
        }
    }

    /// Publishes `events` in their order, with consecutive sequences and no others' between. All become
    /// visible at once. Never waits for a subscriber.
    ///
    /// A batch that would make other publishers wait for milliseconds is published in parts: from about 26,000 events on, or
    /// 130,000 appends to feeds. Each part becomes visible at once, and events of others may come between two parts.
    ///
    /// History measures the age of events from `now`.
    ///
    /// # Errors
    /// [`PublishError::Closed`] when the hub was closed; then none is published, and the events are dropped.
    ///
    /// # Examples
    /// ```
    /// use std::time::Instant;
    /// use bytes::Bytes;
    /// use tidegate_core::{Hub, HubConfig, NewEvent, Topic};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let hub = Hub::new(HubConfig::new(1));
    /// let price = |text| Ok::<_, tidegate_core::NameError>(NewEvent {
    ///     key: Some("EURUSD".into()),
    ///     ..NewEvent::new(Topic::new("prices.fx")?, Bytes::from_static(text))
    /// });
    /// // A batch is numbered without holes and becomes visible at once.
    /// let published = hub.publish([price(b"1.08")?, price(b"1.09")?], Instant::now())?;
    /// assert_eq!((published.first_sequence, published.last_sequence), (1, 2));
    /// // Nobody has subscribed. History has the events all the same.
    /// assert_eq!((published.matched, hub.stats().history_events), (0, 2));
    /// # Ok(())
    /// # }
    /// ```
    pub fn publish(
        &self,
        events: impl IntoIterator<Item = NewEvent<P>>,
        now: Instant,
    ) -> Result<Published, PublishError> {
        finish(&mut self.begin_publish(events), now)
    }

    /// Begins to publish `events`, in steps, as [`publish`](Self::publish) does in one: a task lets others run between them.
    ///
    /// # Examples
    /// ```
    /// use std::time::Instant;
    /// use bytes::Bytes;
    /// use tidegate_core::{Hub, HubConfig, NewEvent, Topic};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let hub = Hub::new(HubConfig::new(1));
    /// let event = NewEvent::new(Topic::new("a")?, Bytes::new());
    /// let mut publishing = hub.begin_publish([event]);
    /// let published = loop {
    ///     if let Some(published) = publishing.step(Instant::now())? {
    ///         break published;
    ///     }
    ///     // An async function would yield here.
    /// };
    /// assert_eq!(published.last_sequence, 1);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "nothing is published before the first step"]
    pub fn begin_publish(&self, events: impl IntoIterator<Item = NewEvent<P>>) -> Publishing<P> {
        let events = events.into_iter();
        let events = events.map(|event| self.shared.share(event)).collect();
        Publishing::new(Arc::clone(&self.shared), events, Numbering::Next)
    }

    /// Appends events that a sequencer outside has numbered, such as a log. Sequences must increase, within
    /// the call and from call to call; they need not be consecutive.
    ///
    /// Otherwise as [`publish`](Self::publish), which numbers the events itself. A hub is fed by one of the
    /// two.
    ///
    /// `now` is the time of the events: that of the log, where history is to measure their age from there. It may go
    /// back a little from call to call.
    ///
    /// # Errors
    /// [`PublishError::OutOfOrder`] when a sequence is not above the one before it,
    /// [`PublishError::SequencesUsedUp`] when one is [`u64::MAX`], and [`PublishError::Closed`] when the hub was
    /// closed; then none is appended.
    ///
    /// # Examples
    /// ```
    /// use std::time::Instant;
    /// use bytes::Bytes;
    /// use tidegate_core::{Hub, HubConfig, NewEvent, PublishError, Topic};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let hub = Hub::new(HubConfig::new(1));
    /// let event = NewEvent::new(Topic::new("orders.eu")?, Bytes::from_static(b"42"));
    ///
    /// // The log numbered 18 and 19 for somebody else.
    /// hub.append([(17, event.clone()), (20, event.clone())], Instant::now())?;
    /// assert_eq!(hub.position().sequence, 20);
    ///
    /// let again = hub.append([(20, event)], Instant::now());
    /// assert_eq!(again, Err(PublishError::OutOfOrder { head: 20, given: 20 }));
    /// # Ok(())
    /// # }
    /// ```
    pub fn append(
        &self,
        events: impl IntoIterator<Item = (u64, NewEvent<P>)>,
        now: Instant,
    ) -> Result<Published, PublishError> {
        let (sequences, events): (Vec<_>, Vec<_>) = events
            .into_iter()
            .map(|(sequence, event)| (sequence, self.shared.share(event)))
            .unzip();
        for pair in sequences.windows(2) {
            let &[head, given] = pair else { continue };
            check_sequence(head, given)?;
        }
        let shared = Arc::clone(&self.shared);
        // It wakes, and lets go of the events, after the lock.
        let mut publishing = Publishing::new(shared, events, Numbering::Given(sequences));
        let published = {
            // From the first part to the last: the order is checked with the first, and holds for all.
            let _appending = self.shared.appending.lock();
            loop {
                if let Some(published) = publishing.go_on(now)? {
                    break published;
                }
            }
        };
        publishing.settle();
        Ok(published)
    }

    /// Moves the [`position`](Self::position) to `sequence`, because there is no event up to there: the log has
    /// something else at these sequences. Subscriptions that have seen everything move along, each with its next poll.
    /// Does nothing at the sequence where the hub is.
    ///
    /// # Errors
    /// [`PublishError::OutOfOrder`] when the hub is behind `sequence` already,
    /// [`PublishError::SequencesUsedUp`] for [`u64::MAX`], and [`PublishError::Closed`] when the hub was closed.
    pub fn advance(&self, sequence: u64) -> Result<(), PublishError> {
        self.shared.advance(sequence)
    }

    /// Tells every subscription, whatever its filters, that the sequences from `first` to `last` are lost: nobody can
    /// hand them over any more. A gap of [`GapReason::Backplane`](crate::GapReason::Backplane) says so at their
    /// place, live and in every replay that crosses it.
    ///
    /// The hub remembers 64 such ranges. Beyond that the oldest two become one, and the events between them are
    /// evicted.
    ///
    /// # Errors
    /// [`PublishError::OutOfOrder`] when `first` is not above the position of the hub, or `last` is below `first`,
    /// [`PublishError::SequencesUsedUp`] when one is [`u64::MAX`], and [`PublishError::Closed`] when the hub was
    /// closed.
    pub fn lose(&self, first: u64, last: u64) -> Result<(), PublishError> {
        self.shared.lose(first, last)
    }

    /// Begins another epoch, whose sequences go on after `after`: the log was cut, replaced or restored, and its
    /// sequences mean something else now. Every subscription ends with
    /// [`CloseReason::EpochChanged`], and with a position of the epoch in which it
    /// began; history is empty; publishing and subscribing go on.
    ///
    /// # Errors
    /// [`PublishError::EpochGoesOn`] when `epoch` is that of the hub, [`PublishError::SequencesUsedUp`] when
    /// `after` is [`u64::MAX`], and [`PublishError::Closed`] when the hub was closed; then nothing has changed.
    ///
    /// # Examples
    /// ```
    /// use std::{task::{Context, Poll, Waker}, time::Instant};
    /// use tidegate_core::{
    ///     Batch, ClientId, CloseReason, Filter, Hub, HubConfig, Position, Room, SubscribeOptions,
    /// };
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let hub = Hub::<bytes::Bytes>::begin_at(HubConfig::new(1), 500);
    /// let options = SubscribeOptions::new(ClientId::new("me")?, vec![Filter::everything()]);
    /// let mut subscription = hub.subscribe(options.clone(), Instant::now())?;
    ///
    /// hub.begin_epoch(2, 20)?;
    ///
    /// let mut cx = Context::from_waker(Waker::noop());
    /// let polled = subscription.poll_next(&mut cx, Room::events(10), &mut Batch::default());
    /// assert_eq!(polled, Poll::Ready(Err(CloseReason::EpochChanged)));
    /// assert_eq!(subscription.position(), Some(Position { epoch: 1, sequence: 500 }));
    ///
    /// let subscription = hub.subscribe(options, Instant::now())?;
    /// assert_eq!(subscription.position(), Some(Position { epoch: 2, sequence: 20 }));
    /// # Ok(())
    /// # }
    /// ```
    pub fn begin_epoch(&self, epoch: u64, after: u64) -> Result<(), PublishError> {
        self.shared.begin_epoch(Position {
            epoch,
            sequence: after,
        })
    }

    /// Lets a subscriber in. From here on it receives every matching event, or a gap that counts it.
    ///
    /// History measures the age of events by `now`. The cost is in the filters of the subscriber, not in how
    /// many subscriptions there are.
    ///
    /// # Errors
    /// [`SubscribeError`]; then nothing has changed, and a subscription that holds the client id goes on.
    ///
    /// # Examples
    /// A client comes back and resumes where it was:
    /// ```
    /// use std::{task::{Context, Poll, Waker}, time::Instant};
    /// use bytes::Bytes;
    /// use tidegate_core::{Batch, ClientId, Filter, Hub, HubConfig, NewEvent, Room, Start, SubscribeOptions, Topic};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let hub = Hub::new(HubConfig::new(1));
    /// # let orders = Topic::new("orders.eu")?;
    /// # let publish = |text: &'static [u8]| {
    /// #     hub.publish([NewEvent::new(orders.clone(), Bytes::from_static(text))], Instant::now())
    /// # };
    /// # let mut cx = Context::from_waker(Waker::noop());
    /// # let mut batch = Batch::default();
    /// let live = SubscribeOptions::new(ClientId::new("me")?, vec![Filter::new("orders.*")?]);
    /// let mut first = hub.subscribe(live.clone(), Instant::now())?;
    /// publish(b"one")?;
    /// assert!(first.poll_next(&mut cx, Room::events(10), &mut batch).is_ready());
    /// let position = first.position().expect("it began live");
    /// drop(first);
    ///
    /// publish(b"two, while nobody is there")?;
    ///
    /// let resumed = SubscribeOptions { start: Start::After(position), ..live };
    /// let mut second = hub.subscribe(resumed, Instant::now())?;
    /// // A replay may look through history for several polls before it finds something.
    /// while second.poll_next(&mut cx, Room::events(10), &mut batch).is_pending() {}
    /// assert_eq!(batch.events[0].payload(), "two, while nobody is there");
    /// assert!(batch.gaps.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn subscribe(
        &self,
        options: SubscribeOptions,
        now: Instant,
    ) -> Result<Subscription<P>, SubscribeError> {
        self.subscribe_matching(options, None, now)
    }

    /// As [`subscribe`](Self::subscribe), for the matching events whose payload passes `predicate` only.
    /// Events to this client alone come in any case.
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
        // First of all, because it may refuse, and cheap. In one epoch the head only rises: a position that is behind
        // it here is behind it under the publish lock too.
        let mut epoch = self.check_start(options.start)?;
        let cost = FilterCost::of(&options.filters);
        if cost.work > shared.max_filter_work {
            return Err(SubscribeError::FiltersTooCostly {
                work: cost.work,
                max: shared.max_filter_work,
            });
        }
        let groups = disjoint_groups(options.filters).into_iter();
        let mut kinds: Vec<_> = groups
            .map(|filters| FeedKind {
                filters,
                predicate: predicate.cloned(),
            })
            .collect();
        // The last one, as `pass_over` knows. It has no predicate: what is sent to one client always comes.
        kinds.push(FeedKind {
            filters: [Filter::for_client(&options.client_id)].into(),
            predicate: None,
        });

        let ends_when_stalled = options.limits.overflow == Overflow::Disconnect;
        let limits = options.limits.clamped(shared.max_limits);
        let holder = Holder {
            client: options.client_id,
            principal: options.principal,
        };
        loop {
            // Before the registry, where entering ends the subscription that it takes over from: this may refuse.
            let feeds = match shared.join(kinds) {
                Ok(feeds) => feeds,
                Err(FilterBytesExceeded) => {
                    return Err(SubscribeError::FilterMemoryExceeded {
                        max: shared.max_filter_bytes,
                    });
                }
            };
            let signal = Arc::new(Signal::new(ends_when_stalled, options.transport.clone()));
            // Before the publish lock: it may refuse, and the registry's lock, which sweeps hold while they look at everybody, is never
            // taken while publishers wait. A close that comes in between ends this subscription through its signal.
            let id = match shared.registry.enter(&holder, &signal) {
                Ok(id) => id,
                Err(refusal) => {
                    shared.leave(&feeds);
                    return Err(refusal.into());
                }
            };
            // Events that are too old at `now` must not be replayed.
            shared.expire_history(now);
            let parts = Parts {
                id,
                holder: holder.clone(),
                limits,
                signal,
            };
            let standing = Arc::new(Standing::new(limits, &feeds));
            let subscription = {
                // No event is published while the cursors are put down: what came before is history, what comes
                // after is live, and nothing is both or neither.
                let state = shared.publish.lock();
                (state.epoch == epoch).then(|| {
                    let shared = Arc::clone(shared);
                    let standing = Arc::clone(&standing);
                    Subscription::begin(shared, parts, standing, options.start, &state)
                })
            };
            if let Some(subscription) = subscription {
                // After the publish lock, for the same reason as above. Until then listings leave it out, since they
                // could not say how far it is behind.
                shared.registry.joined(id, standing);
                return Ok(subscription);
            }
            // Another epoch has begun since, with other feeds; it may have ended this subscription already.
            kinds = feeds.iter().map(|feed| feed.kind().clone()).collect();
            shared.registry.remove(&holder.client, id);
            shared.leave(&feeds);
            epoch = self.check_start(options.start)?;
        }
    }

    /// Fails when a subscriber cannot begin with `start`, because it is ahead. Returns the epoch.
    fn check_start(&self, start: Start) -> Result<u64, SubscribeError> {
        let hub = self.position();
        match start {
            Start::After(asked) if asked.epoch == hub.epoch && asked.sequence > hub.sequence => {
                Err(SubscribeError::PositionAhead { head: hub.sequence })
            }
            _ => Ok(hub.epoch),
        }
    }

    /// Lists every subscription that was not dropped, in the order in which they came, as its last poll
    /// left it. Takes the lock of each of their feeds in turn, for a moment.
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

    /// Ends every subscription of `client` with [`CloseReason::Disconnected`]. Returns how many there were.
    pub fn disconnect(&self, client: &ClientId) -> usize {
        let registry = &self.shared.registry;
        registry.end_client(client, CloseReason::Disconnected)
    }

    /// Ends every subscription with `reason`, and refuses events and subscriptions from here on. The first
    /// reason holds.
    ///
    /// # Examples
    /// ```
    /// use std::{task::{Context, Poll, Waker}, time::Instant};
    /// use tidegate_core::{
    ///     Batch, ClientId, CloseReason, Filter, Hub, HubConfig, PublishError, Room, SubscribeOptions,
    /// };
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let hub = Hub::<bytes::Bytes>::new(HubConfig::new(1));
    /// let options = SubscribeOptions::new(ClientId::new("me")?, vec![Filter::everything()]);
    /// let mut subscription = hub.subscribe(options, Instant::now())?;
    ///
    /// hub.close(CloseReason::ShuttingDown);
    ///
    /// // The subscriber is woken, and every poll from here on says why.
    /// let mut cx = Context::from_waker(Waker::noop());
    /// let polled = subscription.poll_next(&mut cx, Room::events(10), &mut Batch::default());
    /// assert_eq!(polled, Poll::Ready(Err(CloseReason::ShuttingDown)));
    /// // Where to go on, at another hub with the same sequences.
    /// assert_eq!(subscription.position(), Some(hub.position()));
    ///
    /// let refused = hub.publish([], Instant::now());
    /// assert_eq!(refused, Err(PublishError::Closed(CloseReason::ShuttingDown)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn close(&self, reason: CloseReason) {
        self.shared.close(reason);
    }

    /// Ends one subscription, by its [identity](Subscription::id). The first reason holds. Returns whether
    /// it is there: false when it was dropped.
    pub fn end(&self, id: u64, reason: CloseReason) -> bool {
        self.shared.registry.end(id, reason)
    }

    /// Drops events from history that are too old at `now`. Publishing and subscribing do so too; call this
    /// from time to time, every few seconds, for hubs where neither happens.
    pub fn expire_history(&self, now: Instant) {
        self.shared.expire_history(now);
    }

    /// Puts new `limits` on history. Events beyond them are dropped at once; events that were dropped before
    /// do not come back.
    pub fn set_history_limits(&self, limits: HistoryLimits, now: Instant) {
        let mut freed = Freed::new();
        let mut history = self.shared.history.lock();
        history.set_limits(limits, &mut freed);
        drop(history);
        self.shared.expire_history(now);
    }

    /// Looks at all subscriptions for consumers that do not take their events, and applies `rules`. Call it
    /// about every second, or a few times within the shortest of the times in the rules, which count from the
    /// sweep that first finds a subscription stuck. Of the locks that publishing takes, it takes only that of
    /// one subscription at a time, for a moment.
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

    /// The position of the newest event; sequence 0 before the first.
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.position()
    }

    /// The state of the hub in numbers. Each is exact; together they are of one moment only while nothing
    /// else happens.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let (feeds, filter_bytes) = (shared.index.len(), shared.index.filter_bytes());
        let clients = shared.registry.clients();
        let history = shared.history.lock();
        let (history_events, history_bytes) = (history.len(), history.bytes());
        Stats {
            retained_bytes: shared.retained_bytes(),
            sending_bytes: shared.senders.bytes(),
            clients,
            feeds,
            filter_bytes,
            history_events,
            history_bytes,
            ..shared.counters.snapshot()
        }
    }
}

/// Publishes a batch to its end.
fn finish<P: Payload>(
    publishing: &mut Publishing<P>,
    now: Instant,
) -> Result<Published, PublishError> {
    loop {
        if let Some(published) = publishing.step(now)? {
            return Ok(published);
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

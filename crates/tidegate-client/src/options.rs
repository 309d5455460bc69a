//! The options of a subscription, and those of a publisher.

use std::time::Duration;

use tidegate_proto::v1::SubscribeRequest;

use crate::{Backoff, Limits, Overflow, Position};

/// The options of a subscription: filters, start, limits, and reconnecting.
///
/// ```
/// use tidegate_client::{Overflow, SubscribeOptions};
///
/// let options = SubscribeOptions::new(["orders.>", "news.*.sport"])
///     .client_id("dashboard-7")
///     .replay_last(100)
///     .overflow(Overflow::Conflate);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct SubscribeOptions {
    pub(crate) filters: Vec<String>,
    pub(crate) client_id: String,
    pub(crate) limits: Limits,
    pub(crate) start: Start,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) min_interval: Option<Duration>,
    /// The back-off between attempts. `None`: a broken stream ends the subscription.
    pub(crate) reconnect: Option<Backoff>,
    pub(crate) out_of_range: OutOfRange,
}

/// The start of a subscription, until it has a position to resume from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Live,
    ReplayLast(u32),
    ResumeAfter(Position),
}

/// The policy for a position to resume from that is ahead of the server (`OUT_OF_RANGE`).
///
/// This is no passing failure: the server has lost events that the client has seen, or the position is from another
/// server. If the subscription goes on, events may be missing or come again, so you decide in advance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfRange {
    /// End the subscription with [`Error::PositionAhead`](crate::Error::PositionAhead).
    #[default]
    Fail,
    /// Forget the position and start with the next live event. Events in between are missed.
    StartLive,
    /// Forget the position and start with the oldest event in history. Many events may come again.
    StartFromHistory,
}

impl SubscribeOptions {
    /// Subscribes to the events whose topic matches one of `filters`. A filter is a topic, or a pattern with `*`
    /// (exactly one token) and `>` (one or more tokens, at the end). An event that matches several filters is delivered
    /// once.
    ///
    /// The server accepts 1 to 1,024 filters by default. All other options have their defaults: live events from now
    /// on, and reconnecting when the stream breaks.
    pub fn new(filters: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            filters: filters.into_iter().map(Into::into).collect(),
            client_id: String::new(),
            limits: Limits::default(),
            start: Start::Live,
            heartbeat_interval: Duration::from_secs(15),
            min_interval: None,
            reconnect: Some(Backoff::default()),
            out_of_range: OutOfRange::Fail,
        }
    }

    /// Sets the client id: one topic token of at most 128 bytes. Events published to `$client.<id>` reach this
    /// subscription. A new stream takes over from an older one with the same id, so give each subscription its own.
    /// Default: the server assigns one, which the subscription keeps across reconnects.
    pub fn client_id(mut self, id: impl Into<String>) -> Self {
        self.client_id = id.into();
        self
    }

    /// Sets how many events the subscription may be behind before the overflow policy applies. Default: 0, which stands
    /// for 1,024. The server may lower it; [`Update::Subscribed`](crate::Update::Subscribed) has the limits in force.
    pub fn max_events(mut self, events: u32) -> Self {
        self.limits.max_events = events;
        self
    }

    /// Sets how many bytes the subscription may be behind before the overflow policy applies. Default: 0, which stands
    /// for 1 MiB. The newest event always fits, whatever its size. The server may lower the limit.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.limits.max_bytes = bytes;
        self
    }

    /// Sets the policy for when the subscription is behind by more than its limits. Default: drop the oldest events.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.limits.set_overflow(overflow);
        self
    }

    /// Starts with the newest `count` matching events in history, and goes on live. 0: live events only, the default.
    /// Replaces [`resume_after`](Self::resume_after).
    pub fn replay_last(mut self, count: u32) -> Self {
        self.start = match count {
            0 => Start::Live,
            count => Start::ReplayLast(count),
        };
        self
    }

    /// Starts with the events after `position`. Replaces [`replay_last`](Self::replay_last).
    ///
    /// If history no longer reaches back to `position`, or the server has restarted in another epoch, an
    /// [`Update::Gap`](crate::Update::Gap) comes before the first event, and then all of history.
    ///
    /// ```no_run
    /// use tidegate_client::{Client, Position, SubscribeOptions, Update};
    ///
    /// # fn load() -> Option<Position> { None }
    /// # fn store(position: Position) {}
    /// # async fn run() -> Result<(), tidegate_client::Error> {
    /// let client = Client::connect_lazy("http://127.0.0.1:50051")?;
    /// let mut options = SubscribeOptions::new(["orders.>"]);
    /// if let Some(position) = load() {
    ///     options = options.resume_after(position);
    /// }
    /// let mut orders = client.subscribe(options);
    /// while let Some(update) = orders.next().await {
    ///     if let Update::Event(event) = update? {
    ///         println!("{:?}", event.payload);
    ///     }
    ///     // After the event was processed, so that a crash repeats an event instead of losing one.
    ///     if let Some(position) = orders.position() {
    ///         store(position);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn resume_after(mut self, position: Position) -> Self {
        self.start = Start::ResumeAfter(position);
        self
    }

    /// Sets how long the server may be silent before it sends a heartbeat, from 1 s to 1 h. Default: 15 s. The client
    /// takes a stream for broken on which no byte of a response arrives for three times as long.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = interval;
        self
    }

    /// Sets the least time between two releases of live events, up to 1 h. Default: none, the server sends events as
    /// they are published.
    pub fn min_interval(mut self, interval: Duration) -> Self {
        self.min_interval = Some(interval);
        self
    }

    /// Sets the waits before reconnecting, and turns reconnecting on. Default: [`Backoff::default`].
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.reconnect = Some(backoff);
        self
    }

    /// Turns reconnecting off. A broken stream then ends the subscription with
    /// [`Error::Unavailable`](crate::Error::Unavailable) or [`Error::Failed`](crate::Error::Failed), and a quota, or a
    /// server for which it was too slow, with [`Error::ResourceExhausted`](crate::Error::ResourceExhausted).
    pub fn no_reconnect(mut self) -> Self {
        self.reconnect = None;
        self
    }

    /// Sets the policy for a position that is ahead of the server. Default: [`OutOfRange::Fail`]. The other policies
    /// need reconnecting to be on.
    pub fn out_of_range(mut self, policy: OutOfRange) -> Self {
        self.out_of_range = policy;
        self
    }

    /// The request for an attempt that resumes after `position`, or starts as asked if there is none yet.
    pub(crate) fn request(&self, position: Option<Position>) -> SubscribeRequest {
        let (resume_after, replay_last) = match (position, self.start) {
            (Some(position), _) | (None, Start::ResumeAfter(position)) => (Some(position), 0),
            (None, Start::ReplayLast(count)) => (None, count),
            (None, Start::Live) => (None, 0),
        };
        SubscribeRequest {
            client_id: self.client_id.clone(),
            filters: self.filters.clone(),
            limits: Some(self.limits),
            resume_after: resume_after.map(Into::into),
            replay_last,
            heartbeat_interval: Some(wire(self.heartbeat_interval)),
            min_interval: self.min_interval.map(wire),
        }
    }
}

/// Converts a duration. One beyond the range of protobuf becomes the longest in range, which the server refuses too.
fn wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or(prost_types::Duration {
        seconds: i64::MAX,
        nanos: 0,
    })
}

/// Limits of a [`Publisher`](crate::Publisher). Keep a batch below the server's limits, by default 1,000 events and 4 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublisherOptions {
    /// The most events in one request; at least 1. Default: 1,000.
    pub max_batch_events: usize,
    /// The most bytes of events in one request. A larger event is sent alone. Default: 256 KiB.
    pub max_batch_bytes: usize,
    /// The most unanswered requests; at least 1. Default: 8.
    pub max_in_flight: usize,
    /// The most bytes of events that [`send`](crate::Publisher::send) has taken and the server has not acknowledged. A larger
    /// event waits until all others are acknowledged. Default: 4 MiB.
    pub max_unacknowledged_bytes: u32,
    /// The back-off between streams, where the publisher reconnects. Default: `None`, the first failure ends it.
    pub reconnect: Option<Backoff>,
    /// Whether events that were sent and not answered when a connection broke are sent again. The server may have stored
    /// them, and then has them twice. Without it such a failure ends the publisher. Needs `reconnect`. Default: no.
    pub resend: bool,
    /// Whether an event that the server refuses as invalid is left out. [`Progress::take_refusals`](crate::Progress::take_refusals) says which. Without it
    /// the first ends the publisher. Default: no.
    pub skip_refused: bool,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            max_batch_events: 1000,
            max_batch_bytes: 256 * 1024,
            max_in_flight: 8,
            max_unacknowledged_bytes: 4 * 1024 * 1024,
            reconnect: None,
            resend: false,
            skip_refused: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POSITION: Position = Position {
        epoch: 1,
        sequence: 9,
    };

    #[test]
    fn request_starts_as_configured_until_a_position_is_known() {
        let replay = SubscribeOptions::new(["a"]).replay_last(5);
        let request = replay.request(None);
        assert_eq!((request.replay_last, request.resume_after), (5, None));

        let request = replay.request(Some(POSITION));
        assert_eq!(request.replay_last, 0);
        assert_eq!(request.resume_after, Some(POSITION.into()));
    }

    #[test]
    fn replay_and_resume_replace_each_other() {
        let options = SubscribeOptions::new(["a"]);
        let resume = options.clone().replay_last(5).resume_after(POSITION);
        assert_eq!(resume.start, Start::ResumeAfter(POSITION));
        let replay = options.resume_after(POSITION).replay_last(0);
        assert_eq!(replay.start, Start::Live);
    }

    #[test]
    fn request_always_has_the_heartbeat_interval() {
        // The watchdog relies on it; the server's own default may have been changed.
        let request = SubscribeOptions::new(["a"]).request(None);
        assert_eq!(request.heartbeat_interval.unwrap().seconds, 15);
        assert_eq!(request.min_interval, None);
    }
}

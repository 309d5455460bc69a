//! What to subscribe to, and how.

use std::time::Duration;

use tidegate_proto::v1::SubscribeRequest;

use crate::{Backoff, Limits, Overflow, Position};

/// What to subscribe to, where to start, and what to do when things break.
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
    /// `None`: a broken stream ends the subscription.
    pub(crate) reconnect: Option<Backoff>,
    pub(crate) out_of_range: OutOfRange,
}

/// Where a subscription begins, as long as nothing has been delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Live,
    ReplayLast(u32),
    ResumeAfter(Position),
}

/// What to do when the position to resume from is ahead of the server (`OUT_OF_RANGE`).
///
/// This is not a hiccup: the server has lost what the client has seen, or the position is not one that this
/// server gave. Events may be missing or come again, so going on is a decision to take in advance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfRange {
    /// End with [`Error::PositionAhead`](crate::Error::PositionAhead).
    #[default]
    Fail,
    /// Forget the position and start with the next live event. Whatever lay between is missed.
    StartLive,
    /// Forget the position and start with the oldest event in history. Much may come again.
    StartFromHistory,
}

impl SubscribeOptions {
    /// Events whose topic matches one of `filters`: topics, or patterns with `*` (exactly one token) and `>`
    /// (one or more tokens, at the end). Everything else has its default: live events from now on,
    /// reconnecting when the stream breaks.
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

    /// Who this is: one topic token of at most 128 bytes. Events published to `$client.<id>` reach it. Two
    /// streams with one id take each other over, so each needs its own. Default: the server makes one, which is
    /// kept across reconnects.
    pub fn client_id(mut self, id: impl Into<String>) -> Self {
        self.client_id = id.into();
        self
    }

    /// How many events the subscription may be behind before the overflow policy applies. 0, the default:
    /// 1,024. The server may lower it; [`Update::Subscribed`](crate::Update::Subscribed) has the limits in force.
    pub fn max_events(mut self, events: u32) -> Self {
        self.limits.max_events = events;
        self
    }

    /// How many bytes the subscription may be behind before the overflow policy applies. 0, the default:
    /// 1 MiB. The newest event always fits.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.limits.max_bytes = bytes;
        self
    }

    /// What happens to a subscription that is behind by more than its limits. Default: the oldest events go.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.limits.set_overflow(overflow);
        self
    }

    /// Starts with the newest `count` matching events in history. Replaces
    /// [`resume_after`](Self::resume_after). 0 is live events only.
    pub fn replay_last(mut self, count: u32) -> Self {
        self.start = match count {
            0 => Start::Live,
            count => Start::ReplayLast(count),
        };
        self
    }

    /// Starts with what came after `position`. Replaces [`replay_last`](Self::replay_last).
    pub fn resume_after(mut self, position: Position) -> Self {
        self.start = Start::ResumeAfter(position);
        self
    }

    /// The silence after which the server sends a heartbeat, from 1 s to 1 h. Default: 15 s. A stream that is
    /// silent for three times as long counts as broken.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = interval;
        self
    }

    /// At most one release of live events per `interval`, up to 1 h. Default: events go out as they come.
    pub fn min_interval(mut self, interval: Duration) -> Self {
        self.min_interval = Some(interval);
        self
    }

    /// How long to wait before reconnecting.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.reconnect = Some(backoff);
        self
    }

    /// Never reconnects: a broken stream ends the subscription with
    /// [`Error::Unavailable`](crate::Error::Unavailable) or [`Error::Failed`](crate::Error::Failed), and a quota with
    /// [`Error::ResourceExhausted`](crate::Error::ResourceExhausted).
    pub fn no_reconnect(mut self) -> Self {
        self.reconnect = None;
        self
    }

    /// What to do when the position to resume from is ahead of the server. Default: fail. Anything else
    /// needs reconnecting to be on.
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

/// A duration beyond what protobuf can hold is sent as the longest it can; the server refuses either.
fn wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or(prost_types::Duration {
        seconds: i64::MAX,
        nanos: 0,
    })
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

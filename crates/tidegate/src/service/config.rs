//! Configuration of the service.

use std::{sync::Arc, time::Duration};

use super::{gate::Gate, wire::RESPONSE_OVERHEAD};
use crate::framing::CHUNK_BYTES;

/// Limits and intervals of an [`EventService`](crate::EventService). The hub has limits of its own:
/// [`HubConfig`](crate::HubConfig).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServiceConfig {
    /// Maximum number of filters in one subscription. Default: 1,024.
    pub max_filters: usize,
    /// Silence after which a heartbeat is sent, unless the client asks for another interval. Default: 15 s, below the
    /// 30 s to 60 s after which proxies cut a silent stream.
    pub heartbeat_interval: Duration,
    /// Maximum delay after which a client is told to come back when its stream ends with one. Each client gets a delay
    /// between zero and this, so that they do not all come at once. Default: 5 s.
    pub reconnect_spread: Duration,
    /// Time that a call of `Subscribe` or `Publish` may take to send its request, after which it ends with
    /// `DEADLINE_EXCEEDED`. Until then it counts among the streams of its connection and holds the bytes it has sent.
    /// Default: 10 s.
    pub request_timeout: Duration,
    /// Limits of one publish.
    pub publish: PublishLimits,
    /// Gate that calls have to pass. Default: none, every call passes.
    pub gate: Option<Arc<dyn Gate>>,
}

/// Limits of one publish. Sizes are those of encoded events: topic, key and attributes count too.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PublishLimits {
    /// Maximum number of events in one batch. Default: 1,000.
    pub max_events: usize,
    /// Maximum number of attributes in one batch, summed over its events. Default: 16,384: to decode and encode as many takes a few
    /// milliseconds.
    pub max_attributes: usize,
    /// Maximum number of bytes in one batch. Default: 4 MiB.
    pub max_batch_bytes: usize,
    /// Maximum number of bytes in one event. Default: 1 MiB.
    pub max_event_bytes: usize,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            max_filters: 1_024,
            heartbeat_interval: Duration::from_secs(15),
            reconnect_spread: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            publish: PublishLimits::default(),
            gate: None,
        }
    }
}

impl Default for PublishLimits {
    fn default() -> Self {
        Self {
            max_events: 1_000,
            max_attributes: 16_384,
            max_batch_bytes: 4 << 20,
            max_event_bytes: 1 << 20,
        }
    }
}

impl PublishLimits {
    /// Returns the most bytes that a response to a subscriber may have: one with a single event of the greatest size, or
    /// with as many smaller events as are sent together. gRPC's libraries refuse messages of more than 4 MiB, unless they
    /// are told otherwise.
    #[must_use]
    pub const fn max_response_bytes(&self) -> usize {
        let largest = self.max_event_bytes.saturating_add(RESPONSE_OVERHEAD);
        if largest > CHUNK_BYTES {
            largest
        } else {
            CHUNK_BYTES
        }
    }
}

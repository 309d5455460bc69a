//! What the service accepts and how it behaves.

use std::{sync::Arc, time::Duration};

use super::gate::Gate;

/// What the service accepts and how it behaves.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServiceConfig {
    /// The most filters in one subscription. Default: 1,024.
    pub max_filters: usize,
    /// Silence after which a heartbeat is sent, where the client does not say. Default: 15 s, below the
    /// 30 s to 60 s after which proxies cut a silent stream.
    pub heartbeat_interval: Duration,
    /// When the server shuts down, clients are told to come back after a delay between zero and this, so
    /// that they do not all come at once. Default: 5 s.
    pub reconnect_spread: Duration,
    /// How long a call of `Subscribe` or `Publish` may take to send its request. Until then it holds a place
    /// among the streams of its connection, and what it has sent. Default: 10 s.
    pub request_timeout: Duration,
    /// What one publish may hold.
    pub publish: PublishLimits,
    /// Who lets calls through. Default: none, which lets all through.
    pub gate: Option<Arc<dyn Gate>>,
}

/// What one publish may hold. Sizes are of encoded events, with topic, key and attributes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PublishLimits {
    /// The most events in one batch. Default: 1,000.
    pub max_events: usize,
    /// The most bytes in one batch. Default: 4 MiB.
    pub max_batch_bytes: usize,
    /// The most bytes in one event. Default: 1 MiB.
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
            max_batch_bytes: 4 << 20,
            max_event_bytes: 1 << 20,
        }
    }
}

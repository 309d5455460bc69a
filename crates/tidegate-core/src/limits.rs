//! Limits: how far a subscription may fall behind, and the policy beyond.

use std::num::NonZeroU64;

/// How far a subscription may fall behind before it overflows.
///
/// Both limits hold; the newest event always fits, whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most events behind. Default: 1,024.
    pub max_events: NonZeroU64,
    /// The most bytes behind, as [`Payload::size`](crate::Payload::size) counts them. Default: 1 MiB.
    pub max_bytes: NonZeroU64,
    /// The policy beyond them. Default: [`Overflow::DropOldest`].
    pub overflow: Overflow,
}

/// The policy for a subscription that is behind by more than its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The oldest events are lost to it, and a gap says how many; it goes on with the newest. Nobody but
    /// the subscriber notices. The default, because a new event is worth more than a stale one.
    #[default]
    DropOldest,
    /// The newest event of each topic and key survives; the events it replaced are counted by a gap of
    /// [`GapReason::Conflated`](crate::GapReason::Conflated). For state: prices, positions, presence. An
    /// event without a key has its topic as key; one to a single client (`$client.<id>`) replaces
    /// another only if it has a key. The limits count survivors, when they are handed out; beyond them the
    /// oldest survivors are lost, as with [`Self::DropOldest`].
    Conflate,
    /// The subscription ends with [`CloseReason::TooSlow`](crate::CloseReason::TooSlow) when it is next
    /// polled. For subscribers that would rather start over than skip.
    Disconnect,
}

impl Default for Limits {
    fn default() -> Self {
        const EVENTS: NonZeroU64 = NonZeroU64::new(1_024).expect("not zero");
        const BYTES: NonZeroU64 = NonZeroU64::new(1 << 20).expect("not zero");
        Self {
            max_events: EVENTS,
            max_bytes: BYTES,
            overflow: Overflow::default(),
        }
    }
}

impl Limits {
    /// These limits, each lowered to that of `max`.
    pub(crate) fn clamped(self, max: Self) -> Self {
        Self {
            max_events: self.max_events.min(max.max_events),
            max_bytes: self.max_bytes.min(max.max_bytes),
            overflow: self.overflow,
        }
    }

    /// Whether a backlog of this size is within the limits. One event always is.
    pub(crate) const fn fits(&self, events: u64, bytes: u64) -> bool {
        events <= 1 || (events <= self.max_events.get() && bytes <= self.max_bytes.get())
    }
}

//! Gaps: what a subscription will not be given, counted.

/// Events of a subscription that will not be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The sequence of the first missing event, or, where that is unknown, the first that may be.
    pub first_sequence: u64,
    /// The sequence of the last missing event, or, where that is unknown, the last that may be.
    pub last_sequence: u64,
    /// How many events of the subscription are missing. 0 is unknown, which only
    /// [`Expired`](GapReason::Expired) and [`EpochChanged`](GapReason::EpochChanged) may be; such a
    /// gap takes no index.
    pub count: u64,
    /// Why they are missing.
    pub reason: GapReason,
    /// The index of the first missing event; the others follow without holes.
    pub first_index: u64,
}

/// Why events are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The subscriber fell behind by more than its limits, or, during a replay, by more than history.
    Overflow,
    /// Newer events of the same topic and key replaced them
    /// ([`Overflow::Conflate`](crate::Overflow::Conflate)). The sequences are bounds, and may overlap those of the
    /// events that follow.
    Conflated,
    /// The memory budget of the hub was exceeded, and the oldest events of all went.
    Evicted,
    /// The subscriber asked to resume from before the oldest event of history. Only before the first
    /// event of a subscription.
    Expired,
    /// The subscriber's position belongs to another epoch. Only before the first event.
    EpochChanged,
}

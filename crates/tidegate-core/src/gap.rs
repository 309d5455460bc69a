//! Gaps: the events that a subscription will not be given, counted.

/// A run of events of a subscription that will not be delivered.
///
/// A gap stands where its events are missing: before the events of its [`Batch`](crate::Batch), after those
/// of the batch before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The sequence of the first missing event, or a lower bound where that is unknown.
    pub first_sequence: u64,
    /// The sequence of the last missing event, or an upper bound where that is unknown.
    pub last_sequence: u64,
    /// How many events of the subscription are missing. Exact, except that 0 means unknown, perhaps none, which only
    /// [`Expired`](GapReason::Expired), [`EpochChanged`](GapReason::EpochChanged) and
    /// [`Backplane`](GapReason::Backplane) may be; such a gap takes no index.
    pub count: u64,
    /// The reason why they are missing.
    pub reason: GapReason,
    /// The index of the first missing event; the others follow without holes.
    pub first_index: u64,
}

/// The reason why events are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The subscriber fell behind by more than its limits, or, during a replay, by more than history.
    Overflow,
    /// Newer events of the same topic and key replaced them
    /// ([`Overflow::Conflate`](crate::Overflow::Conflate)). The sequences are bounds, and may overlap those
    /// of the events that follow.
    Conflated,
    /// The memory budget of the hub was exceeded, and the hub evicted the oldest events.
    Evicted,
    /// The subscriber asked to resume from before the oldest event of history. Only before the first
    /// event of a subscription.
    Expired,
    /// The subscriber's position belongs to another epoch. Only before the first event.
    EpochChanged,
    /// The hub was never handed these events, by [`Hub::lose`](crate::Hub::lose), and nobody knows which of them
    /// would have matched. Where other events are missing on both sides of the range, it begins with the first of
    /// those, and the gap that counts them follows.
    Backplane,
}

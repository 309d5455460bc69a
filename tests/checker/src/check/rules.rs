//! The settings of the server that matter to the checks.

/// The settings of the server that decide which streams are right.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Number of events that history keeps, if it has no other bound. An event that left history earlier is a fault.
    pub history_events: Option<u64>,
    /// Whether the memory budget may evict events.
    pub may_evict: bool,
}

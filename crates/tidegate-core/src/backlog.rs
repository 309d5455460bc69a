//! How much lies between two places of a feed.

/// Events and bytes between two numbers of a feed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// How many events.
    pub(crate) events: u64,
    /// Their sizes, summed.
    pub(crate) bytes: u64,
}

//! A broken guarantee, and its location in the records.

use std::{borrow::Cow, fmt};

/// A broken guarantee.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Guarantee 1: events come in sequence order, none twice.
    #[error("order: {0}")]
    Order(Fault),
    /// Guarantee 2: every matching event is delivered as it was published, or counted by a gap.
    #[error("silent loss: {0}")]
    SilentLoss(Fault),
    /// Guarantee 3: a client that reads misses nothing, whatever other clients do.
    #[error("isolation: {0}")]
    Isolation(Fault),
    /// Guarantee 4: the bytes that events hold are bounded.
    #[error("bounded memory: {0}")]
    BoundedMemory(Fault),
    /// Guarantee 5: by default new events win over stale ones.
    #[error("freshness: {0}")]
    Freshness(Fault),
    /// Guarantee 6: from a position in history, no event is missed or repeated; from any other, a gap comes first.
    #[error("resume: {0}")]
    Resume(Fault),
    /// Guarantee 7: a stream that has ended leaves nothing.
    #[error("clean-up: {0}")]
    CleanUp(Fault),
    /// Guarantee 8: a stream that the server ends says why and where to resume.
    #[error("honest ending: {0}")]
    HonestEnding(Fault),
}

/// A fault in the records, and its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The location of the fault.
    pub location: Location,
    /// The fault, in words.
    pub problem: Cow<'static, str>,
    /// The right number: a sequence, an index or a count, depending on the problem.
    pub expected: u64,
    /// The number in the records.
    pub found: u64,
}

/// The location of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// The server's own counters.
    Server,
    /// The answers to publishers.
    Publisher,
    /// The record of a stream.
    Stream {
        /// The name of the client.
        client: String,
        /// The number of the stream among those of the client, from 0.
        stream: usize,
        /// The number of the response after `Subscribed`, from 0.
        response: usize,
    },
}

// ===== impl Fault =====

impl Fault {
    pub(crate) fn new(
        location: Location,
        problem: impl Into<Cow<'static, str>>,
        expected: u64,
        found: u64,
    ) -> Self {
        Self {
            location,
            problem: problem.into(),
            expected,
            found,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            location,
            problem,
            expected,
            found,
        } = self;
        write!(
            out,
            "{location}: {problem}: expected {expected}, found {found}"
        )
    }
}

impl fmt::Display for Location {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => out.write_str("server"),
            Self::Publisher => out.write_str("publisher"),
            Self::Stream {
                client,
                stream,
                response,
            } => {
                write!(out, "client {client}, stream {stream}, response {response}")
            }
        }
    }
}

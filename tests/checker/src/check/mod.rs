//! The checker: whether recorded streams keep the eight guarantees.
//!
//! The checker walks every stream once, beside the log of published events: each event of the log that matches must be
//! delivered or counted by a gap, in its place. The cost is one look at each event published between the start of a
//! stream and its end, without an allocation for each event.
//!
//! # Limits of the checks
//! * A gap counts exactly the matching events in its span, and the next gap begins after it: a client that breaks off
//!   between two gaps resumes after the first.
//! * *Conflated* streams count replaced events ahead of the survivors. So at any moment, at least the events before the
//!   last survivor must be settled, and at most those published; at the end exactly those published.
//! * *Freshness* is judged by the newest sequence of the server, read after the gap has arrived. That is at least the
//!   newest at the moment of the drop: an event that would have fitted then must not be in the gap.

mod conflated;
mod ending;
mod gaps;
mod tally;
mod walk;

use std::{borrow::Cow, collections::BTreeMap, fmt};

pub use self::tally::Tally;
use self::{
    ending::check_ending,
    walk::{Context, Walk},
};
use crate::{
    record::Client,
    truth::{Log, Truth},
};

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

/// The settings of the server that decide which streams are right.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Number of events that history keeps, if it has no other bound. An event that left history earlier is a fault.
    pub history_events: Option<u64>,
    /// Whether the memory budget may evict events.
    pub may_evict: bool,
}

/// Checks the records of `clients` against `truth`.
///
/// # Errors
/// The first broken guarantee.
pub fn check(truth: &Truth, clients: &[Client], rules: Rules) -> Result<Tally, Violation> {
    let mut tally = Tally::default();
    let mut successors = BTreeMap::new();
    let empty = Log::default();
    for client in clients {
        // The epoch, and the first sequence that the streams so far have not settled.
        let mut settled: Option<(u64, u64)> = None;
        for (number, stream) in client.streams.iter().enumerate() {
            tally.open(stream);
            let Some(subscribed) = &stream.subscribed else {
                check_ending(client, number, None)?;
                continue;
            };
            let head = subscribed.position.unwrap_or_default();
            let log = truth.log(head.epoch).unwrap_or(&empty);
            let context = Context {
                rules,
                log,
                successors: successors
                    .entry(head.epoch)
                    .or_insert_with(|| log.successors()),
                wanted: truth.wanted(&subscribed.client_id, &stream.request.filters),
            };
            let mut walk = Walk::new(client, number, subscribed, context);
            if let (Some((epoch, next)), Some(asked)) = (settled, stream.request.resume_after)
                && epoch == head.epoch
                && asked.epoch == epoch
            {
                walk.nothing_between(
                    next,
                    asked.sequence,
                    "events before the position to resume after were never settled",
                )?;
            }
            walk.stream(&mut tally)?;
            settled = walk.next.map(|next| (head.epoch, next)).or(settled);
        }
    }
    Ok(tally)
}

/// Checks the bytes that events held in a server at some moment.
///
/// # Errors
/// [`Violation::BoundedMemory`].
pub fn check_memory(held: u64, bound: u64) -> Result<(), Violation> {
    if held > bound {
        return Err(Violation::BoundedMemory(Fault::new(
            Location::Server,
            "bytes are held",
            bound,
            held,
        )));
    }
    Ok(())
}

/// Checks what a server holds when all of its clients have gone.
///
/// # Errors
/// [`Violation::CleanUp`], or [`Violation::SilentLoss`] if the numbers of the server do not add up.
pub fn check_clean_up(stats: &tidegate::Stats) -> Result<(), Violation> {
    let left = [
        ("subscriptions", stats.subscriptions),
        ("client ids", stats.clients as u64),
        ("feeds", stats.feeds as u64),
        (
            "bytes without an event in history",
            if stats.history_events == 0 {
                stats.retained_bytes
            } else {
                0
            },
        ),
    ];
    for (what, found) in left {
        if found != 0 {
            return Err(Violation::CleanUp(Fault::new(
                Location::Server,
                what,
                0,
                found,
            )));
        }
    }
    let settled =
        stats.handed_off + stats.overflowed + stats.conflated + stats.evicted + stats.abandoned;
    if stats.matched + stats.replayed != settled {
        return Err(Violation::SilentLoss(Fault::new(
            Location::Server,
            "what matched or was replayed must be handed off, lost or abandoned",
            stats.matched + stats.replayed,
            settled,
        )));
    }
    Ok(())
}

// ===== impl Client =====

impl Client {
    fn location(&self, stream: usize, response: usize) -> Location {
        Location::Stream {
            client: self.name.clone(),
            stream,
            response,
        }
    }
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

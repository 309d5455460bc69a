//! The checker: whether recorded streams keep the eight guarantees.
//!
//! Every stream is walked once, beside the log of what was published: each event of the log that matches
//! must be delivered or counted by a gap, in its place. So the cost is one look at each event published
//! between a stream's begin and its end, and nothing is allocated for an event.
//!
//! # What can be known
//! * A gap counts exactly what matches in its span, and the next begins behind it: whoever breaks off between two
//!   resumes behind what the first counts.
//! * *Conflated* streams count what was replaced ahead of the survivors. So at any moment at least what lies
//!   before the last survivor must be settled, at most what was published; at the end exactly that.
//! * *Freshness* is judged with the newest sequence of the server when the gap had arrived, which is at least
//!   that of the moment in which the events were dropped: what would have fitted then may not be in the gap.

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

/// A guarantee that was not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Guarantee 1: events come in sequence order, none twice.
    #[error("order: {0}")]
    Order(Fault),
    /// Guarantee 2: every matching event is delivered as it was published, or counted.
    #[error("silent loss: {0}")]
    SilentLoss(Fault),
    /// Guarantee 3: a client that reads misses nothing, whatever others do.
    #[error("isolation: {0}")]
    Isolation(Fault),
    /// Guarantee 4: what is held is bounded.
    #[error("bounded memory: {0}")]
    BoundedMemory(Fault),
    /// Guarantee 5: by default new events win over stale ones.
    #[error("freshness: {0}")]
    Freshness(Fault),
    /// Guarantee 6: from a position in history nothing is missed or repeated; from any other the client is told.
    #[error("resume: {0}")]
    Resume(Fault),
    /// Guarantee 7: a stream that has ended leaves nothing.
    #[error("clean-up: {0}")]
    CleanUp(Fault),
    /// Guarantee 8: a stream that the server ends says why and where to resume.
    #[error("honest ending: {0}")]
    HonestEnding(Fault),
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub location: Location,
    /// What.
    pub problem: Cow<'static, str>,
    /// The number that would be right: a sequence, an index, a count; the problem tells.
    pub expected: u64,
    /// The number that is there.
    pub found: u64,
}

/// Where something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In the server's own numbers.
    Server,
    /// In the answers that publishers got.
    Publisher,
    /// In the records.
    Stream {
        /// The client.
        client: String,
        /// The stream among those of the client, from 0.
        stream: usize,
        /// The response on the stream after `Subscribed`, from 0.
        response: usize,
    },
}

/// What the server was set up to do, as far as it decides what is right.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// How many events history keeps, where nothing else bounds it: then what left history too early is found.
    pub history_events: Option<u64>,
    /// Whether the memory budget may take events.
    pub may_evict: bool,
}

/// Checks everything that was recorded of `clients`.
///
/// # Errors
/// The first guarantee that was not kept.
pub fn check(truth: &Truth, clients: &[Client], rules: Rules) -> Result<Tally, Violation> {
    let mut tally = Tally::default();
    let mut successors = BTreeMap::new();
    let empty = Log::default();
    for client in clients {
        // Up to where the streams so far have settled, in which epoch.
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

/// Checks the bytes that a server held at some moment.
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

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
//!   Where nothing that came goes beyond a position that is stated, exactly the events up to it must be settled.
//! * *Freshness* is judged by the newest sequence of the server, read after the gap has arrived. That is at least the
//!   newest at the moment of the drop: an event that would have fitted then must not be in the gap.

mod conflated;
mod ending;
mod gaps;
mod rules;
mod tally;
mod walk;

use std::collections::BTreeMap;

use self::{
    ending::check_ending,
    walk::{Context, Walk},
};
pub use self::{rules::Rules, tally::Tally};
use crate::{
    record::Client,
    truth::{Log, Truth},
    violation::{Fault, Location, Violation},
};

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
                check_ending(client, number, None, false)?;
                continue;
            };
            let head = subscribed.position.unwrap_or_default();
            let log = truth.log(head.epoch).unwrap_or(&empty);
            let context = Context {
                rules,
                log,
                successors: successors
                    .entry((head.epoch, stream.predicate))
                    .or_insert_with(|| log.successors(stream.predicate)),
                predicate: stream.predicate,
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

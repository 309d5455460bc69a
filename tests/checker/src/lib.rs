//! The proof that the eight guarantees hold: a checker of recorded streams, and a chaos run.
//!
//! # Checker
//! [`Truth`] holds the events that the server acknowledged to publishers. A [`Stream`] records the responses that one
//! client received. [`check()`] compares them, and returns the first broken guarantee as a [`Violation`], with its
//! location in the records.
//!
//! # Chaos
//! [`chaos::run`] runs publishers, and clients that behave in ten ways, against a server, through a [`Proxy`] that
//! delays, throttles, cuts and silences connections, and another that is slow. It restarts the server in between. A
//! typed hub in the process has subscriptions with predicates meanwhile. All records are checked.

pub mod chaos;
mod check;
pub mod lean;
mod proxy;
mod record;
mod truth;
mod violation;

pub use check::{Rules, Tally, check, check_clean_up, check_memory};
pub use proxy::{FaultCounts, Proxy};
pub use record::{Client, Ending, Stream};
pub use truth::{LAST, Log, Published, Remainder, Truth, digest, number_of};
pub use violation::{Fault, Location, Violation};

use std::env;

use tidegate_server::Http2Engine;

/// Returns the engine for HTTP/2 of the servers that tests start: the one that `TIDEGATE_HTTP2_ENGINE` names, as it does for
/// the program, or the default. `scripts/test` runs them with each.
///
/// # Panics
/// When there is no engine of that name.
#[must_use]
pub fn engine() -> Http2Engine {
    match env::var("TIDEGATE_HTTP2_ENGINE").as_deref() {
        Err(env::VarError::NotPresent) => Http2Engine::default(),
        Ok("tidegate") => Http2Engine::Tidegate,
        Ok("hyper") => Http2Engine::Hyper,
        other => panic!("TIDEGATE_HTTP2_ENGINE is tidegate or hyper, and not {other:?}"),
    }
}

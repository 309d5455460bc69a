//! The proof that the eight guarantees hold: a checker over what clients recorded, and a chaos run.
//!
//! # Checker
//! [`Truth`] is what publishers were told. A [`Stream`] records what one client was sent. [`check()`] compares
//! them, and names the first guarantee that was not kept as a [`Violation`], with the place in the records.
//!
//! # Chaos
//! [`chaos::run`] lets publishers and clients of all manners loose on a server, through a [`Proxy`] that delays,
//! throttles, cuts and silences connections, restarts the server in between, and checks everything.

pub mod chaos;
mod check;
pub mod lean;
mod proxy;
mod record;
mod truth;

pub use check::{Fault, Location, Rules, Tally, Violation, check, check_clean_up, check_memory};
pub use proxy::{FaultCounts, Proxy};
pub use record::{Client, Ending, Stream};
pub use truth::{Log, Published, Truth, digest};

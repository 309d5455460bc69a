//! Conformance of clients: a scripted server that walks a client of any language through docs/protocol.md, and says
//! which rule it broke.
//!
//! A [`Scenario`] is a file of TOML. A [`Player`] plays it over a real connection of HTTP/2, by frames where it must be, and
//! judges the client by its requests and, if it prints them, by its lines of output: the result is a [`Verdict`]. A
//! [`Driver`] starts a program for each scenario, and a [`Suite`] runs many of them. docs/conformance.md explains all of
//! it to authors of clients; `tidegate conformance` is the command.
//!
//! A verdict knows no timing but that which the protocol states: the bounds on how long a client may take are far above
//! what it needs, and only what it must *not* do is waited for briefly.

mod driver;
mod embedded;
mod listener;
mod messages;
mod output;
mod player;
mod position;
mod read;
mod scenario;
mod status;
mod suite;
mod told;
mod verdict;

pub use driver::{Driver, DriverError};
pub use embedded::{files, read_folder, scenarios};
pub use output::{Output, OutputReceiver, OutputSender, output};
pub use player::Player;
pub use position::{Allowed, At, EPOCH, Position};
pub use scenario::{
    Ability, BatchStep, CodeName, Covers, End, EventFields, Expect, GapReasonName, GapStep,
    GoingAwayStep, HttpEnd, LeftEnd, Scenario, ScenarioError, SlowEventStep, Start, StatusEnd,
    Step, Stream, SubscribedStep,
};
pub use suite::Suite;
pub use verdict::{Entry, Problem, Side, Verdict};

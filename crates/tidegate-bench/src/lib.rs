//! Benchmarks of a Tidegate server, or of another that does the same work.
//!
//! # What is measured, and how
//!
//! * **Processor time of the server** is read from the kernel for its process, at the begin and the end of
//!   the measured window, and divided by what was delivered in it: see [`usage`].
//! * **Latency** is measured from the moment for which an event was due, on one clock: an event carries it in
//!   its payload. A publisher that is held up does not hide that.
//! * **Accounting**: every stream verifies that its indexes have no hole, and must in the end have got, or have
//!   been told that it missed, all that matches it. A run that loses an event fails, and reports no figure.
//! * **The benchmark itself** is lean, and says what share of its cores it took. Above 85 % it is likely to
//!   be what was measured, and warns.
//!
//! # Map
//!
//! [`Setup`] finds or starts the server. [`Fanout`], [`Ingest`], [`Churn`] and [`Idle`] are the benchmarks.
//! [`Load`] is the engine below the first two; it drives whatever is a [`target::Target`].
//!
//! # Not everywhere
//!
//! All of this reads `/proc` and holds threads to cores, so it exists on Linux only.
#![cfg(target_os = "linux")]

mod churn;
mod clock;
mod cores;
mod error;
mod fanout;
mod figures;
mod gate;
mod grpc;
mod idle;
mod ingest;
mod latency;
mod machine;
pub mod payload;
mod plan;
mod progress;
mod publishing;
mod run;
mod server;
mod session;
mod stream;
mod subscribing;
mod table;
pub mod target;
mod thread;
mod tls;
pub mod usage;
mod wire;
mod workers;

pub use churn::{Churn, ChurnReport};
pub use clock::Clock;
pub use cores::Cores;
pub use error::Error;
pub use fanout::{Conditions, Fanout, FanoutReport};
pub use figures::{Cost, Figures, ServerCost};
pub use grpc::{Grpc, GrpcConnection, GrpcPublisher};
pub use idle::{Idle, IdleMemory, IdleReport};
pub use ingest::{Ingest, IngestReport};
pub use latency::{Distribution, Latencies};
pub use machine::Machine;
pub use plan::{Plan, Shape, StreamPlan};
pub use progress::Progress;
pub use publishing::Pace;
pub use run::{Load, Measured};
pub use server::{Launch, Server};
pub use session::{ClientShare, Environment, ServerChoice, Session, Setup};
pub use stream::Stream;
pub use table::digits;
pub use tls::Credentials;
pub use workers::Totals;

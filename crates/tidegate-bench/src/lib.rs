//! Benchmarks of a Tidegate server, or of another server that does the same work.
//!
//! # Measurements
//!
//! * **Processor time of the server** is read from the kernel for the server's process, at the beginning and the
//!   end of the measured window, and divided by the deliveries in it: see [`usage`].
//! * **Latency** is measured from the moment an event was due, which the event carries in its payload, on one clock.
//!   A publisher that is late therefore cannot hide its lateness (no coordinated omission).
//! * **Accounting**: every stream verifies that its indexes have no hole. At the end, each must have received every
//!   event that matches it, or a gap that counts it. A run that loses an event fails, and reports no figure.
//! * **The benchmark itself** is lean, and reports the share of its cores that it used. Above 85 % the benchmark is
//!   probably the bottleneck, and the report warns.
//!
//! # Map
//!
//! [`Setup`] finds or starts the server. [`Fanout`], [`Ingest`], [`Churn`], [`Storm`] and [`Idle`] are the benchmarks.
//! [`Load`] is the engine below the first two; it drives any [`target::Target`].
//!
//! # Platforms
//!
//! The crate reads `/proc` and sets the affinity of threads, so it is empty except on Linux.
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
mod storm;
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
pub use grpc::{Grpc, GrpcConnection, GrpcPublisher, GrpcReturned};
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
pub use storm::{Cut, Storm, StormReport, Wave};
pub use stream::Stream;
pub use table::digits;
pub use tls::Credentials;
pub use workers::Totals;

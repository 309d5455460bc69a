//! The targets of the fuzzers: one function each, which panics if it finds a fault.
//!
//! The crate has two callers: libFuzzer, from `fuzz/`, which needs unstable features of the compiler, and
//! `tests/corpus.rs`, which needs a stable compiler only.

mod config;
mod connection;
mod engine;
mod frames;
mod hpack;
mod http2;
mod names;
mod requests;
mod resume;

pub use crate::{
    config::config,
    connection::connection,
    engine::engine,
    hpack::hpack,
    http2::http2,
    names::names,
    requests::{publish, subscribe},
    resume::resume,
};

/// First bytes of a client.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Returns a runtime whose clock is paused, and advances when every task waits for it.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

/// A target: its name, which is that of its corpus too, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("names", names),
    ("publish", publish),
    ("subscribe", subscribe),
    ("resume", resume),
    ("connection", connection),
    ("engine", engine),
    ("hpack", hpack),
    ("http2", http2),
    ("config", config),
];

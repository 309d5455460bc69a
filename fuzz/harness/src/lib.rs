//! What the fuzzers do with their bytes: one function a target, which panics when something is wrong.
//!
//! They are a crate of their own so that two can call them: libFuzzer, from `fuzz/`, which needs features of
//! the compiler that are not stable, and `tests/corpus.rs`, which needs nothing.

mod config;
mod connection;
mod names;
mod requests;
mod resume;

pub use crate::{
    config::config,
    connection::connection,
    names::names,
    requests::{publish, subscribe},
    resume::resume,
};

/// A runtime whose clock stands still until everybody waits for it.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

/// A target: its name, which is that of its corpus, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("names", names),
    ("publish", publish),
    ("subscribe", subscribe),
    ("resume", resume),
    ("connection", connection),
    ("config", config),
];

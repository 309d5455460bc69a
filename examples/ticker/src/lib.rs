//! Prices: a snapshot first, then changes; a slow watcher gets the newest price of each symbol.

mod server;

pub use server::serve;

/// Generated from `proto/ticker.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    clippy::use_self,
    reason = "generated code; its comments come from the .proto file"
)]
pub mod proto {
    tonic::include_proto!("ticker.v1");
}

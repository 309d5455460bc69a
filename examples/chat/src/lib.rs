//! A chat server and client: rooms are topics, names are client ids.

mod server;

pub use server::serve;

/// Generated from `proto/chat.proto`.
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
    tonic::include_proto!("chat.v1");
}

//! Progress of many jobs, for watchers that need every step: the server ends a watcher that is too slow, and it
//! resumes.

mod server;

pub use server::serve;

/// Generated from `proto/jobs.proto`.
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
    tonic::include_proto!("jobs.v1");
}

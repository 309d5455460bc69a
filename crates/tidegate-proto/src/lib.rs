//! The wire contract of Tidegate: package `tidegate.v1`, as Rust types.
//!
//! The `.proto` files under `proto/tidegate/v1/` are the contract; everything in [`v1`] is made from
//! them by the build. Field numbers never change: clients exist that use them.

/// Package `tidegate.v1`: the messages, and the clients and servers of `EventService` and `AdminService`.
#[allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    clippy::use_self,
    reason = "generated code; its comments come from the .proto files"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/tidegate.v1.rs"));
}

/// The encoded `google.protobuf.FileDescriptorSet` of `tidegate.v1` and of what it imports, as server
/// reflection and generic clients want it.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

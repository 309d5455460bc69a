//! Makes the Rust code of `tidegate.v1` from its descriptors, which are committed beside the `.proto` files.
//!
//! Descriptors need no compiler of protobuf: neither `protoc`, nor protox, which would bring a parser and 20 crates
//! into the build of everybody who embeds Tidegate. `tests/descriptors.rs` fails while they differ from the `.proto` files.

use std::{error::Error, fs};

use prost::Message as _;
use prost_types::FileDescriptorSet;

const DESCRIPTORS: &str = "proto/descriptors.binpb";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={DESCRIPTORS}");
    let descriptors = fs::read(DESCRIPTORS)?;
    tonic_prost_build::configure()
        // Payloads are slices of the request they came in; attributes encode in one order.
        .bytes(".tidegate.v1")
        .btree_map(".tidegate.v1")
        .build_transport(false)
        .compile_fds(FileDescriptorSet::decode(&descriptors[..])?)?;
    Ok(())
}

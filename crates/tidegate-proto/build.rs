//! Compiles the `.proto` files with protox, so that no `protoc` has to be installed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

/// What is compiled.
const FILES: [&str; 2] = [
    "tidegate/v1/admin_service.proto",
    "tidegate/v1/event_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Payloads are slices of the request they came in; attributes encode in one order.
        .bytes(".tidegate.v1")
        .btree_map(".tidegate.v1")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}

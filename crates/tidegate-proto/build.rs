//! Compiles the `.proto` files with protox, so that no `protoc` has to be installed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

/// Files to compile, below `proto/`.
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
        // `Bytes`: a payload is a slice of the request that it came in, and not a copy. `BTreeMap`: the same
        // attributes are always the same bytes.
        .bytes(".tidegate.v1")
        .btree_map(".tidegate.v1")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}

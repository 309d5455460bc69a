//! The committed descriptors, from which the code is made, are what the `.proto` files say.

use std::{env, fs, path::Path};

use prost::Message as _;

const FILES: [&str; 2] = [
    "tidegate/v1/admin_service.proto",
    "tidegate/v1/event_service.proto",
];

/// With `UPDATE_EXPECT` set, writes them.
#[test]
fn descriptors_equal_the_proto_files() {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let descriptors = protox::compile(FILES, [&proto]).unwrap().encode_to_vec();
    let path = proto.join("descriptors.binpb");
    if env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(path, descriptors).unwrap();
        return;
    }
    assert!(
        fs::read(path).unwrap() == descriptors,
        "a .proto file was changed: run UPDATE_EXPECT=1 cargo test -p tidegate-proto, then build again"
    );
}

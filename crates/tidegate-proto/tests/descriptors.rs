//! The committed descriptors, from which the code is made, are what the `.proto` files say.

use std::{env, fs, path::Path};

use prost::Message as _;
use prost_types::FileDescriptorSet;

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

/// Generators of code for other languages refuse a file, or make one class of everything, where these are missing.
#[test]
fn every_file_names_its_package_in_each_language() {
    let set = FileDescriptorSet::decode(tidegate_proto::FILE_DESCRIPTOR_SET).unwrap();
    let own = set.file.iter().filter(|file| FILES.contains(&file.name()));
    let mut classes = Vec::new();
    for file in own {
        let options = file.options.as_ref().unwrap();
        assert_eq!(
            options.go_package(),
            "github.com/tidegate/tidegate/gen/go/tidegate/v1;tidegatev1"
        );
        assert_eq!(options.java_package(), "com.tidegate.v1");
        assert!(options.java_multiple_files());
        assert_eq!(options.csharp_namespace(), "Tidegate.V1");
        assert_eq!(options.objc_class_prefix(), "TXX");
        assert_eq!(options.php_namespace(), "Tidegate\\V1");
        assert_eq!(
            options.php_metadata_namespace(),
            "Tidegate\\V1\\GPBMetadata"
        );
        assert_eq!(options.ruby_package(), "Tidegate::V1");
        classes.push(options.java_outer_classname());
    }
    assert_eq!(classes, ["EventServiceProto", "AdminServiceProto"]);
}

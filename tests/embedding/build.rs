//! Compiles the `.proto` file with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["feed.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .extern_path(".feed.v1.Counted", "super::Counted")
        .server_mod_attribute(
            "feed.v1",
            "#[tidegate::encode_once(ServerEvent, super::Counted)]",
        )
        .compile_fds(descriptors)?;
    Ok(())
}

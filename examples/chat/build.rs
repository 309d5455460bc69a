//! Compiles the `.proto` file with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    tonic_prost_build::configure()
        .server_mod_attribute("chat.v1", "#[tidegate::encode_once(ServerEvent)]")
        .compile_fds(protox::compile(["chat.proto"], ["proto"])?)?;
    Ok(())
}

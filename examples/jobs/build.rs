//! Compiles the `.proto` file with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    tonic_prost_build::configure()
        .server_mod_attribute("jobs.v1", "#[tidegate::encode_once(Progress)]")
        .compile_fds(protox::compile(["jobs.proto"], ["proto"])?)?;
    Ok(())
}

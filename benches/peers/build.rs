//! Generates the server of `tidegate.v1` again, over the messages of the crate `tidegate-proto`, with responses that
//! are encoded once.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "../../crates/tidegate-proto/proto";
    println!("cargo::rerun-if-changed={PROTO}");
    let descriptors = protox::compile(["tidegate/v1/event_service.proto"], [PROTO])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .extern_path(".tidegate.v1", "::tidegate_proto::v1")
        .server_mod_attribute(
            "tidegate.v1",
            "#[tidegate::encode_once(::tidegate_proto::v1::SubscribeResponse)]",
        )
        .compile_fds(descriptors)?;
    Ok(())
}

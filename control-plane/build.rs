//! Compiles the protobuf of certificates, balancers and the registry without a `protoc` binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let protos = [
        "istio/v1/auth/ca.proto",
        "mesh/balance/v1/balance.proto",
        "mesh/registry/v1/registry.proto",
    ];
    let files = protox::compile(protos, ["proto"])?;
    let mut names = tonic_prost_build::Config::new();
    // Balancers are in an `Any`.
    names.enable_type_names();
    tonic_prost_build::configure()
        // The client half is for tests.
        .build_client(true)
        .build_transport(false)
        .compile_fds_with_config(files, names)?;
    Ok(())
}

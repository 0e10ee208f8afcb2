//! Compiles the protobuf of certificates, the Workload API and the registry without a `protoc` binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let protos = [
        "istio/v1/auth/ca.proto",
        "mesh/registry/v1/registry.proto",
        "spiffe/workload.proto",
    ];
    let files = protox::compile(protos, ["proto"])?;
    tonic_prost_build::configure()
        // The server half is for tests, which answer with it.
        .build_server(true)
        .build_transport(false)
        .compile_fds(files)?;
    Ok(())
}

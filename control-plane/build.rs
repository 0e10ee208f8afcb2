//! Compiles the certificate service's protobuf without a `protoc` binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["istio/v1/auth/ca.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // The client half is for tests, which send CSRs with it.
        .build_client(true)
        .build_transport(false)
        .compile_fds(files)?;
    Ok(())
}

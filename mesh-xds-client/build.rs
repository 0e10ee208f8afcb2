//! Compiles the certificate service's protobuf without a `protoc` binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["istio/v1/auth/ca.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // The server half is for tests, which answer CSRs with it.
        .build_server(true)
        .build_transport(false)
        .compile_fds(files)?;
    Ok(())
}

//! Generates the CRI client from Kubernetes' proto file.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .compile_protos(&["harness/cri/api.proto"], &["harness/cri"])
}

//! Generates client and server of the kubelet's device plugin API.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_protos(
            &["src/node/device_plugin/api.proto"],
            &["src/node/device_plugin"],
        )
}

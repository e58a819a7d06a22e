//! Generates the messages of `proto/pod_sandbox_config.proto`.

fn main() {
    println!("cargo:rerun-if-changed=proto/pod_sandbox_config.proto");
    protobuf_codegen::Codegen::new()
        .pure()
        .include("proto")
        .input("proto/pod_sandbox_config.proto")
        .cargo_out_dir("cri")
        .run_from_script();
}

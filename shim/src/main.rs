//! `containerd-shim-caisson-v2`: see ARCHITECTURE.md.

#[tokio::main(flavor = "current_thread")]
async fn main() {
    caisson_shim::run().await;
}

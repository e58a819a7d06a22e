//! The program `containerd-shim-caisson-v2`, which containerd starts: see ARCHITECTURE.md.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match caisson_shim::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows the message.
            eprintln!("{}: {}", caisson_node::config::RUNTIME, error.chain());
            ExitCode::FAILURE
        }
    }
}

//! `containerd-shim-caisson-v2`: see ARCHITECTURE.md.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match caisson_shim::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows it.
            eprintln!("{}: {}", caisson_shim::RUNTIME, error.chain());
            ExitCode::FAILURE
        }
    }
}

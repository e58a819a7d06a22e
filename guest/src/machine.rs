//! What the agent runs on: a guest, or for tests the host.

use std::{path::Path, path::PathBuf, process::ExitCode};

/// What the agent runs on.
#[derive(Debug, Clone)]
pub enum Machine {
    /// The guest, whose PID 1 the agent is.
    Guest,
    /// The host of a test. The service is on unix sockets in `dir`.
    Fake { dir: PathBuf },
}

/// Serves a test on the host.
pub fn serve_fake(dir: &Path) -> ExitCode {
    let sink = std::fs::File::options()
        .append(true)
        .create(true)
        .open(dir.join("agent.log"));
    match sink {
        Ok(sink) => crate::console::init(sink, log::LevelFilter::Debug),
        Err(error) => {
            eprintln!(
                "caisson-agent: open {}: {error}",
                dir.join("agent.log").display()
            );
            return ExitCode::FAILURE;
        }
    }
    match crate::service::serve(Machine::Fake { dir: dir.into() }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("caisson-agent: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

//! Writes the shim's log to the FIFO that containerd reads it from.

use std::{str::FromStr, time::Instant};

use caisson_node::host::error::OnFile;
use containerd_shim::logger::FifoLogger;
use log::{LevelFilter, Log, Metadata, Record};

use crate::{
    error::{Error, Result},
    trace,
};

/// The module of ttrpc that logs an error if a client has left before its answer was sent.
/// containerd leaves whenever a request of its own has been cancelled. If the shim is the client,
/// its call returns the error.
const CONNECTIONS: &str = "ttrpc::asynchronous::connection";

struct Logger {
    fifo: FifoLogger,
    level: LevelFilter,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= self.level && metadata.target() != CONNECTIONS
    }

    fn log(&self, record: &Record) {
        trace::note(record);
        if self.enabled(record.metadata()) {
            self.fifo.log(record);
        }
    }

    fn flush(&self) {
        self.fifo.flush();
    }
}

/// Starts to log at the level of the configuration, or at `debug` if containerd asks for it.
///
/// # Errors
///
/// If the FIFO `log` in the current folder can't be opened (containerd, core/runtime/v2/README.md,
/// "Logging").
pub(crate) fn init(debug: bool, level: &str, namespace: &str, id: &str) -> Result<()> {
    let fifo = FifoLogger::new(namespace, id).map_err(Error::file("open", "log"))?;
    let level = LevelFilter::from_str(level).unwrap_or(LevelFilter::Info);
    let least = if debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Off
    };
    let level = level.max(least);
    // The stages of a start are kept, whatever the level.
    log::set_max_level(level.max(LevelFilter::Debug));
    trace::begin();
    // A process logs to one place, and nothing has logged before.
    let _ = log::set_boxed_logger(Box::new(Logger { fifo, level }));
    Ok(())
}

/// Logs how long a stage of a start took.
pub fn stage(pod: &str, stage: &str, since: Instant) {
    let ms = since.elapsed().as_millis() as u64;
    log::info!(pod, stage, ms; "start");
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    fn is_logged(target: &str) -> bool {
        let logger = Logger {
            fifo: FifoLogger::with_file(tempfile::tempfile().unwrap()),
            level: LevelFilter::Info,
        };
        let metadata = Metadata::builder()
            .level(Level::Error)
            .target(target)
            .build();
        logger.enabled(&metadata)
    }

    #[test]
    fn error_of_the_shim_is_logged() {
        assert!(is_logged("caisson_shim::pod"));
    }

    #[test]
    fn error_of_a_client_that_left_is_not_logged() {
        assert!(!is_logged(CONNECTIONS));
    }
}

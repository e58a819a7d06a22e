//! The errors of QEMU's monitor.

use std::{io, time::Duration};

/// A command to QEMU failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {desc} ({class})")]
    Refused {
        command: String,
        class: String,
        desc: String,
    },
    /// The connection to QEMU's monitor broke.
    #[error("connection to QEMU's monitor")]
    Connection(#[source] io::Error),
    /// QEMU's monitor sent something that is not QMP.
    #[error("QEMU's monitor said: {0}")]
    Protocol(String),
    /// QEMU did not answer in time.
    #[error("{what} took longer than {limit:?}")]
    TimedOut { what: String, limit: Duration },
}

impl From<QmpError> for crate::Error {
    fn from(error: QmpError) -> crate::Error {
        match error {
            QmpError::Connection(source) => crate::Error::Connection {
                to: "QEMU's monitor",
                source,
            },
            QmpError::TimedOut { what, limit } => crate::Error::TimedOut { what, limit },
            error @ (QmpError::Refused { .. } | QmpError::Protocol(_)) => {
                crate::Error::Driver(Box::new(error))
            }
        }
    }
}

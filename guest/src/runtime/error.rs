//! The errors of a runtime process.

use std::{io, path::PathBuf};

/// A failed task. Its text goes to the host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not valid")]
    Parse {
        path: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("config.json: {field} is missing")]
    Missing { field: &'static str },
    #[error("open secret {origin}")]
    Descriptor {
        origin: String,
        #[source]
        source: io::Error,
    },
    #[error("disk {serial} is not there")]
    Disk { serial: String },
    #[error("create container")]
    Create(#[source] libcontainer::error::LibcontainerError),
    #[error("cgroup {}: {message}", path.display())]
    Cgroup { path: PathBuf, message: String },
    #[error("{call}")]
    System {
        call: &'static str,
        #[source]
        source: io::Error,
    },
    /// A failure that the new process itself reports, in the words of runc.
    #[error("{0}")]
    Process(String),
}

/// The result of a task, or of a part of it.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Error {
        let path = path.into();
        move |source| Error::File {
            action,
            path,
            source: source.into(),
        }
    }

    pub fn system<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::System {
            call,
            source: source.into(),
        }
    }
}

//! The errors of a runtime process.

use std::{io, path::PathBuf};

/// A failed task. Its text goes to the host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be used, or the kernel refused a call.
    #[error(transparent)]
    Failed(#[from] crate::Error),
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
    /// A failure that the new process itself reports, in the words of runc.
    #[error("{0}")]
    Process(String),
}

/// The result of a task, or of a part of it.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// See [`crate::Error::file`].
    pub fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Error {
        let failed = crate::Error::file(action, path);
        move |source| failed(source).into()
    }

    /// See [`crate::Error::system`].
    pub fn system<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Error {
        let failed = crate::Error::system(call);
        move |source| failed(source).into()
    }
}

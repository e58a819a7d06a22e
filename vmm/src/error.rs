//! What can go wrong with a VM.

use std::path::PathBuf;

/// A failed operation on a VM, with the path or device that it failed on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that the VM needs can't be used.
    #[error("{what} {}", path.display())]
    File {
        /// e.g. `open kernel`
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The result of an operation on a VM.
pub type Result<T> = std::result::Result<T, Error>;

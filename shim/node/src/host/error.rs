//! The error of an operation on a file or folder of the host. The errors of the features contain
//! it.

use std::{io, path::PathBuf};

/// A failed operation on a file or folder of the host.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct FileError {
    /// What was done to the path, e.g. `create` or `read the owner of`.
    pub operation: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Errors that can say which operation on which path failed.
pub trait OnFile: From<FileError> {
    /// Returns a function for `map_err` after an operation on a path.
    fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| {
            Self::from(FileError {
                operation,
                path,
                source,
            })
        }
    }
}

impl<E: From<FileError>> OnFile for E {}

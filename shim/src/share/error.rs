//! The errors of the shared folder.

use std::path::PathBuf;

use caisson_node::host::error::FileError;

/// What can go wrong with the shared folder.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// A mount on the host failed.
    #[error("mount {} for the guest", target.display())]
    Mount {
        target: PathBuf,
        #[source]
        source: Box<containerd_shim::Error>,
    },
    /// An operation on a file or folder failed.
    #[error(transparent)]
    File(#[from] FileError),
}

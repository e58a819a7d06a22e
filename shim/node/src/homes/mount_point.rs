//! The place on the host at which a pod's home is mounted, and the folder of it that is shared.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::error::HomeError;
use crate::host::error::OnFile;

/// The mount point of the home's file system in the pod's state folder. [`crate::state::remove`]
/// unmounts it.
pub(super) const MOUNT: &str = "home";
/// The folder of the file system that is shared. Beside it is ext4's own `lost+found`.
const FILES: &str = "files";

/// The mount point of a pod's home. It exists as long as the pod has a home.
pub fn place(state_dir: &Path, pod: &str) -> PathBuf {
    state_dir.join(pod).join(MOUNT)
}

/// The shared folder of a file system that is mounted at `place`.
pub fn files(place: &Path) -> PathBuf {
    place.join(FILES)
}

/// Refuses a shared folder that is not a directory. No guest can put a symlink there, but whoever
/// makes an image can.
pub fn check_files(files: &Path) -> Result<(), HomeError> {
    let metadata = fs::symlink_metadata(files).map_err(HomeError::file("read", files))?;
    match metadata.is_dir() {
        true => Ok(()),
        false => Err(HomeError::file("share", files)(
            io::ErrorKind::NotADirectory.into(),
        )),
    }
}

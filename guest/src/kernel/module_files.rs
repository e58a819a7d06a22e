//! The kernel modules of the initramfs. They are files `/lib/modules/<name>.ko`. Two lists are
//! beside them: `order` has them in their load order, and `others` has the modules that only the
//! disk with all modules has.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::errno::Errno;

use crate::{Error, Result};

/// The directory of the modules in the initramfs.
const DIR: &str = "/lib/modules";
/// The modules for any disk.
pub const DISK: &[&str] = &["virtio_blk"];

/// Returns the modules that a file system of this type needs, in load order.
pub fn of_fs(fs_type: &str) -> Vec<&str> {
    match fs_type {
        "erofs" => vec!["libcrc32c", "erofs"],
        "ext4" => vec!["crc16", "mbcache", "jbd2", "crc32c_generic", "ext4"],
        other => vec![other],
    }
}

/// Returns the path at which the initramfs would have this module.
pub fn in_initramfs(name: &str) -> PathBuf {
    Path::new(DIR).join(format!("{name}.ko"))
}

/// Loads a module file into the kernel. A module that is already loaded counts as a success.
pub fn insert(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: an open descriptor, an empty parameter string and no flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            std::os::fd::AsRawFd::as_raw_fd(&file.as_fd()),
            c"".as_ptr(),
            0,
        )
    };
    match Errno::result(result) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Loads a module of the initramfs. One that the initramfs does not have counts as a success.
pub fn insert_if_there(name: &str) -> Result<()> {
    let path = in_initramfs(name);
    match path.exists() {
        true => insert(&path).map_err(Error::file("load", &path)),
        false => Ok(()),
    }
}

/// Returns the modules of the initramfs in their load order; empty if the file does not exist.
pub fn order() -> Vec<String> {
    list("order")
}

/// Returns the modules that only the disk has; empty if the file does not exist.
pub fn others() -> Vec<String> {
    list("others")
}

fn list(name: &str) -> Vec<String> {
    fs::read_to_string(Path::new(DIR).join(name))
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_string)
        .collect()
}

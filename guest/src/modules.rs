//! Loads the kernel modules of the initramfs. They are files `/lib/modules/<name>.ko`, and
//! `/lib/modules/order` has their load order.
//!
//! Each module costs 10 to 30 ms under emulation. So the boot loads only those of the control
//! channel, and [`crate::devices`] loads the others when a device that needs them is plugged in.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Mutex,
};

use nix::errno::Errno;

use crate::{modprobe, Error, Result};

/// The directory of the modules in the initramfs.
pub const DIR: &str = "/lib/modules";

/// The modules for the connection to the host.
pub const CONTROL_CHANNEL: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
];
/// The modules for a share.
pub const SHARE: &[&str] = &["fuse", "virtiofs"];
/// The modules for any disk.
pub const DISK: &[&str] = &["virtio_blk"];
/// The modules for a network card.
pub const NETWORK: &[&str] = &["failover", "net_failover", "virtio_net"];
/// The modules for memory hot-plug.
pub const MEMORY: &[&str] = &["virtio_mem"];

/// The modules for giving free pages back to the host.
pub const FREE_PAGE_REPORTING: &[&str] = &["virtio_balloon"];

static LOADED: Mutex<Option<HashSet<String>>> = Mutex::new(None);

/// Loads modules in the order given. A module that is already loaded or built into the kernel
/// counts as a success.
///
/// If the initramfs does not have a module, the disk with all modules is searched, if there is one.
pub fn load(names: &[&str]) -> Result<()> {
    let mut loaded = match LOADED.lock() {
        Ok(loaded) => loaded,
        Err(poisoned) => poisoned.into_inner(),
    };
    let loaded = loaded.get_or_insert_with(HashSet::new);
    for name in names {
        if loaded.contains(*name) {
            continue;
        }
        if load_one(name)? {
            loaded.insert(name.to_string());
        }
    }
    Ok(())
}

/// Returns the modules that a file system of this type needs, in load order.
pub fn of_fs(fs_type: &str) -> Vec<&str> {
    match fs_type {
        "erofs" => vec!["libcrc32c", "erofs"],
        "ext4" => vec!["crc16", "mbcache", "jbd2", "crc32c_generic", "ext4"],
        other => vec![other],
    }
}

/// Loads one module. Returns `false` if neither the initramfs nor the disk has it (it may be built
/// into the kernel).
fn load_one(name: &str) -> Result<bool> {
    let failed = |source| Error::Module {
        name: name.to_string(),
        source,
    };
    let path = in_initramfs(name);
    if path.exists() {
        return insert(&path).map_err(failed).map(|()| true);
    }
    if Path::new("/sys/module").join(name).exists() {
        return Ok(true);
    }
    modprobe::from_disk(name)
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

/// Returns the modules of the initramfs in their load order; empty if the file does not exist.
pub fn order() -> Vec<String> {
    fs::read_to_string(Path::new(DIR).join("order"))
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_string)
        .collect()
}

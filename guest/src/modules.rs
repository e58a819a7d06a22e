//! Kernel modules of the initramfs: `/lib/modules/<name>.ko`, `/lib/modules/order` has their load order.
//!
//! Each module costs 10 to 30 ms under emulation, so the boot loads those of the control channel only and
//! [`crate::devices`] asks for the others when a device of their kind is plugged in.

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

/// Where the initramfs has its modules.
pub const DIR: &str = "/lib/modules";

/// What the host's connection needs.
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
/// What a share needs.
pub const SHARE: &[&str] = &["fuse", "virtiofs"];
/// What any disk needs.
pub const DISK: &[&str] = &["virtio_blk"];
/// What a network card needs.
pub const NETWORK: &[&str] = &["failover", "net_failover", "virtio_net"];
/// What memory hot-plug needs.
pub const MEMORY: &[&str] = &["virtio_mem"];

/// What giving free pages back to the host needs.
pub const FREE_PAGE_REPORTING: &[&str] = &["virtio_balloon"];

static LOADED: Mutex<Option<HashSet<String>>> = Mutex::new(None);

/// Loads modules in the order given. One that is loaded or built into the kernel is a success.
///
/// A module that the initramfs does not have is looked for on the disk with all modules, if there is one.
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

/// The modules that a file system of this type needs, in their order.
pub fn of_fs(fs_type: &str) -> Vec<&str> {
    match fs_type {
        "erofs" => vec!["libcrc32c", "erofs"],
        "ext4" => vec!["crc16", "mbcache", "jbd2", "crc32c_generic", "ext4"],
        other => vec![other],
    }
}

/// Whether the module is there now; `false` where neither the initramfs nor the disk has it (or it is built in).
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

/// Where the initramfs would have this module.
pub fn in_initramfs(name: &str) -> PathBuf {
    Path::new(DIR).join(format!("{name}.ko"))
}

/// Gives the kernel a module file. One that is there already is a success.
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

/// The modules of the initramfs in their load order; empty without the file.
pub fn order() -> Vec<String> {
    fs::read_to_string(Path::new(DIR).join("order"))
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_string)
        .collect()
}

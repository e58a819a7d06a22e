//! Loads kernel modules, each once: from the initramfs, or else from the disk with all modules.
//!
//! Each module costs 10 to 30 ms under emulation. So the boot loads only those of the control
//! channel, and [`crate::devices`] loads the others when a device that needs them is plugged in.

use std::{cell::LazyCell, collections::HashSet, sync::Mutex};

use super::{module_disk, module_files};
use crate::{Error, Result};

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
/// A module that only the disk has is loaded from there, if there is a disk.
pub fn load(names: &[&str]) -> Result<()> {
    let mut loaded = match LOADED.lock() {
        Ok(loaded) => loaded,
        Err(poisoned) => poisoned.into_inner(),
    };
    let loaded = loaded.get_or_insert_with(HashSet::new);
    let others: LazyCell<_> = LazyCell::new(module_files::others);
    for name in names {
        if loaded.contains(*name) {
            continue;
        }
        if load_one(name, &others)? {
            loaded.insert(name.to_string());
        }
    }
    Ok(())
}

/// Loads one module. One that neither the initramfs nor the disk has is built into the kernel, or
/// does not exist for it. Returns `false` if the machine has no disk yet.
fn load_one(name: &str, others: &LazyCell<Vec<String>>) -> Result<bool> {
    let failed = |source| Error::Module {
        name: name.to_string(),
        source,
    };
    let path = module_files::in_initramfs(name);
    if path.exists() {
        return module_files::insert(&path).map_err(failed).map(|()| true);
    }
    let is_on_disk = others.iter().any(|other| other == name);
    Ok(!is_on_disk || module_disk::load(name)?)
}

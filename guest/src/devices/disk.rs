//! Mounts disks, block devices that the host plugs into the guest.

use std::fs;

use caisson_protocol::agent::Disk;
use nix::mount::{mount, MsFlags};

use super::{overlay, target, verity};
use crate::{
    kernel::{
        module_files, modules,
        mounts::is_mount_point,
        sysfs::{find_disk, wait_for},
    },
    Error, Result,
};

/// Waits for a disk and mounts it at `DISKS/<serial>` if it has a file system.
pub fn attach(disk: &Disk) -> Result<()> {
    let target = target::disk(&disk.serial)?;
    modules::load(module_files::DISK)?;
    let device = wait_for("block", &format!("disk {}", disk.serial), || {
        Ok(find_disk(&disk.serial))
    })?;
    if disk.fs_type.is_empty() || is_mount_point(&target)? {
        return Ok(());
    }
    if !matches!(disk.fs_type.as_str(), "squashfs" | "erofs" | "ext4") {
        return Err(Error::Argument {
            field: "disk.fs_type",
            value: disk.fs_type.clone(),
            why: "must be squashfs, erofs, ext4 or empty",
        });
    }
    modules::load(&module_files::of_fs(&disk.fs_type))?;
    fs::create_dir_all(&target).map_err(Error::file("create directory", &target))?;
    let device = match disk.verity.as_ref() {
        Some(verity) => verity::open(&disk.serial, &device, verity)?,
        None => device,
    };
    let mut flags = match disk.root {
        true => MsFlags::empty(),
        false => MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
    };
    flags.set(MsFlags::MS_RDONLY, disk.read_only);
    let mounted = mount(
        Some(&device),
        &target,
        Some(disk.fs_type.as_str()),
        flags,
        disk.discard.then_some("discard"),
    );
    match mounted {
        // Another call for the same disk was faster.
        Err(nix::Error::EBUSY) if is_mount_point(&target)? => Ok(()),
        result => {
            result.map_err(|source| Error::Mount {
                what: format!("{} disk {}", disk.fs_type, disk.serial),
                target: target.clone(),
                source: source.into(),
            })?;
            match disk.overlay.as_ref() {
                Some(overlay) => overlay::mount(&target, overlay),
                None => Ok(()),
            }
        }
    }
}

/// Unmounts a disk. One that is not mounted counts as a success.
pub fn detach(disk: &Disk) -> Result<()> {
    target::let_go(&target::disk(&disk.serial)?)?;
    verity::close(&disk.serial)
}

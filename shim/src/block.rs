//! Finds the host's block devices that a pod's VM gets as disks: PVCs with volumeMode Block, and
//! roots from containerd's block snapshotters.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use caisson_node::host::error::{FileError, OnFile};
use caisson_oci::devices::BlockDevice;
use caisson_protocol::{agent as proto, path::DISKS};
use caisson_vmm::Device;
use containerd_shim::protos::types::mount::Mount;
use proto::attach_request::Device as GuestDevice;
use sha2::{Digest, Sha256};

use crate::plug::Plug;

/// Returns both halves of plugging in a block device.
pub fn plug(device: &BlockDevice) -> Result<Plug, FileError> {
    let disk = proto::Disk {
        serial: device.serial.clone(),
        read_only: device.read_only(),
        ..Default::default()
    };
    Ok(Plug {
        vm: Device::Disk {
            serial: device.serial.clone(),
            path: find(device)?,
            read_only: device.read_only(),
        },
        guest: GuestDevice::Disk(disk),
        hold: None,
    })
}

/// The file systems that the guest can mount as a container's root.
const FILE_SYSTEMS: [&str; 2] = ["ext4", "erofs"];
/// Mount options that do not concern the file system.
const OPTIONS: [&str; 3] = ["rw", "ro", "loop"];

/// Returns a container's root as a disk, if containerd has it on a device or in a file of its own
/// (snapshotters `blockfile` and `devmapper`). Such a root needs no virtiofs. Returns `None` for
/// any other root.
pub fn root(container: &str, mounts: &[Mount]) -> Option<Plug> {
    let [mount] = mounts else { return None };
    let known = |option: &String| OPTIONS.contains(&option.as_str());
    if !FILE_SYSTEMS.contains(&mount.type_.as_str()) || !mount.options.iter().all(known) {
        return None;
    }
    let read_only = mount.options.iter().any(|option| option == "ro");
    let serial = root_serial(container);
    Some(Plug {
        vm: Device::Disk {
            serial: serial.clone(),
            path: mount.source.clone().into(),
            read_only,
        },
        guest: GuestDevice::Disk(proto::Disk {
            serial,
            fs_type: mount.type_.clone(),
            read_only,
            root: true,
            ..Default::default()
        }),
        hold: None,
    })
}

/// Returns the path at which the guest mounts a root from [`root`].
pub fn root_place(container: &str) -> PathBuf {
    Path::new(DISKS).join(root_serial(container))
}

/// Derives the serial of a container's root. It is a hash, since a container's id can be longer
/// than a serial may be.
pub fn root_serial(container: &str) -> String {
    let digest = format!("{:x}", Sha256::digest(container));
    format!("r-{}", &digest[..16])
}

/// Finds the node in /dev with these numbers. The kernel reports its name
/// (Documentation/ABI/stable/sysfs-block, `uevent`).
fn find(device: &BlockDevice) -> Result<PathBuf, FileError> {
    let (major, minor) = (device.major, device.minor);
    let uevent = format!("/sys/dev/block/{major}:{minor}/uevent");
    let text = fs::read_to_string(&uevent).map_err(FileError::file("find block device", uevent))?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let path = Path::new("/dev").join(name.unwrap_or_default());
    let metadata = fs::metadata(&path).map_err(FileError::file("open block device", &path))?;
    let numbers = |rdev| (i64::from(libc::major(rdev)), i64::from(libc::minor(rdev)));
    if !metadata.file_type().is_block_device() || numbers(metadata.rdev()) != (major, minor) {
        let other = std::io::Error::other(format!("is not block device {major}:{minor}"));
        return Err(FileError::file("open block device", path)(other));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fs_type: &str, options: &[&str]) -> Mount {
        Mount {
            type_: fs_type.to_owned(),
            source: "/var/lib/snapshots/1".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn root_on_a_device_is_a_disk_and_others_are_not() {
        assert!(root("web", &[mount("ext4", &["rw", "loop"])]).is_some());
        let read_only = root("web", &[mount("erofs", &["ro"])]).unwrap();
        assert!(matches!(
            read_only.vm,
            Device::Disk {
                read_only: true,
                ..
            }
        ));
        let overlay = mount("overlay", &["lowerdir=/a"]);
        assert!(root("web", &[overlay]).is_none());
        assert!(root("web", &[mount("ext4", &["rw", "subdir=x"])]).is_none());
        assert!(root("web", &[mount("ext4", &[]), mount("ext4", &[])]).is_none());
        assert!(root("web", &[]).is_none());
    }

    #[test]
    fn serial_of_a_root_is_as_long_as_a_disk_can_say() {
        assert!(root_serial(&"x".repeat(76)).len() <= 20);
        assert_ne!(root_serial("a"), root_serial("b"));
    }
}

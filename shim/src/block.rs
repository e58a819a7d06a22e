//! Block devices of the host that a pod's VM gets as disks: PVCs with volumeMode Block.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use caisson_oci::devices::BlockDevice;
use caisson_protocol::agent as proto;
use caisson_vmm::Device;
use proto::attach_request::Device as GuestDevice;

use crate::{
    error::{Error, Result},
    machine::Plug,
};

/// The two halves of plugging one in.
pub fn plug(device: &BlockDevice) -> Result<Plug> {
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

/// The node in /dev with these numbers: the kernel says its name (Documentation/ABI/stable/sysfs-block, `uevent`).
fn find(device: &BlockDevice) -> Result<PathBuf> {
    let (major, minor) = (device.major, device.minor);
    let uevent = format!("/sys/dev/block/{major}:{minor}/uevent");
    let text = fs::read_to_string(&uevent).map_err(Error::file("find block device", uevent))?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let path = Path::new("/dev").join(name.unwrap_or_default());
    let metadata = fs::metadata(&path).map_err(Error::file("open block device", &path))?;
    let numbers = |rdev| (i64::from(libc::major(rdev)), i64::from(libc::minor(rdev)));
    if !metadata.file_type().is_block_device() || numbers(metadata.rdev()) != (major, minor) {
        let other = std::io::Error::other(format!("is not block device {major}:{minor}"));
        return Err(Error::file("open block device", path)(other));
    }
    Ok(path)
}

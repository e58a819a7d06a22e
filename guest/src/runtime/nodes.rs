//! Adds device nodes that only the guest can number: those of disks that were plugged in, and all
//! of the guest's for privileged containers.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    Mount, MountBuilder, Spec,
};

use super::{
    error::{Error, Result},
    task::DiskNode,
    users,
};
use crate::kernel::sysfs::find_disk;

/// Nodes of drivers whose modules the kernel loads when the node is opened. devtmpfs has these
/// nodes only afterwards (kmod's `modules.devname`).
const ON_DEMAND: &[(&str, LinuxDeviceType, i64, i64)] = &[
    ("/dev/fuse", LinuxDeviceType::C, 10, 229),
    ("/dev/net/tun", LinuxDeviceType::C, 10, 200),
    ("/dev/loop-control", LinuxDeviceType::C, 10, 237),
    ("/dev/mapper/control", LinuxDeviceType::C, 10, 236),
    ("/dev/ppp", LinuxDeviceType::C, 108, 0),
];
/// The entries of /dev that each container has of its own.
const OWN: &[&str] = &[
    "pts", "shm", "mqueue", "console", "ptmx", "null", "zero", "full", "random", "urandom", "tty",
];

/// Adds nodes to a spec, and returns the device rules that they need.
pub(super) fn add(
    spec: &mut Spec,
    disks: &[DiskNode],
    guest_devices: bool,
) -> Result<Vec<LinuxDeviceCgroup>> {
    let own_users = users::are_own(spec);
    let mut rules = Vec::new();
    let mut nodes = Vec::new();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for disk in disks {
        let missing = || Error::Disk {
            serial: disk.serial.clone(),
        };
        let node = find_disk(&disk.serial).ok_or_else(missing)?;
        let metadata = fs::metadata(&node).map_err(Error::file("open", &node))?;
        let (major, minor) = numbers(metadata.rdev());
        let made = LinuxDeviceBuilder::default()
            .path(&disk.path)
            .typ(LinuxDeviceType::B)
            .major(major)
            .minor(minor)
            .file_mode(disk.mode & 0o7777)
            .uid(disk.uid)
            .gid(disk.gid)
            .build();
        match own_users {
            false => nodes.push(made.map_err(|_| missing())?),
            true => mounts.push(shown(&node, &disk.path).ok_or_else(missing)?),
        }
        let rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::B)
            .major(major)
            .minor(minor)
            .access(&disk.access)
            .build();
        rules.push(rule.map_err(|_| missing())?);
    }
    if guest_devices {
        walk(Path::new("/dev"), &mut nodes);
        for (path, typ, major, minor) in ON_DEMAND {
            nodes.extend(node(Path::new(path), *typ, *major, *minor, 0o666, 0));
        }
    }
    spec.set_mounts(Some(mounts));
    if let Some(linux) = spec.linux_mut() {
        let mut devices = linux.devices().clone().unwrap_or_default();
        for node in nodes {
            if devices.iter().all(|device| device.path() != node.path()) {
                devices.push(node);
            }
        }
        if own_users {
            // Nodes can't be made in a user namespace, so libcontainer shows the guest's nodes
            // where the guest has them.
            devices.retain(|device| device.path().exists());
        }
        linux.set_devices(Some(devices).filter(|devices| !devices.is_empty()));
    }
    Ok(rules)
}

/// Returns a mount of the guest's node of a disk at the path that a container wants. This is for
/// containers that can have no nodes of their own.
fn shown(node: &Path, path: &Path) -> Option<Mount> {
    let mount = MountBuilder::default().typ("bind").source(node);
    let options = ["bind", "nosuid", "noexec"].map(String::from);
    mount.destination(path).options(options).build().ok()
}

/// Collects every node below a directory of devtmpfs. What can't be read is left out.
fn walk(dir: &Path, nodes: &mut Vec<LinuxDevice>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let own = dir == Path::new("/dev") && OWN.iter().any(|own| name == *own);
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        let kind = metadata.file_type();
        let typ = match (own, kind.is_dir()) {
            (true, _) => continue,
            (_, true) => {
                walk(&path, nodes);
                continue;
            }
            _ if kind.is_char_device() => LinuxDeviceType::C,
            _ if kind.is_block_device() => LinuxDeviceType::B,
            _ => continue,
        };
        let (major, minor) = numbers(metadata.rdev());
        let mode = metadata.mode() & 0o7777;
        nodes.extend(node(&path, typ, major, minor, mode, metadata.gid()));
    }
}

fn node(
    path: &Path,
    typ: LinuxDeviceType,
    major: i64,
    minor: i64,
    mode: u32,
    gid: u32,
) -> Option<LinuxDevice> {
    let node = LinuxDeviceBuilder::default().path(path).typ(typ);
    let node = node.major(major).minor(minor).file_mode(mode);
    node.uid(0u32).gid(gid).build().ok()
}

fn numbers(device: u64) -> (i64, i64) {
    (libc::major(device).into(), libc::minor(device).into())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn paths(spec: &Spec) -> Vec<PathBuf> {
        let devices = spec.linux().as_ref().unwrap().devices().iter().flatten();
        devices.map(|device| device.path().clone()).collect()
    }

    #[test]
    fn privileged_container_has_what_loads_on_demand_and_nothing_twice() {
        let text = r#"{"ociVersion":"1.1.0","linux":{"devices":[{"path":"/dev/fuse","type":"c","major":10,"minor":229}]}}"#;
        let mut spec: Spec = serde_json::from_str(text).unwrap();
        assert!(add(&mut spec, &[], true).unwrap().is_empty());
        let paths = paths(&spec);
        assert!(paths.contains(&"/dev/net/tun".into()));
        assert_eq!(
            paths.iter().filter(|path| path.ends_with("fuse")).count(),
            1
        );
        assert!(!paths.contains(&"/dev/null".into()));
    }

    #[test]
    fn disk_that_is_not_there_is_named() {
        let mut spec: Spec = serde_json::from_str(r#"{"ociVersion":"1.1.0","linux":{}}"#).unwrap();
        let disk = DiskNode {
            serial: "nosuch".to_string(),
            path: "/dev/xvda".into(),
            mode: 0o660,
            uid: 0,
            gid: 0,
            access: "rwm".to_string(),
        };
        let error = add(&mut spec, &[disk], false).unwrap_err().to_string();
        assert!(error.contains("nosuch"), "{error}");
    }
}

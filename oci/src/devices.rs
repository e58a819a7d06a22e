//! Translates the device nodes that a spec asks for. The only devices of the host that get into a
//! guest are block devices, each as a disk of its own.
//!
//! - What every container has (`/dev/null` …): the guest's, made by its runtime.
//! - [`GUEST`], drivers without hardware (`/dev/fuse`, `/dev/net/tun` …): the guest's. The numbers
//!   are the same on any Linux.
//! - A block device by name (PVC with volumeMode Block; its numbers have a rule of their own): a
//!   virtio disk of the VM, at the path asked for.
//! - Another device by name: refused.
//! - The host's `/dev` as a volume: the guest's, or, at `/dev`, one of the container's own.
//! - Any other device of a privileged container, whose spec lists all of the host's: dropped, with
//!   a warning. The container gets all devices of the guest.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Mount, MountBuilder,
    Spec,
};

use crate::{error::shorten, Error, Result};

/// Character devices of kernel drivers that need no hardware, as major and minor numbers (kernel,
/// Documentation/admin-guide/devices.txt).
pub const GUEST: &[(i64, i64)] = &[
    (1, 3),    // null
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (1, 11),   // kmsg
    (5, 0),    // tty
    (5, 2),    // ptmx
    (10, 200), // net/tun
    (10, 229), // fuse
    (108, 0),  // ppp
];
/// The majors of the [`GUEST`] devices that libcontainer makes by itself.
const DEFAULT_MAJORS: [i64; 2] = [1, 5];
const KMSG: (i64, i64) = (1, 11);
/// Linux has no larger numbers (kernel, include/linux/kdev_t.h, `MINORBITS`).
const MAX_NUMBERS: (i64, i64) = ((1 << 12) - 1, (1 << 20) - 1);
/// The advice given when another device is refused.
pub const ADVICE: &str = "the host's devices are not reachable from the guest; possible are block devices (volumeDevices), /dev/fuse, /dev/net/tun, /dev/kmsg and /dev/ppp, and all of the guest's for a privileged container";

/// A block device of the host that the VM gets as a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// The serial number of the VM's disk: always the same for the same device, at most 20 bytes.
    pub serial: String,
    /// The major number on the host.
    pub major: i64,
    /// The minor number on the host.
    pub minor: i64,
    /// The path of the node in the container.
    pub path: PathBuf,
    /// Permission bits of the node.
    pub mode: u32,
    /// Owner of the node.
    pub uid: u32,
    /// Group of the node.
    pub gid: u32,
    /// The access that the rule gives: some of `r`, `w` and `m`.
    pub access: String,
}

impl BlockDevice {
    /// Returns whether the container may not write to it.
    pub fn read_only(&self) -> bool {
        !self.access.contains('w')
    }
}

/// Removes from a spec the devices that are not the guest's own. Returns the disks to plug in, and
/// a warning about what was dropped.
pub fn translate(spec: &mut Spec, privileged: bool) -> Result<(Vec<BlockDevice>, Option<String>)> {
    let Some(linux) = spec.linux_mut() else {
        return Ok((Vec::new(), None));
    };
    let mut rules = Vec::new();
    if let Some(resources) = linux.resources() {
        rules.extend(resources.devices().iter().flatten().cloned());
    }
    let (mut disks, mut kept, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
    for device in linux.devices().iter().flatten() {
        let numbers = (device.major(), device.minor());
        let named = rules.iter().find(|rule| names(rule, device));
        let path = device.path().display().to_string();
        match (device.typ(), named) {
            (LinuxDeviceType::C | LinuxDeviceType::U, _) if GUEST.contains(&numbers) => {
                if !DEFAULT_MAJORS.contains(&numbers.0) || numbers == KMSG {
                    kept.push(device.clone());
                }
            }
            // A FIFO is not a device.
            (LinuxDeviceType::P, _) => kept.push(device.clone()),
            (LinuxDeviceType::B, Some(rule)) if is_device(numbers) => disks.push(BlockDevice {
                // A read-only and a writable disk of the same device are two disks.
                serial: format!(
                    "b{}{:x}-{:x}",
                    if writes(rule) { "-" } else { "r" },
                    numbers.0,
                    numbers.1
                ),
                major: numbers.0,
                minor: numbers.1,
                path: device.path().clone(),
                mode: device.file_mode().unwrap_or(0o660) & 0o7777,
                uid: device.uid().unwrap_or(0),
                gid: device.gid().unwrap_or(0),
                access: rule.access().clone().unwrap_or_else(|| "rwm".to_owned()),
            }),
            (_, Some(_)) => return Err(refused(&path)),
            (_, None) if privileged => dropped.push(path),
            (_, None) => return Err(refused(&path)),
        }
    }
    linux.set_devices(Some(kept).filter(|kept| !kept.is_empty()));
    let foreign = |rule: &LinuxDeviceCgroup| {
        let disk = |d: &BlockDevice| rule.major() == Some(d.major) && rule.minor() == Some(d.minor);
        rule.typ() == Some(LinuxDeviceType::B) && disks.iter().any(disk)
    };
    rules.retain(|rule| !foreign(rule));
    if privileged {
        rules = vec![all()?];
    }
    if let Some(resources) = linux.resources_mut() {
        resources.set_devices(Some(rules).filter(|rules| !rules.is_empty()));
    }
    let warning = dropped.first().map(|first| {
        format!(
            "linux.devices {} and {} more of the host are dropped: a privileged container gets the guest's",
            shorten(first),
            dropped.len() - 1
        )
    });
    Ok((disks, warning))
}

/// Puts the guest's devices where a spec mounts the host's `/dev`. In that case containerd has left
/// out its usual mounts below `/dev`.
pub fn own_dev(spec: &mut Spec) -> Result<()> {
    let mut mounts = Vec::new();
    for mut mount in spec.mounts().clone().unwrap_or_default() {
        let hosts = mount.source().as_deref() == Some(Path::new("/dev"));
        let bind = mount
            .options()
            .iter()
            .flatten()
            .any(|o| o == "bind" || o == "rbind");
        if !(hosts && bind) {
            mounts.push(mount);
        } else if mount.destination() == Path::new("/dev") {
            for (target, typ, options) in OWN_DEV {
                mounts.push(own(target, typ, options)?);
            }
        } else {
            // The guest's kernel makes this file system by itself; its own /dev is one.
            mount.set_typ(Some("devtmpfs".to_owned()));
            mount.set_source(Some("devtmpfs".into()));
            mount.set_options(Some(vec!["nosuid".to_owned()]));
            mounts.push(mount);
        }
    }
    if spec.mounts().is_some() {
        spec.set_mounts(Some(mounts));
    }
    Ok(())
}

/// As in containerd's pkg/oci `defaultMounts`.
const OWN_DEV: &[(&str, &str, &[&str])] = &[
    (
        "/dev",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    (
        "/dev/shm",
        "tmpfs",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
    ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
];

fn own(target: &str, typ: &str, options: &[&str]) -> Result<Mount> {
    let mount = MountBuilder::default()
        .destination(target)
        .typ(typ)
        .source(typ);
    let mount = mount.options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>());
    mount.build().map_err(|error| Error::Field {
        field: "mounts",
        reason: error.to_string(),
    })
}

fn refused(path: &str) -> Error {
    Error::Refused {
        field: "linux.devices",
        what: shorten(path),
        advice: ADVICE,
    }
}

fn is_device((major, minor): (i64, i64)) -> bool {
    (0..=MAX_NUMBERS.0).contains(&major) && (0..=MAX_NUMBERS.1).contains(&minor)
}

/// Returns whether this rule is about exactly this device (containerd, pkg/oci `WithDevices`).
fn names(rule: &LinuxDeviceCgroup, device: &LinuxDevice) -> bool {
    let same_type = rule.typ() == Some(device.typ());
    let numbers = (rule.major(), rule.minor());
    rule.allow() && same_type && numbers == (Some(device.major()), Some(device.minor()))
}

fn writes(rule: &LinuxDeviceCgroup) -> bool {
    rule.access()
        .as_ref()
        .is_none_or(|access| access.contains('w'))
}

/// Returns the rule that allows everything.
fn all() -> Result<LinuxDeviceCgroup> {
    let rule = LinuxDeviceCgroupBuilder::default();
    let rule = rule.allow(true).access("rwm").build();
    rule.map_err(|error| Error::Field {
        field: "linux.resources.devices",
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, Value};

    fn spec(devices: Value, rules: Value) -> Spec {
        let linux = json!({"devices": devices, "resources": {"devices": rules}});
        serde_json::from_value(json!({"ociVersion": "1.1.0", "linux": linux})).unwrap()
    }

    fn node(path: &str, typ: &str, major: i64, minor: i64) -> Value {
        json!({"path": path, "type": typ, "major": major, "minor": minor, "fileMode": 432, "uid": 0, "gid": 6})
    }

    fn rule(typ: &str, major: i64, minor: i64, access: &str) -> Value {
        json!({"allow": true, "type": typ, "major": major, "minor": minor, "access": access})
    }

    fn deny() -> Value {
        json!({"allow": false, "access": "rwm"})
    }

    fn paths(spec: &Spec) -> Vec<String> {
        let devices = spec.linux().as_ref().unwrap().devices().iter().flatten();
        devices.map(|d| d.path().display().to_string()).collect()
    }

    #[test]
    fn device_of_a_driver_without_hardware_is_the_guests() {
        let devices = json!([
            node("/dev/fuse", "c", 10, 229),
            node("/dev/tun", "c", 10, 200),
            node("/dev/null", "c", 1, 3)
        ]);
        let mut spec = spec(devices, json!([deny(), rule("c", 10, 229, "rwm")]));
        assert_eq!(translate(&mut spec, false).unwrap(), (vec![], None));
        assert_eq!(paths(&spec), ["/dev/fuse", "/dev/tun"]);
    }

    #[test]
    fn block_device_by_name_becomes_a_disk_without_the_hosts_numbers() {
        let rules = json!([deny(), rule("b", 259, 17, "mrw")]);
        let mut spec = spec(json!([node("/dev/xvda", "b", 259, 17)]), rules);
        let (disks, _) = translate(&mut spec, false).unwrap();
        assert_eq!(disks[0].serial, "b-103-11");
        assert_eq!(
            (disks[0].mode, disks[0].gid, disks[0].read_only()),
            (0o660, 6, false)
        );
        assert!(paths(&spec).is_empty());
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        assert_eq!(resources.devices().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn block_device_without_right_to_write_is_read_only() {
        let mut spec = spec(
            json!([node("/dev/x", "b", 8, 1)]),
            json!([rule("b", 8, 1, "r")]),
        );
        assert!(translate(&mut spec, false).unwrap().0[0].read_only());
    }

    #[test]
    fn block_device_with_numbers_that_linux_does_not_have_is_refused() {
        for (major, minor) in [(-1, 0), (8, -1), (1 << 12, 0), (8, 1 << 20)] {
            let mut spec = spec(
                json!([node("/dev/x", "b", major, minor)]),
                json!([rule("b", major, minor, "r")]),
            );
            translate(&mut spec, false).unwrap_err();
        }
    }

    #[test]
    fn hosts_dev_as_a_volume_is_the_guests() {
        let bind = |at: &str| json!({"destination": at, "source": "/dev", "type": "bind", "options": ["rbind", "rw"]});
        let mounts = json!([bind("/dev"), bind("/host/dev")]);
        let value = json!({"ociVersion": "1.1.0", "mounts": mounts, "linux": {}});
        let mut spec: Spec = serde_json::from_value(value).unwrap();
        own_dev(&mut spec).unwrap();
        let told = |m: &Mount| {
            format!(
                "{} {}",
                m.destination().display(),
                m.typ().as_deref().unwrap_or_default()
            )
        };
        let mounts: Vec<_> = spec.mounts().iter().flatten().map(told).collect();
        let own = [
            "/dev tmpfs",
            "/dev/pts devpts",
            "/dev/shm tmpfs",
            "/dev/mqueue mqueue",
        ];
        assert_eq!(mounts[..4], own);
        assert_eq!(mounts[4], "/host/dev devtmpfs");
    }

    #[test]
    fn device_of_the_host_is_refused_by_its_path_even_if_privileged() {
        let devices = || json!([node("/dev/nvidia0", "c", 195, 0)]);
        let mut plain = spec(devices(), json!([]));
        let message = translate(&mut plain, false).unwrap_err().to_string();
        assert!(message.contains("linux.devices /dev/nvidia0"), "{message}");
        let mut named = spec(devices(), json!([rule("c", 195, 0, "rw")]));
        translate(&mut named, true).unwrap_err();
    }

    #[test]
    fn list_of_the_hosts_devices_of_a_privileged_container_is_dropped() {
        let devices = json!([
            node("/dev/sda", "b", 8, 0),
            node("/dev/kvm", "c", 10, 232),
            node("/dev/kmsg", "c", 1, 11)
        ]);
        let all = json!({"allow": true, "access": "rwm"});
        let mut spec = spec(devices, json!([all]));
        let (disks, warning) = translate(&mut spec, true).unwrap();
        assert!(disks.is_empty());
        assert!(warning.unwrap().contains("/dev/sda and 1 more"));
        assert_eq!(paths(&spec), ["/dev/kmsg"]);
    }
}

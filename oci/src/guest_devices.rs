//! `caisson.dev/devices`: gives device nodes of the guest to a container that is not privileged,
//! with the capability and system calls that using them takes.
//!
//! | name | node | capability | system calls beyond the profile |
//! |---|---|---|---|
//! | `fuse` | `/dev/fuse` | `CAP_SYS_ADMIN` | `mount`, `umount2`, `umount` |
//! | `tun` | `/dev/net/tun` | `CAP_NET_ADMIN` | |
//!
//! Processes of root have the capability, both the container's own and those executed in it. For
//! other users it is in the bounding set. A program such as `fusermount3` takes it from there,
//! unless the container forbids that (`allowPrivilegeEscalation: false`). The capability holds in
//! the pod's own VM and nowhere else.

use oci_spec::runtime::{
    Capability, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, LinuxSeccompAction, LinuxSyscall, LinuxSyscallBuilder, Process, Spec,
};

use crate::{Error, Result};

/// A device of the guest's kernel that a container may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestDevice {
    Fuse,
    Tun,
}

impl GuestDevice {
    /// The names that the annotation knows.
    pub const NAMES: &str = "fuse, tun";

    /// Parses a name as the annotation has it.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "fuse" => Some(Self::Fuse),
            "tun" => Some(Self::Tun),
            _ => None,
        }
    }

    /// Returns the node's path and its numbers, as in the kernel's
    /// Documentation/admin-guide/devices.txt.
    fn node(self) -> (&'static str, i64, i64) {
        match self {
            Self::Fuse => ("/dev/fuse", 10, 229),
            Self::Tun => ("/dev/net/tun", 10, 200),
        }
    }

    fn capability(self) -> Capability {
        match self {
            Self::Fuse => Capability::SysAdmin,
            Self::Tun => Capability::NetAdmin,
        }
    }

    fn system_calls(self) -> &'static [&'static str] {
        match self {
            Self::Fuse => &["mount", "umount2", "umount"],
            Self::Tun => &[],
        }
    }
}

/// Lets a further process of a container use the devices.
pub fn grant_exec(process: &mut Process, devices: &[GuestDevice]) {
    for &device in devices {
        grant_process(process, device);
    }
}

fn grant_process(process: &mut Process, device: GuestDevice) {
    let is_root = process.user().uid() == 0;
    let mut capabilities = process.capabilities().clone().unwrap_or_default();
    let added = |set: &Option<_>| {
        let mut set: std::collections::HashSet<_> = set.clone().unwrap_or_default();
        set.insert(device.capability());
        Some(set)
    };
    capabilities.set_bounding(added(capabilities.bounding()));
    if is_root {
        capabilities.set_effective(added(capabilities.effective()));
        capabilities.set_permitted(added(capabilities.permitted()));
    }
    process.set_capabilities(Some(capabilities));
}

/// Lets a container use devices.
pub fn grant(spec: &mut Spec, devices: &[GuestDevice]) -> Result<()> {
    for &device in devices {
        let failed = |error: oci_spec::OciSpecError| Error::Field {
            field: "linux.devices",
            reason: error.to_string(),
        };
        grant_one(spec, device).map_err(failed)?;
    }
    Ok(())
}

fn grant_one(
    spec: &mut Spec,
    device: GuestDevice,
) -> std::result::Result<(), oci_spec::OciSpecError> {
    if let Some(process) = spec.process_mut() {
        grant_process(process, device);
    }
    let Some(linux) = spec.linux_mut() else {
        return Ok(());
    };
    let (node, rule) = node(device)?;
    let mut nodes = linux.devices().clone().unwrap_or_default();
    if nodes.iter().all(|there| there.path() != node.path()) {
        nodes.push(node);
    }
    linux.set_devices(Some(nodes));
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(rule);
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    if let (Some(seccomp), false) = (linux.seccomp().clone(), device.system_calls().is_empty()) {
        let mut seccomp = seccomp;
        let mut rules = seccomp.syscalls().clone().unwrap_or_default();
        rules.push(allowed(device.system_calls())?);
        seccomp.set_syscalls(Some(rules));
        linux.set_seccomp(Some(seccomp));
    }
    Ok(())
}

fn node(
    device: GuestDevice,
) -> std::result::Result<(LinuxDevice, LinuxDeviceCgroup), oci_spec::OciSpecError> {
    let (path, major, minor) = device.node();
    let node = LinuxDeviceBuilder::default()
        .path(path)
        .typ(LinuxDeviceType::C)
        .major(major)
        .minor(minor)
        .file_mode(0o666_u32)
        .uid(0_u32)
        .gid(0_u32)
        .build()?;
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(LinuxDeviceType::C)
        .major(major)
        .minor(minor)
        .access("rwm")
        .build()?;
    Ok((node, rule))
}

fn allowed(names: &[&str]) -> std::result::Result<LinuxSyscall, oci_spec::OciSpecError> {
    LinuxSyscallBuilder::default()
        .names(
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
        .action(LinuxSeccompAction::ScmpActAllow)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, Value};

    fn granted(uid: u32, devices: &[GuestDevice]) -> Value {
        let mut spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.1.0",
            "process": {
                "cwd": "/", "args": ["true"], "user": {"uid": uid, "gid": 0},
                "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
            },
            "linux": {
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]},
            },
        }))
        .unwrap();
        grant(&mut spec, devices).unwrap();
        serde_json::to_value(spec).unwrap()
    }

    fn has(set: &Value, name: &str) -> bool {
        set.as_array().unwrap().contains(&name.into())
    }

    #[test]
    fn fuse_comes_with_its_node_and_the_right_to_mount() {
        let spec = granted(0, &[GuestDevice::Fuse]);
        let linux = &spec["linux"];
        assert_eq!(linux["devices"][0]["path"], "/dev/fuse");
        assert_eq!(linux["resources"]["devices"][1]["minor"], 229);
        assert_eq!(linux["seccomp"]["syscalls"][1]["names"][0], "mount");
        for set in ["bounding", "effective", "permitted"] {
            assert!(
                has(&spec["process"]["capabilities"][set], "CAP_SYS_ADMIN"),
                "{set}"
            );
        }
    }

    #[test]
    fn capability_of_another_user_is_in_the_bounding_set_alone() {
        let spec = granted(1000, &[GuestDevice::Fuse, GuestDevice::Tun]);
        let capabilities = &spec["process"]["capabilities"];
        assert!(has(&capabilities["bounding"], "CAP_SYS_ADMIN"));
        assert!(has(&capabilities["bounding"], "CAP_NET_ADMIN"));
        assert_eq!(capabilities["effective"], json!(["CAP_CHOWN"]));
    }

    #[test]
    fn exec_has_the_capability_beside_its_own() {
        let process = |capabilities: Value| {
            let user = json!({"uid": 0, "gid": 0});
            let json = json!({"cwd": "/", "user": user, "capabilities": capabilities});
            let mut process: Process = serde_json::from_value(json).unwrap();
            grant_exec(&mut process, &[GuestDevice::Fuse]);
            serde_json::to_value(process).unwrap()["capabilities"].clone()
        };
        let capabilities = process(json!({"effective": ["CAP_CHOWN"]}));
        assert!(has(&capabilities["effective"], "CAP_CHOWN"));
        assert!(has(&capabilities["effective"], "CAP_SYS_ADMIN"));
    }

    #[test]
    fn tun_changes_no_system_calls() {
        let spec = granted(0, &[GuestDevice::Tun]);
        assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/net/tun");
        assert_eq!(
            spec["linux"]["seccomp"]["syscalls"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn device_that_the_spec_has_already_is_not_there_twice() {
        let spec = granted(0, &[GuestDevice::Tun, GuestDevice::Tun]);
        assert_eq!(spec["linux"]["devices"].as_array().unwrap().len(), 1);
    }
}

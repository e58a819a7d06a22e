//! Has a VM do once what each pod will ask for: a container is created, started and removed.
//!
//! An emulator translates instructions when they first run, and under KVM pages are touched when
//! they are first used. A VM of the pool rehearses, so that its pod's start finds all that done.
//! Another VM does so for the template's translations.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use caisson_node::host::{
    error::OnFile,
    size::{host_cpus, host_memory_mib},
};
use caisson_oci::{plan, Node, NodeConfig, PidNamespace, Places, Wishes};
use caisson_protocol::path::{DISKS, MEMORY, PARTS, SHARES};

use crate::{
    agent::{Agent, ProcessId},
    error::{Error, Result},
    share::Share,
    streams::{HostEnds, Stdio},
    vm::VmHandle,
};

/// What containerd writes for a container, without what differs from one to another.
const SPEC: &[u8] = include_bytes!("rehearsal.json");
/// The container's id, and the folder of its root.
const ID: &str = "rehearsal";
/// A program of x86-64 that does nothing but `exit(0)`: the headers of an ELF file with one segment
/// (elf(5)), and three instructions.
#[rustfmt::skip]
const PROGRAM: [u8; 129] = [
    // The ELF header: 64 bits, little-endian, an executable for x86-64.
    0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    2, 0, 0x3e, 0, 1, 0, 0, 0,
    // Its entry, and where the table of segments begins. There is no table of sections.
    0x78, 0, 0x40, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    // The segment: the whole file at 0x400000, readable and executable.
    1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0,
    129, 0, 0, 0, 0, 0, 0, 0, 129, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0,
    // mov eax, 60; xor edi, edi; syscall
    0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05,
];

/// Runs the container and removes it, without a trace on the host. `place` is the state folder of
/// the VM.
pub async fn rehearse(
    config: &NodeConfig,
    place: &Path,
    share: &Share,
    vm: &VmHandle,
    agent: &Agent,
) -> Result<()> {
    let root = place.join(ID);
    let program = root.join("true");
    fs::create_dir(&root).map_err(Error::file("create", &root))?;
    fs::write(&program, PROGRAM)
        .and_then(|()| fs::set_permissions(&program, fs::Permissions::from_mode(0o755)))
        .map_err(Error::file("write", &program))?;
    let ran = run(config, &root, share, vm, agent).await;
    share.remove(ID)?;
    fs::remove_dir_all(&root).map_err(Error::file("remove", &root))?;
    ran
}

async fn run(
    config: &NodeConfig,
    root: &Path,
    share: &Share,
    vm: &VmHandle,
    agent: &Agent,
) -> Result<()> {
    share.mount_rootfs(ID, Vec::new(), root).await?;
    let wishes = Wishes::parse(SPEC, &config.policy, "")?;
    let places = Places {
        rootfs: Share::guest_rootfs(ID),
        shares: SHARES.into(),
        volumes: Share::guest_volumes(),
        memory: MEMORY.into(),
        disks: DISKS.into(),
        parts: PARTS.into(),
        mounted: Vec::new(),
        found: Default::default(),
        skills: Vec::new(),
        home: None,
        pid_namespace: PidNamespace::Own,
    };
    let node = Node {
        vm: &config.vm,
        cpus: host_cpus(),
        memory_mib: host_memory_mib(),
    };
    let plan = plan(wishes, node, &places)?;
    let stdio = Stdio {
        stdout: "file:///dev/null".to_owned(),
        ..Default::default()
    };
    let ends = HostEnds::open(&stdio, ID, "").await?;
    agent.create(ID, &plan, ends.tokens).await?;
    let _pumps = ends.connect(vm, ID).await?;
    agent.start(ID).await?;
    agent.wait(&ProcessId::init(ID)).await?;
    Ok(agent.delete(ID).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_does_nothing_and_ends_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("true");
        fs::write(&path, PROGRAM).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(std::process::Command::new(&path)
            .status()
            .unwrap()
            .success());
    }
}

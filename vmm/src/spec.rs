//! What a bare VM is made of.

use std::path::PathBuf;

use crate::Secret;

/// A bare VM: the same for every pod of a shape.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Names the VM in logs and in the VMM's process title: the sandbox id.
    pub id: String,
    /// An existing directory of this VM alone, for sockets and logs; its owner removes it after the VM's end.
    pub dir: PathBuf,
    /// What the guest boots.
    pub guest: Guest,
    /// Cpus at boot, 1 or more.
    pub cpus: u32,
    /// Up to which [`crate::Device::Cpus`] can go.
    pub max_cpus: u32,
    /// Memory at boot, in bytes.
    pub memory: u64,
    /// Up to which [`crate::Device::Memory`] can go, in bytes.
    pub max_memory: u64,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// Whom the VMM and the unprivileged daemons run as.
    pub credentials: Credentials,
    /// The place of the VM's processes on the host.
    pub placement: Placement,
    /// What the guest is told on its console and each connection to it begins with.
    pub secret: Secret,
}

/// The place of a VM's processes and their children on the host, from before they execute anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The folders of the pod's cgroup: one, or with version 1 one in each hierarchy. They must
    /// exist.
    pub cgroups: Vec<PathBuf>,
    /// How soon the OOM killer takes them (proc(5), `/proc/<pid>/oom_score_adj`). Where this
    /// process lacks CAP_SYS_RESOURCE it can't be below its own; that is logged, not refused.
    pub oom_score_adj: i32,
}

/// The guest image.
#[derive(Debug, Clone)]
pub struct Guest {
    /// An uncompressed ELF with a PVH note.
    pub kernel: PathBuf,
    /// A cpio archive whose `/init` is the agent.
    pub initramfs: PathBuf,
    /// Disk with the kernel's further modules. The guest is only told that it will come: its owner plugs it in, with the serial
    /// `modules`, when the start is over: five starts each under emulation took a median of 1760 ms without it, 1813 ms with it.
    pub modules: Option<PathBuf>,
    /// From which level on the agent logs.
    pub log_level: log::LevelFilter,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's emulation: everything runs, slower.
    Tcg,
}

/// A user and group of the host that belong to one VM alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
}

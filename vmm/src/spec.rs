//! The parts of a bare VM.

use std::{collections::BTreeMap, path::PathBuf};

use crate::Secret;

/// A bare VM: the same for every pod of a shape.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// The sandbox id, which names the VM in logs and in the VMM's process title.
    pub id: String,
    /// An existing directory for the sockets and logs of this VM alone. Its owner removes it after
    /// the VM's end.
    pub dir: PathBuf,
    /// What the guest boots.
    pub guest: Guest,
    /// Cpus at boot, 1 or more.
    pub cpus: u32,
    /// The maximum for [`crate::Device::Cpus`].
    pub max_cpus: u32,
    /// Memory at boot, in bytes.
    pub memory: u64,
    /// The maximum for [`crate::Device::Memory`], in bytes.
    pub max_memory: u64,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// The user of the VMM and of the unprivileged daemons.
    pub credentials: Credentials,
    /// The place of the VM's processes on the host.
    pub placement: Placement,
    /// The VM starts from it instead of booting.
    pub template: Option<Template>,
    /// The secret that the guest gets on its console and with which each connection to it begins.
    pub secret: Secret,
}

impl VmSpec {
    /// Returns the source of translations. A VM that boots makes its own.
    pub(crate) fn translations(&self) -> &Translations {
        let template = self.template.as_ref();
        template.map_or(&Translations::Own, |template| &template.translations)
    }
}

/// What a VM starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// What [`crate::Vmm::make_template`] wrote for the same guest, cpus, memory and accelerator.
    pub machine: PathBuf,
    /// The source of an emulator's translations of the guest's instructions.
    pub translations: Translations,
}

/// The source of an emulator's translations of the guest's instructions. It makes those that it
/// does not find.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Translations {
    /// It makes all of them.
    #[default]
    Own,
    /// From a file that another VM wrote. The emulator runs them as they are, so that the file is
    /// to be guarded as its program is.
    From(PathBuf),
    /// It makes all of them, and writes them to an existing file when the VM is
    /// [stopped](crate::Vm::stop).
    To(PathBuf),
}

/// The place of a VM's processes and their children on the host. It applies before they execute
/// anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The folders of the pod's cgroup: one, or with version 1 one in each hierarchy. They must
    /// exist.
    pub cgroups: Vec<PathBuf>,
    /// How soon the OOM killer takes the processes (proc(5), `/proc/<pid>/oom_score_adj`). Without
    /// CAP_SYS_RESOURCE the score can't be below that of this process; a lower one is logged, not
    /// refused.
    pub oom_score_adj: i32,
}

/// The guest image.
#[derive(Debug, Clone)]
pub struct Guest {
    /// An uncompressed ELF with a PVH note.
    pub kernel: PathBuf,
    /// A cpio archive whose `/init` is the agent.
    pub initramfs: PathBuf,
    /// A disk with the kernel's further modules. The guest is only told that there is one. The VM's
    /// owner plugs it in, with the serial `modules`, when the guest asks for it.
    pub modules: Option<PathBuf>,
    /// The level from which on the agent logs.
    pub log_level: log::LevelFilter,
    /// Kernel parameters, by their names in sysctl(8). The guest gets those that are higher than
    /// what its kernel has chosen.
    pub sysctls: BTreeMap<&'static str, u64>,
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

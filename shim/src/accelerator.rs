//! Which accelerator this node's VMs use.

use caisson_oci::{config, NodeConfig};
use caisson_vmm::{
    qemu::{QemuConfig, QemuVmm},
    Accelerator, Guest,
};

use crate::error::Result;

/// The VMM of this node.
pub fn qemu(config: &NodeConfig) -> QemuVmm {
    QemuVmm::new(qemu_config(config))
}

/// The programs that the VMM is made of.
pub fn qemu_config(config: &NodeConfig) -> QemuConfig {
    QemuConfig {
        qemu: config.hypervisor.qemu.clone(),
        virtiofsd: config.hypervisor.virtiofsd.clone(),
        vsock_daemon: config.hypervisor.vsock_daemon.clone(),
    }
}

/// The accelerator that the configuration names, or what the probe found.
pub async fn choose(config: &NodeConfig, _guest: &Guest) -> Result<Accelerator> {
    match config.hypervisor.accelerator {
        config::Accelerator::Kvm => Ok(Accelerator::Kvm),
        config::Accelerator::Tcg | config::Accelerator::Auto => Ok(Accelerator::Tcg),
    }
}

//! Runs VMs with QEMU: the machine q35 with hot-plug ports, driven over QMP.
//!
//! - this module boots VMs, with [`QemuVmm`];
//! - `vm`: the running VM;
//! - `probe`: whether KVM really works here;
//! - `machine`: QEMU's process and the stopped machine in it;
//! - `devices`: makes QEMU's objects for each [`crate::Device`];
//! - `resize`: cpus and memory;
//! - `template`: machines saved to a file, and started from there;
//! - `command_line`, `ports`: the bare machine;
//! - `qmp`, `error`, `events`: the monitor's protocol, and what QEMU's events mean for the VM;
//! - `seccomp`: the system calls that QEMU may make.

mod command_line;
mod devices;
mod error;
mod events;
mod machine;
mod ports;
mod probe;
pub mod qmp;
pub mod resize;
mod seccomp;
mod template;
mod vm;

use std::{path::Path, sync::Arc, time::Instant};

use async_trait::async_trait;

use crate::{
    driver::{stage::log_stage, user_namespace, vsock::Carrier},
    Device, Error, Result, Vm, VmSpec, Vmm,
};
use command_line::Purpose;
pub use error::QmpError;
use machine::Qemu;
pub use machine::QemuConfig;
pub use probe::{probe_kvm, ProbeResult, PROBE_LIMIT};
use vm::QemuVm;

/// Boots VMs with QEMU.
#[derive(Debug)]
pub struct QemuVmm {
    config: QemuConfig,
}

impl QemuVmm {
    /// Cheap: the files are looked for at the boot.
    pub fn new(config: QemuConfig) -> QemuVmm {
        QemuVmm { config }
    }
}

#[async_trait]
impl Vmm for QemuVmm {
    async fn boot(&self, spec: VmSpec, devices: Vec<Device>) -> Result<Box<dyn Vm>> {
        let started = Instant::now();
        let user_namespace = user_namespace::identity().map_err(Error::UserNamespace)?;
        let carrier = Carrier::find();
        let answer = spec.secret.answer(carrier.name());
        let vsock = carrier.start(&self.config.vsock_daemon, &spec);
        let qemu = async {
            let qemu = Qemu::start(&self.config.qemu, &spec, Purpose::Pod, Some(answer)).await?;
            if let Some(template) = &spec.template {
                let started = Instant::now();
                template::load(&qemu.qmp, &template.machine).await?;
                log_stage("template", started);
            }
            Ok(qemu)
        };
        let (vsock, qemu) = tokio::try_join!(vsock, qemu)?;
        log_stage("qemu and vsock daemon", started);
        let mut vm = QemuVm::new(&self.config, spec, qemu, vsock, Arc::new(user_namespace)).await?;
        // Before the start, so that the guest finds all at once.
        for device in devices {
            vm.attach(device).await?;
        }
        vm.start().await?;
        log_stage("boot", started);
        Ok(Box::new(vm))
    }

    async fn make_template(&self, spec: VmSpec, to: &Path) -> Result<()> {
        let qemu = Qemu::start(&self.config.qemu, &spec, Purpose::Template, None).await?;
        let saved = template::save(&qemu, to).await;
        qemu.child.kill();
        qemu.child.stop().await?;
        saved
    }
}

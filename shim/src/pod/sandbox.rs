//! The sandbox of a pod: containerd's pause container, which is no process here but the VM itself.

use std::{sync::Arc, time::Instant};

use caisson_oci::{Limits, VmSize};

use super::{
    create::{init_id, CreateRequest},
    Pod,
};
use crate::{
    container::{Container, Wishes},
    error::{Error, Result},
    machine::{host_cpus, host_memory_mib, stage, Machine},
    process::Process,
    share::Share,
    state::PodDir,
};

impl Pod {
    /// Boots the pod's VM. Its containers come later.
    pub(super) async fn create_sandbox(
        self: &Arc<Self>,
        request: &CreateRequest,
        wishes: Wishes,
    ) -> Result<(Arc<Machine>, Container)> {
        let started = Instant::now();
        let asked = caisson_oci::pod::sandbox(&wishes.spec)?;
        let (dir, share) = self.folder(asked.cgroups_path.as_deref())?;
        let hostname = asked.hostname.unwrap_or_else(|| request.id.clone());
        // Without sums the VM begins with the node's default, and grows.
        let sums = asked.resources.as_ref();
        let sums = sums.map(|resources| Limits::of(Some(resources)));
        let machine = self.boot(hostname, dir, share, sums.as_slice()).await?;
        machine.join_network(asked.network.as_deref()).await?;
        // Some are of one network card.
        let sysctls = asked.sysctls.into_iter().collect();
        machine.agent().await?.set_sysctls(sysctls).await?;
        stage(&self.id, "sandbox", started);
        let init = Process::new(init_id(&request.id), request.stdio.clone(), Vec::new());
        Ok((machine, Container::sandbox(request.bundle.clone(), init)))
    }

    /// Boots a VM for containers with these limits.
    pub(super) async fn boot(
        self: &Arc<Self>,
        hostname: String,
        dir: PodDir,
        share: Share,
        limits: &[Limits],
    ) -> Result<Arc<Machine>> {
        let size = VmSize::of(limits.iter().copied(), &self.config.vm, host_cpus());
        let machine = self
            .machine
            .get_or_try_init(|| async {
                let machine = Machine::boot(
                    self.vmm.as_ref(),
                    &self.config,
                    &self.id,
                    hostname,
                    dir,
                    share,
                    size,
                )
                .await?;
                let machine = Arc::new(machine);
                self.watch_guest(machine.clone());
                Result::Ok(machine)
            })
            .await?;
        Ok(machine.clone())
    }

    /// Grows the VM where the containers that it has and `more` need that.
    pub(super) async fn make_room(&self, machine: &Machine, more: &[Limits]) -> Result<()> {
        let wanted = self.wanted_size(more)?;
        machine
            .resize(|current| VmSize {
                cpus: wanted.cpus.max(current.cpus),
                memory_mib: wanted.memory_mib.max(current.memory_mib),
            })
            .await
    }

    /// Shrinks the VM to what its containers need.
    pub(super) async fn fit(&self, machine: &Machine) -> Result<()> {
        let wanted = self.wanted_size(&[])?;
        machine.resize(|_| wanted).await
    }

    fn wanted_size(&self, more: &[Limits]) -> Result<VmSize> {
        let mut limits = more.to_vec();
        let containers = self.lock();
        let containers = containers.values().filter(|c| !c.is_sandbox());
        limits.extend(containers.map(|container| container.limits()));
        let wanted = VmSize::of(limits, &self.config.vm, host_cpus());
        if wanted.memory_mib > host_memory_mib() {
            return Err(Error::Request {
                field: "resources.memory.limit",
                reason: format!(
                    "the pod's VM would need {} MiB of memory, the node has {} MiB; lower the limits",
                    wanted.memory_mib,
                    host_memory_mib()
                ),
            });
        }
        Ok(wanted)
    }
}

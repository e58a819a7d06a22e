//! Fits the VM's size to what the pod's containers may use.

use std::sync::Arc;

use caisson_oci::{spec::LinuxResources, Limits, VmSize};

use super::base::Pod;
use crate::{error::Result, machine::Machine};

impl Pod {
    /// Changes a container's limits, and the VM's size accordingly.
    pub async fn update(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        let container = self.guest_container("update", id)?;
        let machine = self.machine(id)?;
        let old = container.limits();
        let mut new = old;
        new.update(resources);
        container.set_limits(new);
        // Grows the VM before raising the limit; to shrink, it goes the other way round.
        let updated = async {
            self.make_room(&machine, &[]).await?;
            Ok(machine.agent().await?.update(id, resources).await?)
        };
        if let Err(error) = updated.await {
            container.set_limits(old);
            return Err(error);
        }
        self.record_container(id, &container);
        self.fit(&machine).await
    }

    /// Grows the VM if its present containers and `more` need that.
    pub(super) async fn make_room(&self, machine: &Machine, more: &[Limits]) -> Result<()> {
        let wanted = self.wanted_size(more)?;
        machine
            .resize(|current| VmSize {
                cpus: wanted.cpus.max(current.cpus),
                memory_mib: wanted.memory_mib.max(current.memory_mib),
            })
            .await
    }

    /// Grows the VM for containers that are announced. Nobody waits for that here: a container that
    /// is created waits until there is room for it, and says why if there is none.
    pub(super) fn make_room_soon(self: &Arc<Self>, machine: &Arc<Machine>, announced: Limits) {
        let (pod, machine) = (self.clone(), machine.clone());
        tokio::spawn(async move {
            if let Err(error) = pod.make_room(&machine, &[announced]).await {
                log::info!("the VM does not grow yet: {}", error.chain());
            }
        });
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
        Ok(self.node().room_for(limits)?)
    }
}

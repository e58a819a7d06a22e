//! Fits the VM's size to what the pod's containers may use.

use std::sync::Arc;

use caisson_node::host::size::available_memory_mib;
use caisson_oci::{spec::LinuxResources, Limits, VmSize};

use super::base::Pod;
use crate::{error::Result, machine::Machine};

/// What a VM that grows leaves of the node's available memory, in MiB.
const KEPT_MIB: u64 = 256;

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
                ..wanted.at_least(current.memory_mib)
            })
            .await
    }

    /// Gives the VM the cpus of the node, if a container may use them. No start waits for that.
    pub(super) async fn give_cpus(&self, machine: &Machine) {
        let cpus = self.node().cpus(&self.limits());
        let given = machine.resize(|current| VmSize {
            cpus: cpus.max(current.cpus),
            ..current
        });
        if let Err(error) = given.await {
            log::info!("the VM keeps its cpus: {}", error.chain());
        }
    }

    /// Gives the VM more memory, which its containers need, or says that there is no more.
    pub(super) async fn grow(&self, machine: &Machine) {
        let grown = machine.resize(|current| {
            // Only a guest that lies asks for what it has been refused.
            if !current.may_grow() {
                return current;
            }
            let (most_mib, why) = self.most_memory_mib(machine, current.memory_mib);
            let size = current.grown(most_mib);
            if !size.may_grow() {
                log::warn!(
                    "the containers need more memory, and the VM grows to {} MiB and no further: \
                     {why}",
                    size.memory_mib
                );
            }
            size
        });
        let Err(error) = grown.await else {
            return;
        };
        log::warn!("the VM does not get more memory: {}", error.chain());
        // The guest waits for an answer.
        let stays = machine.resize(VmSize::fixed);
        if let Err(error) = stays.await {
            log::warn!("the guest is not told so: {}", error.chain());
        }
    }

    /// Returns the memory up to which a VM of a size may grow now, and what sets that limit.
    fn most_memory_mib(&self, machine: &Machine, has_mib: u64) -> (u64, &'static str) {
        let left = available_memory_mib().saturating_sub(KEPT_MIB);
        let of_cgroup = machine.memory_limit_mib().unwrap_or(u64::MAX);
        let limits = [
            (self.node().most_memory_mib(), "vm.max_memory_mib"),
            (of_cgroup, "the limit of the pod's cgroup"),
            (has_mib.saturating_add(left), "the node has no more"),
        ];
        limits.into_iter().min().unwrap_or_default()
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

    /// Shrinks the VM to what its containers need. What it got because a container without a limit
    /// needed it, it keeps as long as there is such a container.
    pub(super) async fn fit(&self, machine: &Machine) -> Result<()> {
        let wanted = self.wanted_size(&[])?;
        let cpus = self.node().cpus(&self.limits());
        machine
            .resize(|current| {
                let wanted = match wanted.may_grow() {
                    true => wanted.at_least(current.memory_mib),
                    false => wanted,
                };
                VmSize { cpus, ..wanted }
            })
            .await
    }

    fn wanted_size(&self, more: &[Limits]) -> Result<VmSize> {
        let mut limits = self.limits();
        limits.extend(more);
        Ok(self.node().room_for(limits)?)
    }

    fn limits(&self) -> Vec<Limits> {
        let containers = self.lock();
        let containers = containers.values().filter(|c| !c.is_sandbox());
        containers.map(|container| container.limits()).collect()
    }
}

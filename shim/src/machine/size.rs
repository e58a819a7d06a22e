//! Grows and shrinks the VM of a pod.

use caisson_node::host::chain::chain;
use caisson_oci::VmSize;
use caisson_protocol::agent::{self as proto, attach_request::Device as GuestDevice};
use caisson_vmm::Device;

use super::{bare::plug_both, Machine};
use crate::error::Result;

impl Machine {
    /// Grows or shrinks the VM to the size that `wanted` returns for the current size. Shrinking is
    /// best effort: the guest keeps what it does not give back.
    pub async fn resize(&self, wanted: impl FnOnce(VmSize) -> VmSize) -> Result<()> {
        let mut size = self.size.lock().await;
        let current = *size;
        let wanted = wanted(current);
        if wanted == current {
            return Ok(());
        }
        let agent = self.agent().await?;
        let cpus = GuestDevice::Cpus(wanted.cpus);
        if wanted.cpus > current.cpus {
            plug_both(&self.vm, agent, Device::Cpus(wanted.cpus), cpus).await?;
        } else if wanted.cpus < current.cpus {
            // A VM keeps its cpus; the guest takes them offline.
            if let Err(error) = agent.attach(cpus).await {
                kept("cpus", &error);
            }
        }
        let bytes = wanted.memory_mib << 20;
        if wanted.memory_mib > current.memory_mib {
            let guest = memory(wanted);
            plug_both(&self.vm, agent, Device::Memory(bytes), guest).await?;
        } else {
            if wanted.memory_mib < current.memory_mib {
                if let Err(error) = self.vm.attach(Device::Memory(bytes)).await {
                    kept("memory", &error);
                }
            }
            if wanted.may_grow() || current.may_grow() {
                agent.attach(memory(wanted)).await?;
            }
        }
        *size = wanted;
        if let Some(recorder) = &self.recorder {
            recorder.change(|record| {
                if let Some(machine) = &mut record.machine {
                    (machine.cpus, machine.memory_mib) = (wanted.cpus, wanted.memory_mib);
                }
            });
        }
        // The first growth plugs a device in.
        self.record().await
    }
}

/// Returns the guest's half of the memory.
fn memory(size: VmSize) -> GuestDevice {
    GuestDevice::Memory(proto::MemorySize {
        bytes: size.memory_mib << 20,
        most_bytes: size.most_mib << 20,
        ..Default::default()
    })
}

/// Logs why the guest has not given back what it no longer has to have.
fn kept(what: &str, error: &dyn std::error::Error) {
    log::info!("the VM keeps its {what}: {}", chain(error));
}

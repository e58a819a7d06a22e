//! Plugs devices into a pod's VM and unplugs them, each with its two halves: the VM's and the
//! guest's.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{MutexGuard, PoisonError},
};

use caisson_node::host::chain::chain;
use caisson_oci::Egress;
use caisson_protocol::agent::{attach_request, detach_request};
use caisson_vmm::Device;

use super::Machine;
use crate::{
    error::Result,
    network::{Network, Rules},
    plug::{LateDevice, Plug},
};

impl Machine {
    /// Plugs both halves of the devices in. The guest may still be booting.
    pub async fn plug(&self, devices: Vec<Plug>) -> Result<()> {
        if devices.is_empty() {
            return Ok(());
        }
        let mut halves = Vec::new();
        for device in devices {
            // Another container of the pod may have requested the same device. The VM then has it
            // already, and the agent reports when it is ready.
            let place = place(&device.vm);
            let is_new = place
                .iter()
                .all(|place| self.plugged().insert(place.clone()));
            if is_new {
                if let Err(error) = self.vm.attach(device.vm).await {
                    self.plugged()
                        .retain(|plugged| Some(plugged) != place.as_ref());
                    return Err(error.into());
                }
                let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
                holds.extend(device.hold);
            }
            halves.push(device.guest);
        }
        self.record().await?;
        let agent = self.agent().await?;
        let attached = halves.into_iter().map(|half| agent.attach(half));
        futures::future::try_join_all(attached).await?;
        Ok(())
    }

    /// Plugs both halves of a disk or share into a running VM. Returns `None` if the VM has it
    /// already.
    pub async fn plug_late(&self, plug: Plug) -> Result<Option<LateDevice>> {
        let (Some(place), Some(guest)) = (place(&plug.vm), detached(&plug.guest)) else {
            return self.plug(vec![plug]).await.map(|()| None);
        };
        let agent = self.agent().await?;
        if !self.plugged().insert(place.clone()) {
            agent.attach(plug.guest).await?;
            return Ok(None);
        }
        let device = match self.vm.attach(plug.vm).await {
            Ok(device) => device,
            Err(error) => {
                self.plugged().remove(&place);
                return Err(error.into());
            }
        };
        let late = LateDevice {
            place,
            device,
            guest,
            hold: plug.hold,
        };
        let attached = async {
            self.record().await?;
            Ok(agent.attach(plug.guest).await?)
        };
        match attached.await {
            Ok(()) => Ok(Some(late)),
            Err(error) => {
                if let Err(left) = self.unplug(&late).await {
                    log::warn!("clean up after a failed attach: {}", left.chain());
                }
                Err(error)
            }
        }
    }

    /// Unplugs both halves of a device. One that the guest does not let go of stays plugged in.
    pub async fn unplug(&self, late: &LateDevice) -> Result<()> {
        self.agent().await?.detach(late.guest.clone()).await?;
        self.vm.detach(late.device.clone()).await?;
        self.plugged().remove(&late.place);
        self.record().await
    }

    /// Plugs in a container's root, if it is a disk.
    pub async fn plug_root(&self, container: &str, root: Option<Plug>) -> Result<()> {
        let Some(root) = root else { return Ok(()) };
        if let Some(disk) = self.plug_late(root).await? {
            self.roots().insert(container.to_owned(), disk);
        }
        Ok(())
    }

    /// Returns how many roots are disks.
    pub fn count_roots(&self) -> usize {
        self.roots().len()
    }

    /// Unplugs a container's root, if it is a disk. Idempotent.
    pub async fn unplug_root(&self, container: &str) -> Result<()> {
        let disk = self.roots().remove(container);
        match disk {
            Some(disk) => self.unplug(&disk).await,
            None => Ok(()),
        }
    }

    /// Keeps a late device plugged in until the VM ends.
    pub fn keep(&self, late: LateDevice) {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.extend(late.hold);
    }

    /// Plugs in the network cards of a network namespace, if there is one, held to the pod's
    /// egress. They stay until the VM ends. `servers` are the pod's servers of DNS.
    pub async fn join_network(
        &self,
        namespace: Option<&Path>,
        egress: Egress,
        servers: Vec<IpAddr>,
    ) -> Result<()> {
        let Some(namespace) = namespace else {
            return Ok(());
        };
        let rules = Rules {
            anti_spoofing: self.anti_spoofing,
            egress,
            servers,
        };
        let mut network = Network::open(namespace, rules).await?;
        if let Err(error) = network.forward(self.vm.clone()).await {
            log::warn!("ports can't be forwarded: {}", chain(&error));
        }
        let cards = network.plugs();
        *self.network.lock().unwrap_or_else(PoisonError::into_inner) = Some(network);
        self.plug(cards).await
    }

    /// Returns the pod's egress and how many frames it has dropped; none if it is open.
    pub fn egress(&self) -> Result<Option<(Egress, u64)>> {
        let network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        let egress = network.as_ref().map(Network::egress).transpose()?;
        Ok(egress.flatten())
    }

    fn roots(&self) -> MutexGuard<'_, HashMap<String, LateDevice>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plugged(&self) -> MutexGuard<'_, HashSet<(String, PathBuf)>> {
        self.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the name in the guest and the place on the host that identify a device, if it can be
/// requested twice.
fn place(device: &Device) -> Option<(String, PathBuf)> {
    match device {
        Device::SharedDir { tag, path, .. } => Some((tag.clone(), path.clone())),
        Device::Disk { serial, path, .. } => Some((serial.clone(), path.clone())),
        Device::Network { .. }
        | Device::FreePageReporting
        | Device::Cpus(_)
        | Device::Memory(_) => None,
    }
}

/// Returns what the agent has to undo, if it can undo the guest's half of a device.
fn detached(guest: &attach_request::Device) -> Option<detach_request::Device> {
    match guest {
        attach_request::Device::Share(share) => Some(detach_request::Device::Share(share.clone())),
        attach_request::Device::Disk(disk) => Some(detach_request::Device::Disk(disk.clone())),
        _ => None,
    }
}

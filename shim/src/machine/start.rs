//! Boots the VM of a pod, and greets the agent in its guest.

use std::{
    sync::{atomic::AtomicBool, Mutex, PoisonError},
    time::{Duration, Instant},
};

use caisson_node::{
    accelerator, config,
    host::{
        chain::chain,
        error::OnFile,
        size::{host_cpus, host_memory_mib},
    },
    record::MachineState,
    state::PodDir,
};
use caisson_oci::{NodeConfig, VmSize};
use caisson_protocol::{agent as proto, path::MODULES_SERIAL, port, secret};
use caisson_vmm::{Device, Secret, VmSpec, Vmm};
use proto::attach_request::Device as GuestDevice;
use tokio::sync::OnceCell;

use super::Machine;
use crate::{
    agent::Agent,
    error::{Error, Result},
    limits::Patience,
    logger::stage,
    plug::Plug,
    share::{self, Share},
    vm::{VmError, VmHandle},
};

// The two crates that must agree here do not depend on each other. A test compares
// `secret::MARKER`.
const _: () = assert!(caisson_vmm::READY_PORT == port::READY);
const _: () = assert!(caisson_vmm::SERVICE_PORT == port::AGENT);
const _: () = assert!(caisson_vmm::SECRET_LENGTH == secret::LENGTH);
const _: () = assert!(caisson_vmm::ADMITTED == secret::ADMITTED);
const _: () = assert!(caisson_vmm::BY_DAEMON == secret::BY_DAEMON);
const _: () = assert!(caisson_vmm::BY_KERNEL == secret::BY_KERNEL);

impl Machine {
    /// Starts a bare VM and plugs the shared folder in. The guest is still booting when this
    /// returns.
    pub async fn boot(
        vmm: &dyn Vmm,
        config: &NodeConfig,
        id: &str,
        hostname: String,
        dir: PodDir,
        share: Share,
        size: VmSize,
    ) -> Result<Self> {
        let started = Instant::now();
        let guest = config::guest_image(config);
        let modules = guest.modules.clone();
        let memory = size.memory_mib << 20;
        let accelerator = accelerator::choose(config).await?;
        let spec = VmSpec {
            id: id.to_owned(),
            dir: dir.vm(),
            accelerator,
            guest,
            cpus: size.cpus,
            max_cpus: host_cpus().max(size.cpus),
            memory,
            max_memory: memory.max(config.vm.max_memory_mib.min(host_memory_mib()) << 20),
            credentials: dir.credentials,
            placement: dir.placement.clone(),
            secret: Secret::random().map_err(Error::file("read", "/dev/urandom"))?,
        };
        let vm = vmm.boot(spec).await.map_err(|source| {
            let node_mib = host_memory_mib();
            if size.memory_mib <= node_mib {
                return VmError::from(source).into();
            }
            Error::TooLarge {
                vm_mib: size.memory_mib,
                node_mib,
                source,
            }
        });
        let vm = VmHandle::new(vm?);
        let class = dir.class;
        let pids = vm.pids().await?;
        let machine = Self {
            vm,
            class,
            pid: pids.first().map_or_else(std::process::id, |(_, pid)| *pid),
            modules: Mutex::new(modules),
            plugged: Mutex::default(),
            holds: Mutex::default(),
            roots: Mutex::default(),
            hostname,
            boot_timeout: Duration::from_secs(config.vm.boot_timeout_secs),
            patience: Patience::new(&config.vm, accelerator),
            agent: OnceCell::new(),
            size: tokio::sync::Mutex::new(size),
            recorder: dir.recorder.clone(),
            dir: Mutex::new(Some(dir)),
            network: Mutex::default(),
            anti_spoofing: config.network.anti_spoofing,
            is_broken: AtomicBool::new(false),
            share,
        };
        if let Some(recorder) = &machine.recorder {
            recorder.change(|record| record.machine_becomes(MachineState::Running));
        }
        stage(id, "vmm", started);
        let shared = Device::SharedDir {
            tag: share::TAG.to_owned(),
            path: machine.share.view(),
            read_only: false,
            user_namespace: None,
        };
        let plugged = async {
            machine.vm.attach(shared).await?;
            machine.record().await
        };
        if let Err(error) = plugged.await {
            machine.shutdown().await;
            return Err(error);
        }
        stage(id, "share", started);
        Ok(machine)
    }

    /// Returns the agent, once the guest has booted and has its identity. If the guest does not get
    /// that far, its VM is stopped, so that nobody waits for it a second time.
    pub async fn agent(&self) -> Result<&Agent> {
        self.agent
            .get_or_try_init(|| async {
                let greeted = self.greet().await;
                if let Err(error) = &greeted {
                    if self.end().await.is_none() {
                        self.break_off(&error.chain()).await;
                    }
                }
                greeted
            })
            .await
    }

    /// Whether the agent has left a call unanswered that should have been answered by now.
    pub fn is_overdue(&self) -> bool {
        self.agent.get().is_some_and(|agent| agent.overdue() > 0)
    }

    /// Connects to the agent and gives the guest its identity.
    async fn greet(&self) -> Result<Agent> {
        let started = Instant::now();
        let connection = self.vm.connect(port::AGENT, self.boot_timeout).await?;
        let agent = Agent::new(connection, self.patience);
        let kernel = agent.configure(&self.hostname).await?;
        let shared = proto::Share {
            tag: share::TAG.to_owned(),
            max_inodes: caisson_vmm::max_inodes(),
            ..Default::default()
        };
        agent.attach(GuestDevice::Share(shared)).await?;
        stage(&self.hostname, "guest", started);
        log::info!(kernel; "guest is up");
        Ok(agent)
    }

    /// Plugs in, once, what no start needs. This is the disk with the kernel's additional modules,
    /// which the guest waits for when something asks for a module, and the device that returns free
    /// pages to the host, whose driver is one of these modules.
    pub async fn plug_the_rest(&self) {
        let path = self
            .modules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(path) = path else { return };
        let disk = Device::Disk {
            serial: MODULES_SERIAL.to_owned(),
            path,
            read_only: true,
        };
        if let Err(error) = self.vm.attach(disk).await {
            log::info!("the guest gets no further modules: {}", chain(&error));
            return;
        }
        let free_pages = Plug {
            vm: Device::FreePageReporting,
            guest: GuestDevice::FreePageReporting(Default::default()),
            hold: None,
        };
        if let Err(error) = self.plug(vec![free_pages]).await {
            log::info!("the guest's free pages stay its own: {}", error.chain());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_vmm_know_the_same_question() {
        assert_eq!(caisson_vmm::SECRET_MARKER, secret::MARKER);
    }
}

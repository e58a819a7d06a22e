//! Boots the VM of a pod, and greets the agent in its guest.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{atomic::AtomicBool, Mutex, PoisonError},
    time::{Duration, Instant},
};

use caisson_node::{
    accelerator,
    host::{chain::chain, folder::Folder, size::host_memory_mib},
    record::MachineState,
    state::PodDir,
    templates,
};
use caisson_oci::{NodeConfig, VmSize};
use caisson_protocol::{agent as proto, path::MODULES_SERIAL, port, secret};
use caisson_vmm::{Device, Vm, VmSpec, Vmm};
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
    /// Starts a VM with the shared folder. The guest is still booting when this returns.
    ///
    /// A VM that starts from a template has the size of the template; see [`Machine::resize`].
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
        let accelerator = accelerator::choose(config).await?;
        let bare = VmSpec {
            id: id.to_owned(),
            dir: dir.vm(),
            credentials: dir.credentials,
            placement: dir.placement.clone(),
            ..templates::bare(config, accelerator)?
        };
        let modules = bare.guest.modules.clone();
        let devices = || {
            vec![Device::SharedDir {
                tag: share::TAG.to_owned(),
                path: share.view(),
                read_only: false,
                user_namespace: None,
            }]
        };
        let booted = boot(vmm, config, bare, size, devices).await?;
        let vm = VmHandle::new(booted.vm);
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
            template: booted.template,
            missing: Mutex::new(booted.missing),
            boot_timeout: Duration::from_secs(config.vm.boot_timeout_secs),
            patience: Patience::new(&config.vm, accelerator),
            agent: OnceCell::new(),
            size: tokio::sync::Mutex::new(booted.size),
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
        if let Err(error) = machine.record().await {
            machine.shutdown().await;
            return Err(error);
        }
        Ok(machine)
    }

    /// Makes the template that the VM could not start from, unless another process does.
    pub async fn make_template(&self, config: &NodeConfig, vmm: &dyn Vmm) {
        let missing = self
            .missing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(spec) = missing else { return };
        let started = Instant::now();
        match templates::make(config, vmm, &spec).await {
            Ok(true) => stage(&spec.id, "template", started),
            Ok(false) => {}
            Err(error) => log::info!("VMs of this node boot: {}", chain(&error)),
        }
    }

    /// Returns the agent, once the guest has booted and has its identity. If the guest does not get
    /// that far, its VM is stopped, so that nobody waits for it a second time.
    pub async fn agent(&self) -> Result<&Agent> {
        self.agent
            .get_or_try_init(|| async {
                let greeted = self.greet().await;
                if let Err(error) = &greeted {
                    if let Some(template) = &self.template {
                        discard(template);
                    }
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

/// A VM that has started.
struct Booted {
    vm: Box<dyn Vm>,
    size: VmSize,
    /// What it started from, if it did not boot.
    template: Option<PathBuf>,
    /// What it would have started from, if there were a template of it.
    missing: Option<VmSpec>,
}

/// Starts a VM from a template if there is one for it. Otherwise, boots it with the size.
async fn boot(
    vmm: &dyn Vmm,
    config: &NodeConfig,
    bare: VmSpec,
    size: VmSize,
    devices: impl Fn() -> Vec<Device>,
) -> Result<Booted> {
    let wanted = config.vm.templates && fits(&bare, size);
    let found = wanted.then(|| templates::find(config, &bare)).flatten();
    let missing = (wanted && found.is_none()).then(|| bare.clone());
    if let Some(template) = &found {
        let spec = VmSpec {
            template: Some(template.clone()),
            ..bare.clone()
        };
        match vmm.boot(spec, devices()).await {
            Ok(vm) => {
                return Ok(Booted {
                    vm,
                    size: templates::SIZE,
                    template: found,
                    missing,
                })
            }
            Err(error) => log::warn!(
                "the VM boots, since it can't start from the template {}: {}",
                template.display(),
                chain(&error)
            ),
        }
        if let Err(error) = empty(&bare.dir) {
            log::warn!("empty {}: {error}", bare.dir.display());
        }
    }
    let vm = cold(vmm, bare, size, devices()).await?;
    // If a VM boots, what the other one could not start from is of no use to anybody.
    if let Some(template) = found {
        discard(&template);
    }
    Ok(Booted {
        vm,
        size,
        template: None,
        missing,
    })
}

/// Whether a VM of the template's shape can grow to a size.
fn fits(bare: &VmSpec, size: VmSize) -> bool {
    let memory = size.memory_mib << 20;
    size.cpus <= bare.max_cpus && (bare.memory..=bare.max_memory).contains(&memory)
}

/// Removes what a VM that did not start left in its folder.
fn empty(dir: &Path) -> io::Result<()> {
    let folder = Folder::open(dir)?;
    folder
        .names()?
        .iter()
        .try_for_each(|name| folder.remove(name))
}

fn discard(template: &Path) {
    if let Err(error) = templates::discard(template) {
        log::warn!("{}", chain(&error));
    }
}

/// Boots a VM of a size.
async fn cold(
    vmm: &dyn Vmm,
    bare: VmSpec,
    size: VmSize,
    devices: Vec<Device>,
) -> Result<Box<dyn Vm>> {
    let memory = size.memory_mib << 20;
    let spec = VmSpec {
        cpus: size.cpus,
        max_cpus: bare.max_cpus.max(size.cpus),
        memory,
        max_memory: bare.max_memory.max(memory),
        ..bare
    };
    vmm.boot(spec, devices).await.map_err(|source| {
        let node_mib = host_memory_mib();
        if size.memory_mib <= node_mib {
            return VmError::from(source).into();
        }
        Error::TooLarge {
            vm_mib: size.memory_mib,
            node_mib,
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_vmm_know_the_same_question() {
        assert_eq!(caisson_vmm::SECRET_MARKER, secret::MARKER);
    }
}

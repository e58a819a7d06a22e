//! Boots the VM of a pod, and greets the agent in its guest.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{atomic::AtomicBool, Mutex, PoisonError},
    time::{Duration, Instant},
};

use caisson_node::{
    accelerator,
    host::{chain::chain, error::OnFile, folder::Folder, size::host_memory_mib},
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

/// The place of a pod's VM on the host, and the VM if it runs already.
pub struct Site {
    pub dir: PodDir,
    pub share: Share,
    pub bare: Option<Bare>,
}

impl Site {
    /// Gives the place to the pod with this id.
    pub fn rename(&mut self, id: &str) -> Result<()> {
        self.dir.rename(id)?;
        self.share.moved(self.dir.path());
        Ok(())
    }
}

/// A VM that runs, with its shared folder, and has nothing of a pod yet.
pub struct Bare {
    vm: VmHandle,
    modules: Option<PathBuf>,
    booted: Booted,
    boot_timeout: Duration,
    patience: Patience,
    /// The agent, once it has answered and mounted the shared folder.
    agent: Option<Agent>,
}

impl Bare {
    /// Starts a VM with the shared folder. The guest is still booting when this returns.
    ///
    /// A VM that starts from a template has the size of the template; see [`Machine::resize`].
    pub async fn start(
        vmm: &dyn Vmm,
        config: &NodeConfig,
        id: &str,
        dir: &PodDir,
        share: &Share,
        size: VmSize,
    ) -> Result<Self> {
        let accelerator = accelerator::choose(config).await?;
        let spec = VmSpec {
            id: id.to_owned(),
            dir: dir.vm(),
            credentials: dir.credentials,
            placement: dir.placement.clone(),
            ..templates::bare(config, accelerator)?
        };
        let modules = spec.guest.modules.clone();
        let devices = || {
            vec![Device::SharedDir {
                tag: share::TAG.to_owned(),
                path: share.view(),
                read_only: false,
                user_namespace: None,
            }]
        };
        let (vm, booted) = boot(vmm, config, spec, size, devices).await?;
        Ok(Self {
            vm: VmHandle::new(vm),
            modules,
            booted,
            boot_timeout: Duration::from_secs(config.vm.boot_timeout_secs),
            patience: Patience::new(&config.vm, accelerator),
            agent: None,
        })
    }

    /// Returns the VM.
    pub fn vm(&self) -> VmHandle {
        self.vm.clone()
    }

    /// Waits for the agent and has it mount the shared folder.
    pub async fn greet(&mut self) -> Result<Agent> {
        let connection = self.vm.connect(port::AGENT, self.boot_timeout).await?;
        let agent = Agent::new(connection, self.patience);
        attach_share(&agent).await?;
        self.agent = Some(agent.clone());
        Ok(agent)
    }

    /// Plugs in, once, what no start needs, see [`Machine::plug_the_rest`].
    pub async fn plug_the_rest(&mut self, agent: &Agent) {
        if let Some(modules) = self.modules.take() {
            plug_the_rest(&self.vm, agent, modules).await;
        }
    }

    /// Whether the agent answers within a time limit.
    pub async fn answers(&self, within: Duration) -> bool {
        let Some(agent) = &self.agent else {
            return false;
        };
        tokio::time::timeout(within, agent.ping(true))
            .await
            .is_ok_and(|answer| answer.is_ok())
    }

    /// Whether it can have this size.
    fn fits(&self, size: VmSize) -> bool {
        fits(&self.booted.shape, size)
    }
}

impl Machine {
    /// Makes the VM of a pod: the one that its site has, or a new one.
    pub async fn boot(
        vmm: &dyn Vmm,
        config: &NodeConfig,
        id: &str,
        hostname: String,
        site: Site,
        size: VmSize,
    ) -> Result<Self> {
        let started = Instant::now();
        let Site { dir, share, bare } = site;
        let bare = match bare {
            Some(bare) if bare.fits(size) => {
                let placed = bare.vm.relocate(dir.vm(), dir.placement.clone()).await;
                placed.map(|()| bare)?
            }
            unfit => {
                if let Some(unfit) = unfit {
                    unfit.vm.stop().await?;
                    empty(&dir.vm()).map_err(Error::file("empty", dir.vm()))?;
                }
                Bare::start(vmm, config, id, &dir, &share, size).await?
            }
        };
        let pids = bare.vm.pids().await?;
        let machine = Self {
            vm: bare.vm,
            class: dir.class,
            pid: pids.first().map_or_else(std::process::id, |(_, pid)| *pid),
            modules: Mutex::new(bare.modules),
            plugged: Mutex::default(),
            holds: Mutex::default(),
            roots: Mutex::default(),
            hostname,
            template: bare.booted.template,
            missing: Mutex::new(bare.booted.missing),
            boot_timeout: bare.boot_timeout,
            patience: bare.patience,
            known: Mutex::new(bare.agent),
            agent: OnceCell::new(),
            size: tokio::sync::Mutex::new(bare.booted.size),
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
        let known = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let (agent, kernel) = match known {
            Some(agent) => {
                let kernel = agent.configure(&self.hostname).await?;
                (agent, kernel)
            }
            None => {
                let connection = self.vm.connect(port::AGENT, self.boot_timeout).await?;
                let agent = Agent::new(connection, self.patience);
                let kernel = agent.configure(&self.hostname).await?;
                attach_share(&agent).await?;
                (agent, kernel)
            }
        };
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
        if let Ok(agent) = self.agent().await {
            plug_the_rest(&self.vm, agent, path).await;
            if let Err(error) = self.record().await {
                log::warn!("record the VM's devices: {}", error.chain());
            }
        }
    }
}

async fn plug_the_rest(vm: &VmHandle, agent: &Agent, modules: PathBuf) {
    let disk = Device::Disk {
        serial: MODULES_SERIAL.to_owned(),
        path: modules,
        read_only: true,
    };
    if let Err(error) = vm.attach(disk).await {
        log::info!("the guest gets no further modules: {}", chain(&error));
        return;
    }
    let free_pages = async {
        vm.attach(Device::FreePageReporting).await?;
        let driver = GuestDevice::FreePageReporting(Default::default());
        Result::Ok(agent.attach(driver).await?)
    };
    if let Err(error) = free_pages.await {
        log::info!("the guest's free pages stay its own: {}", error.chain());
    }
}

/// Has the guest mount the shared folder.
async fn attach_share(agent: &Agent) -> Result<()> {
    let share = proto::Share {
        tag: share::TAG.to_owned(),
        max_inodes: caisson_vmm::max_inodes(),
        ..Default::default()
    };
    Ok(agent.attach(GuestDevice::Share(share)).await?)
}

/// How a VM has started.
struct Booted {
    size: VmSize,
    /// What it may grow to, and begin with, if it starts from a template.
    shape: VmSpec,
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
) -> Result<(Box<dyn Vm>, Booted)> {
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
                let booted = Booted {
                    size: templates::SIZE,
                    shape: bare,
                    template: found,
                    missing,
                };
                return Ok((vm, booted));
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
    let vm = cold(vmm, bare.clone(), size, devices()).await?;
    // If a VM boots, what the other one could not start from is of no use to anybody.
    if let Some(template) = found {
        discard(&template);
    }
    let booted = Booted {
        size,
        shape: bare,
        template: None,
        missing,
    };
    Ok((vm, booted))
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

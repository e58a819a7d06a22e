//! Starts the VM of a pod, from the node's template or by booting it, before it has anything of the
//! pod.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use caisson_node::{
    accelerator,
    counters::Origin,
    host::{chain::chain, error::OnFile, folder::Folder, size::host_memory_mib},
    state::PodDir,
    templates,
};
use caisson_oci::{volume, NodeConfig, VmSize};
use caisson_protocol::{agent as proto, path::MODULES_SERIAL, port};
use caisson_vmm::{Device, Exclusive, Vm, VmSpec, Vmm};
use proto::attach_request::Device as GuestDevice;

use crate::{
    agent::Agent,
    error::{Error, Result},
    limits::Patience,
    share::{self, Share},
    vm::{VmError, VmHandle},
};

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

    /// Returns the VM, of a size that it can have and in its place: the one that is there, or a new
    /// one.
    pub(super) async fn vm(
        self,
        vmm: &dyn Vmm,
        config: &NodeConfig,
        id: &str,
        size: VmSize,
    ) -> Result<(Bare, PodDir, Share)> {
        let Site { dir, share, bare } = self;
        let spare = match bare {
            Some(bare) => bare.placed(&dir, size).await?,
            None => None,
        };
        let bare = match spare {
            Some(mut bare) => {
                bare.booted.origin = Origin::Pool;
                bare
            }
            None => Bare::start(vmm, config, id, &dir, &share, size).await?,
        };
        Ok((bare, dir, share))
    }
}

/// A VM that runs, with its shared folder, and has nothing of a pod yet.
pub struct Bare {
    pub(super) vm: VmHandle,
    /// The disk with the kernel's additional modules, until it is plugged in.
    pub(super) modules: Option<PathBuf>,
    /// Whether the guest returns free pages to the host.
    pub(super) returns_free_pages: bool,
    pub(super) booted: Booted,
    pub(super) boot_timeout: Duration,
    pub(super) patience: Patience,
    /// The agent, once it has answered and mounted the shared folder.
    pub(super) agent: Option<Agent>,
}

impl Bare {
    /// Starts a VM with the shared folder. The guest is still booting when this returns.
    ///
    /// A VM that starts from a template has the size of the template; see
    /// [`super::Machine::resize`].
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
        let (vm, booted) = boot(vmm, config, spec, size, share).await?;
        Ok(Self::new(config, vm, booted))
    }

    /// Starts a VM from the template that its description names.
    pub async fn start_from(
        vmm: &dyn Vmm,
        config: &NodeConfig,
        spec: VmSpec,
        share: &Share,
    ) -> Result<Self> {
        let vm = vmm.boot(spec.clone(), devices(share)).await;
        let booted = Booted {
            size: templates::SIZE,
            shape: spec,
            origin: Origin::Template,
            template: None,
            missing: None,
        };
        Ok(Self::new(config, vm.map_err(VmError::from)?, booted))
    }

    fn new(config: &NodeConfig, vm: Box<dyn Vm>, booted: Booted) -> Self {
        Self {
            vm: VmHandle::new(vm),
            modules: booted.shape.guest.modules.clone(),
            returns_free_pages: false,
            boot_timeout: Duration::from_secs(config.vm.boot_timeout_secs),
            patience: Patience::new(&config.vm, booted.shape.accelerator),
            booted,
            agent: None,
        }
    }

    /// Moves the VM to its pod's place. If it can't be there, or not have this size, ends it and
    /// returns `None`.
    async fn placed(self, dir: &PodDir, size: VmSize) -> Result<Option<Self>> {
        // Without a cgroup of the pod, it would stay in the pool's.
        if fits(&self.booted.shape, size) && !dir.placement.cgroups.is_empty() {
            match self.vm.relocate(dir.vm(), dir.placement.clone()).await {
                Ok(()) => return Ok(Some(self)),
                Err(error) => log::info!("the VM from the pool is of no use: {}", chain(&error)),
            }
        }
        self.vm.stop().await?;
        empty(&dir.vm()).map_err(Error::file("empty", dir.vm()))?;
        Ok(None)
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

    /// Plugs in everything that no start needs. This VM is made ahead of its pod, which will not
    /// have to wait for any of it.
    pub async fn plug_the_rest(&mut self, agent: &Agent) {
        if let Some(modules) = self.modules.take() {
            plug_modules(&self.vm, modules).await;
        }
        return_free_pages(&self.vm, agent).await;
        self.returns_free_pages = true;
    }

    /// Says that the VM has done what a pod will ask for: whatever fails later, it is not the
    /// template's fault.
    pub fn is_proven(&mut self) {
        self.booted.template = None;
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
}

/// Plugs in the disk with the kernel's additional modules. If that fails, it is logged.
pub(super) async fn plug_modules(vm: &VmHandle, path: PathBuf) {
    let disk = Device::Disk {
        serial: MODULES_SERIAL.to_owned(),
        path,
        read_only: true,
    };
    if let Err(error) = vm.attach(disk).await {
        log::info!("the guest gets no further modules: {}", chain(&error));
    }
}

/// Plugs in the device that returns free pages to the host. If that fails, it is logged. The
/// device's driver may be one of the additional modules.
pub(super) async fn return_free_pages(vm: &VmHandle, agent: &Agent) {
    let plugged = async {
        vm.attach(Device::FreePageReporting).await?;
        let driver = GuestDevice::FreePageReporting(Default::default());
        Result::Ok(agent.attach(driver).await?)
    };
    if let Err(error) = plugged.await {
        log::info!("the guest's free pages stay its own: {}", error.chain());
    }
}

/// Plugs both halves of a device in. Each may wait for the other: the VM for the guest's driver,
/// which the agent loads.
pub async fn plug_both(
    vm: &VmHandle,
    agent: &Agent,
    device: Device,
    guest: GuestDevice,
) -> Result<()> {
    let vm = async { Result::Ok(vm.attach(device).await?) };
    let guest = async { Ok(agent.attach(guest).await?) };
    tokio::try_join!(vm, guest).map(drop)
}

/// Has the guest mount the shared folder.
pub(super) async fn attach_share(agent: &Agent) -> Result<()> {
    let share = proto::Share {
        tag: share::TAG.to_owned(),
        ..Default::default()
    };
    Ok(agent.attach(GuestDevice::Share(share)).await?)
}

/// How a VM has started.
pub(super) struct Booted {
    pub(super) size: VmSize,
    /// What it may grow to, and begin with, if it starts from a template.
    pub(super) shape: VmSpec,
    pub(super) origin: Origin,
    /// What it started from, if it did not boot.
    pub(super) template: Option<PathBuf>,
    /// The VM that a template is to be made of, if there is none or it lacks something.
    pub(super) missing: Option<VmSpec>,
}

/// Starts a VM from a template if there is one for it. Otherwise, boots it with the size.
async fn boot(
    vmm: &dyn Vmm,
    config: &NodeConfig,
    bare: VmSpec,
    size: VmSize,
    share: &Share,
) -> Result<(Box<dyn Vm>, Booted)> {
    let may_use = config.vm.templates && fits(&bare, size);
    let store = may_use.then(|| templates::find(config, &bare));
    let is_wanted = store.as_ref().is_some_and(|found| found.is_wanted);
    let missing = is_wanted.then(|| bare.clone());
    let found = store.and_then(|found| found.template);
    if let Some(template) = &found {
        let spec = VmSpec {
            template: Some(template.clone()),
            ..bare.clone()
        };
        match vmm.boot(spec, devices(share)).await {
            Ok(vm) => {
                let booted = Booted {
                    size: templates::SIZE,
                    shape: bare,
                    origin: Origin::Template,
                    template: found.map(|template| template.machine),
                    missing,
                };
                return Ok((vm, booted));
            }
            Err(error) => log::warn!(
                "the VM boots, since it can't start from the template {}: {}",
                template.machine.display(),
                chain(&error)
            ),
        }
        if let Err(error) = empty(&bare.dir) {
            log::warn!("empty {}: {error}", bare.dir.display());
        }
    }
    let vm = cold(vmm, bare.clone(), size, devices(share)).await?;
    // If a VM boots, what the other one could not start from is of no use to anybody.
    if let Some(template) = found {
        discard(&template.machine);
    }
    let booted = Booted {
        // The guest is not told so yet.
        size: size.fixed(),
        shape: bare,
        origin: Origin::Boot,
        template: None,
        missing,
    };
    Ok((vm, booted))
}

/// The devices that a VM starts with.
fn devices(share: &Share) -> Vec<Device> {
    vec![Device::SharedDir {
        tag: share::TAG.to_owned(),
        path: share.view(),
        read_only: false,
        exclusive: Exclusive::Mounts(volume::OWN),
        user_namespace: None,
    }]
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

pub(super) fn discard(template: &Path) {
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

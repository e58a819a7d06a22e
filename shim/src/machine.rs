//! Assembles the VM of a pod from its state folder, shared folder, VM and agent.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        Mutex, MutexGuard, PoisonError,
    },
    time::{Duration, Instant},
};

use caisson_oci::{NodeConfig, VmSize};
use caisson_protocol::{agent as proto, path::MODULES_SERIAL, port, secret};
use caisson_vmm::{Device, DeviceId, EndReason, Secret, VmSpec, Vmm};
use proto::attach_request::Device as GuestDevice;
use tokio::sync::OnceCell;

use crate::{
    accelerator,
    agent::Agent,
    config,
    error::{Error, Result},
    limits::Patience,
    network::Network,
    oom_score::{self, Class},
    share::{self, Share},
    state::PodDir,
    vm::VmHandle,
};

// The two crates that must agree here do not depend on each other. A test compares
// `secret::MARKER`.
const _: () = assert!(caisson_vmm::READY_PORT == port::READY);
const _: () = assert!(caisson_vmm::SERVICE_PORT == port::AGENT);
const _: () = assert!(caisson_vmm::SECRET_LENGTH == secret::LENGTH);
const _: () = assert!(caisson_vmm::BY_DAEMON == secret::BY_DAEMON);
const _: () = assert!(caisson_vmm::BY_KERNEL == secret::BY_KERNEL);

/// The two halves of a device: what the VM gets, and what the agent then does with it.
pub struct Plug {
    pub vm: Device,
    pub guest: GuestDevice,
    /// A lock that is held for as long as the VM has the device.
    pub hold: Option<File>,
}

/// A disk that was plugged into a running VM and can be unplugged again. Keeps the disk's file
/// locked.
pub struct LateDisk {
    /// The disk's serial and its file.
    place: (String, PathBuf),
    device: DeviceId,
    hold: Option<File>,
}

/// The VM of a pod.
pub struct Machine {
    pub vm: VmHandle,
    /// The pod's quality of service.
    class: Class,
    pub share: Share,
    /// The VMM's pid on the host, which containerd is told as the pid of the pod's tasks.
    pub pid: u32,
    /// The disk with the kernel's additional modules, until it is plugged in.
    modules: Mutex<Option<PathBuf>>,
    /// The devices that have been plugged in and may be requested again, by their name in the guest
    /// and place on the host.
    plugged: Mutex<HashSet<(String, PathBuf)>>,
    holds: Mutex<Vec<File>>,
    /// The roots that are disks, by container.
    roots: Mutex<HashMap<String, LateDisk>>,
    hostname: String,
    boot_timeout: Duration,
    patience: Patience,
    agent: OnceCell<Agent>,
    /// The size that the VM was last given. Locked while the VM is resized; nothing else waits for
    /// the lock.
    size: tokio::sync::Mutex<VmSize>,
    dir: Mutex<Option<PodDir>>,
    network: Mutex<Option<Network>>,
    anti_spoofing: bool,
    /// Set when the VM is stopped because its guest can't be trusted any more. How its processes
    /// ended is then unknown.
    is_broken: AtomicBool,
}

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
                return source.into();
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
            dir: Mutex::new(Some(dir)),
            network: Mutex::default(),
            anti_spoofing: config.network.anti_spoofing,
            is_broken: AtomicBool::new(false),
            share,
        };
        stage(id, "vmm", started);
        let shared = Device::SharedDir {
            tag: share::TAG.to_owned(),
            path: machine.share.view(),
            read_only: false,
            user_namespace: None,
        };
        let plugged = machine.vm.attach(shared).await;
        if let Err(error) = plugged.and(machine.record().await) {
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
                    return Err(error);
                }
                let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
                holds.extend(device.hold);
            }
            halves.push(device.guest);
        }
        self.record().await?;
        let agent = self.agent().await?;
        let attached = halves.into_iter().map(|half| agent.attach(half));
        futures::future::try_join_all(attached).await.map(drop)
    }

    /// Plugs both halves of a disk into a running VM. Returns `None` if the VM has it already.
    pub async fn plug_late(&self, plug: Plug) -> Result<Option<LateDisk>> {
        let Some(place) = place(&plug.vm) else {
            return self.plug(vec![plug]).await.map(|()| None);
        };
        let agent = self.agent().await?;
        if !self.plugged().insert(place.clone()) {
            return agent.attach(plug.guest).await.map(|()| None);
        }
        let device = match self.vm.attach(plug.vm).await {
            Ok(device) => device,
            Err(error) => {
                self.plugged().remove(&place);
                return Err(error);
            }
        };
        let disk = LateDisk {
            place,
            device,
            hold: plug.hold,
        };
        match agent.attach(plug.guest).await {
            Ok(()) => Ok(Some(disk)),
            Err(error) => {
                if let Err(left) = self.unplug(&disk).await {
                    log::warn!("clean up after a failed attach: {}", left.chain());
                }
                Err(error)
            }
        }
    }

    /// Unplugs both halves of a disk. A disk that the guest does not let go of stays plugged in.
    pub async fn unplug(&self, disk: &LateDisk) -> Result<()> {
        self.agent().await?.detach_disk(&disk.place.0).await?;
        self.vm.detach(disk.device.clone()).await?;
        self.plugged().remove(&disk.place);
        Ok(())
    }

    /// Returns how the VM has ended, if it has.
    async fn end(&self) -> Option<EndReason> {
        let mut vm = self.vm.clone();
        tokio::time::timeout(Duration::ZERO, vm.ended()).await.ok()
    }

    /// Whether the VM has ended because the pod's cgroup ran out of memory: the containers' limits
    /// and the RuntimeClass' overhead together were less than the VMM and its daemons needed.
    pub async fn ran_out_of_memory(&self) -> bool {
        let died = matches!(self.end().await, Some(EndReason::ProcessDied { .. }));
        let dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner);
        died && dir.as_ref().is_some_and(PodDir::out_of_memory)
    }

    /// Plugs in a container's root, if it is a disk.
    pub async fn plug_root(&self, container: &str, root: Option<Plug>) -> Result<()> {
        let Some(root) = root else { return Ok(()) };
        if let Some(disk) = self.plug_late(root).await? {
            self.roots().insert(container.to_owned(), disk);
        }
        Ok(())
    }

    /// Unplugs a container's root, if it is a disk. Idempotent.
    pub async fn unplug_root(&self, container: &str) -> Result<()> {
        let disk = self.roots().remove(container);
        match disk {
            Some(disk) => self.unplug(&disk).await,
            None => Ok(()),
        }
    }

    fn roots(&self) -> MutexGuard<'_, HashMap<String, LateDisk>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a late disk plugged in until the VM ends.
    pub fn keep(&self, disk: LateDisk) {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.extend(disk.hold);
    }

    fn plugged(&self) -> MutexGuard<'_, HashSet<(String, PathBuf)>> {
        self.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs in the network cards of a network namespace, if there is one. They stay until the VM
    /// ends.
    pub async fn join_network(&self, namespace: Option<&Path>) -> Result<()> {
        let Some(namespace) = namespace else {
            return Ok(());
        };
        let mut network = Network::open(namespace, self.anti_spoofing).await?;
        if let Err(error) = network.forward(self.vm.clone()).await {
            log::warn!("ports can't be forwarded: {}", crate::error::chain(&error));
        }
        let cards = network.plugs();
        *self.network.lock().unwrap_or_else(PoisonError::into_inner) = Some(network);
        self.plug(cards).await
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
            log::info!("the guest gets no further modules: {}", error.chain());
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
        // Each half of a growth waits for the other: the VM for the guest's driver, which the agent
        // loads.
        let cpus = GuestDevice::Cpus(wanted.cpus);
        if wanted.cpus > current.cpus {
            let vm = self.vm.attach(Device::Cpus(wanted.cpus));
            tokio::try_join!(vm, agent.attach(cpus))?;
        } else if wanted.cpus < current.cpus {
            // A VM keeps its cpus; the guest takes them offline.
            kept("cpus", agent.attach(cpus).await);
        }
        let bytes = wanted.memory_mib << 20;
        if wanted.memory_mib > current.memory_mib {
            let vm = self.vm.attach(Device::Memory(bytes));
            tokio::try_join!(vm, agent.attach(GuestDevice::MemoryBytes(bytes)))?;
        } else if wanted.memory_mib < current.memory_mib {
            kept(
                "memory",
                self.vm.attach(Device::Memory(bytes)).await.map(drop),
            );
        }
        *size = wanted;
        Ok(())
    }

    /// Stops the VM at once because its guest has broken off. How the processes in it ended is
    /// unknown. Logs the reason, once.
    pub async fn break_off(&self, why: &str) {
        if self.is_broken.swap(true, Ordering::Relaxed) {
            return;
        }
        log::error!("stopping the VM: {why}");
        self.kill().await;
    }

    /// Whether [`Machine::break_off`] was called.
    pub fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    /// Stops the VM at once. Idempotent; failures are logged.
    pub async fn kill(&self) {
        if let Err(error) = self.vm.stop().await {
            log::warn!("stop the VM: {}", error.chain());
        }
    }

    /// Shuts the guest down and ends the VM. Idempotent; failures are logged.
    pub async fn stop(&self) {
        let mut ended = self.vm.clone();
        if let Some(agent) = self.agent.get() {
            tokio::select! {
                written = agent.shutdown() => if let Err(error) = written {
                    log::warn!("the guest did not shut down: {}", error.chain());
                },
                _ = ended.ended() => {}
            }
        }
        self.kill().await;
        // The network is dropped before its namespace goes, which happens when the sandbox has
        // ended.
        let network = self.network.lock();
        drop(network.unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Ends the VM and removes everything that belongs to the pod from the host. Idempotent;
    /// failures are logged.
    pub async fn shutdown(&self) {
        self.stop().await;
        let dir = self
            .dir
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // Unmounting and waiting for processes blocks. The runtime logs a panic there.
        drop(tokio::task::spawn_blocking(move || drop(dir)).await);
    }

    /// Gives the VM's processes the score of a pod whose containers have the given scores.
    pub async fn set_oom_score_adj(&self, containers: &[i32]) {
        let score = oom_score::of_vm(self.class, containers);
        if let Err(error) = self.vm.set_oom_score_adj(score).await {
            log::debug!("set oom_score_adj: {}", error.chain());
        }
    }

    /// Records the VM's processes in the state folder.
    async fn record(&self) -> Result<()> {
        let pids = self.vm.pids().await?;
        match self
            .dir
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
        {
            Some(dir) => dir.record(&pids),
            None => Ok(()),
        }
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

/// Logs why the guest has not given back what it no longer has to have.
fn kept(what: &str, given_back: Result<()>) {
    if let Err(error) = given_back {
        log::info!("the VM keeps its {what}: {}", error.chain());
    }
}

/// Logs how long a stage of a start took.
pub fn stage(pod: &str, stage: &str, since: Instant) {
    let ms = since.elapsed().as_millis() as u64;
    log::info!(pod, stage, ms; "start");
}

/// Returns the number of the host's CPUs that this process may use.
pub fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// Returns the host's memory in MiB (proc(5), `MemTotal`).
pub fn host_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    total.map_or(u64::MAX, |kib| kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_vmm_know_the_same_question() {
        assert_eq!(caisson_vmm::SECRET_MARKER, secret::MARKER);
    }
}

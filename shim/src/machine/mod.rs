//! Assembles the VM of a pod from its state folder, shared folder, VM and agent.
//!
//! `bare.rs` starts the VM, `start.rs` makes it the pod's and greets its agent, `devices.rs` plugs
//! devices in and unplugs them, and `size.rs` grows and shrinks it. How it ends is here.

mod bare;
mod devices;
mod size;
mod start;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    path::PathBuf,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, Mutex, PoisonError,
    },
    time::Duration,
};

pub use bare::{plug_both, Bare, Site};
use caisson_node::{
    counters::{Origin, VmFailure},
    host::chain::chain,
    oom_score::{self, Class},
    record::Recorder,
    state::PodDir,
};
use caisson_oci::VmSize;
use caisson_vmm::{Accelerator, EndReason, VmSpec};
use tokio::sync::OnceCell;

use crate::{
    agent::Agent, error::Result, limits::Patience, network::Network, plug::LateDevice,
    share::Share, vm::VmHandle,
};

/// The memory that the VMM and its daemons take beside the guest's, in MiB, for the limit of a pod
/// without an overhead.
const AROUND_MIB: u64 = 128;

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
    /// Whether the guest returns free pages to the host.
    returns_free_pages: AtomicBool,
    /// The devices that have been plugged in and may be requested again, by their name in the guest
    /// and place on the host.
    plugged: Mutex<HashSet<(String, PathBuf)>>,
    holds: Mutex<Vec<File>>,
    /// The roots that are disks, by container.
    roots: Mutex<HashMap<String, LateDevice>>,
    hostname: String,
    /// Where the VM came from.
    pub origin: Origin,
    /// The template that the VM started from.
    template: Option<PathBuf>,
    /// The VM that a template is to be made of, if there is none or it lacks something.
    missing: Mutex<Option<VmSpec>>,
    boot_timeout: Duration,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    patience: Patience,
    /// The agent of a VM that comes from the pool, until it is told who it is.
    known: Mutex<Option<Agent>>,
    agent: OnceCell<Agent>,
    /// The size that the VM was last given. Locked while the VM is resized; nothing else waits for
    /// the lock.
    size: tokio::sync::Mutex<VmSize>,
    dir: Mutex<Option<PodDir>>,
    recorder: Option<Arc<Recorder>>,
    network: Mutex<Option<Network>>,
    stopped: OnceCell<()>,
    removed: OnceCell<()>,
    anti_spoofing: bool,
    /// Set when the VM is stopped because its guest can't be trusted any more. How its processes
    /// ended is then unknown.
    is_broken: AtomicBool,
}

impl Machine {
    /// Returns how the VM has ended, if it has.
    async fn end(&self) -> Option<EndReason> {
        let mut vm = self.vm.clone();
        tokio::time::timeout(Duration::ZERO, vm.ended()).await.ok()
    }

    /// Returns how the VM has failed, if it has ended and nobody had stopped it.
    pub async fn failure(&self) -> Option<VmFailure> {
        if self.is_broken() {
            return Some(VmFailure::BrokenOff);
        }
        match self.end().await? {
            EndReason::Stopped => None,
            EndReason::GuestEnded(_) => Some(VmFailure::Guest),
            EndReason::ProcessDied { .. } if self.ran_out_of_memory().await => {
                Some(VmFailure::Memory)
            }
            EndReason::ProcessDied { .. } => Some(VmFailure::Process),
        }
    }

    /// Whether the VM has ended because the pod's cgroup ran out of memory: the containers' limits
    /// and the RuntimeClass' overhead together were less than the VMM and its daemons needed.
    pub async fn ran_out_of_memory(&self) -> bool {
        let died = matches!(self.end().await, Some(EndReason::ProcessDied { .. }));
        let dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner);
        died && dir.as_ref().is_some_and(PodDir::out_of_memory)
    }

    /// Returns the memory that the VM may have within the limit of the pod's cgroup, in MiB.
    pub fn memory_limit_mib(&self) -> Option<u64> {
        let dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = dir.as_ref()?.memory_limit()?;
        Some((limit >> 20).saturating_sub(AROUND_MIB))
    }

    /// Returns how many processes the pod may have, by the limit of its cgroup. On the host, only
    /// those of the VMM count.
    fn process_limit(&self) -> Option<u64> {
        let dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner);
        dir.as_ref()?.process_limit()
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
            log::warn!("stop the VM: {}", chain(&error));
        }
    }

    /// Shuts the guest down and ends the VM and its network. Whoever calls it meanwhile waits for
    /// that too. Failures are logged.
    pub async fn stop(&self) {
        self.stopped.get_or_init(|| self.stop_once()).await;
    }

    async fn stop_once(&self) {
        let mut ended = self.vm.clone();
        if let Some(agent) = self.agent.get() {
            tokio::select! {
                written = agent.shutdown() => if let Err(error) = written {
                    log::warn!("the guest did not shut down: {}", chain(&error));
                },
                _ = ended.ended() => {}
            }
        }
        // The network is dropped before its namespace goes, which happens when the sandbox has
        // ended. The kernel takes its time for that, as for the end of the processes.
        tokio::join!(self.kill(), drop_blocking(take(&self.network)));
    }

    /// Ends the VM and removes everything that belongs to the pod from the host. Whoever calls it
    /// meanwhile waits for that too. Failures are logged.
    pub async fn shutdown(&self) {
        self.stop().await;
        let remove = || async {
            // A network that came late.
            drop_blocking(take(&self.network)).await;
            drop_blocking(take(&self.dir)).await;
        };
        self.removed.get_or_init(remove).await;
    }

    /// Gives the VM's processes the score of a pod whose containers have the given scores.
    pub async fn set_oom_score_adj(&self, containers: &[i32]) {
        let score = oom_score::of_vm(self.class, containers);
        if let Err(error) = self.vm.set_oom_score_adj(score).await {
            log::debug!("set oom_score_adj: {}", chain(&error));
        }
    }

    /// Records the VM's processes and devices in the state folder.
    async fn record(&self) -> Result<()> {
        let (pids, devices) = (self.vm.pids().await?, self.vm.devices().await?);
        if let Some(recorder) = &self.recorder {
            recorder.change(|record| {
                if let Some(machine) = &mut record.machine {
                    machine.devices = devices.into_iter().map(|(id, port)| (id.0, port)).collect();
                }
            });
        }
        match self
            .dir
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
        {
            Some(dir) => Ok(dir.record(&pids)?),
            None => Ok(()),
        }
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Drops what waits for the kernel meanwhile.
async fn drop_blocking<T: Send + 'static>(value: Option<T>) {
    if value.is_some() {
        // The runtime logs a panic there.
        drop(tokio::task::spawn_blocking(move || drop(value)).await);
    }
}

//! The pod itself: its containers and its VM.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    },
    time::{Duration, Instant},
};

use caisson_node::{
    counters::{Event, Task},
    homes::PodHome,
    host::size::{host_cpus, host_memory_mib},
    record::{PodState, Record, Recorder},
};
use caisson_oci::{claim::Claimed, Node, NodeConfig};
use caisson_vmm::Vmm;
use tokio::sync::OnceCell;

use super::late_skill::LateSkill;
use crate::{
    container::Container,
    error::{reason, Error, Result},
    events::Events,
    home_share::PodsHome,
    machine::{Machine, Site},
    pool,
    process::{Process, State},
    scratch,
    tally::Tally,
    turn::Turns,
};

/// The exit status of a process whose end nobody could see because the VM was gone.
pub(super) const UNKNOWN_STATUS: u32 = 255;

/// A pod of this shim.
pub struct Pod {
    pub(super) id: String,
    pub(super) namespace: String,
    pub(super) config: NodeConfig,
    pub(super) vmm: Arc<dyn Vmm>,
    pub(super) events: Events,
    pub(super) machine: OnceCell<Arc<Machine>>,
    /// The VM from the pool, until it is the pod's.
    spare: Mutex<Option<Site>>,
    /// The folder of the files that the pod's containers share, if the sandbox service had to make
    /// them.
    pub(super) files: OnceLock<PathBuf>,
    pub(super) home: PodHome,
    pub(super) scratch: scratch::Volumes,
    pub(super) containers: Mutex<HashMap<String, Arc<Container>>>,
    /// The pod's record, once it has a state folder.
    pub(super) recorder: OnceLock<Arc<Recorder>>,
    /// The number of creates and starts of containers so far.
    pub(super) steps: AtomicU64,
    /// Counts in the counters of the node.
    pub(super) tally: Tally,
    /// The turns that the starts of the node take.
    pub(super) turns: Turns,
    /// The skills that were attached late. The lock is held while one is attached or detached;
    /// nothing else waits for it.
    pub(super) late: tokio::sync::Mutex<Vec<LateSkill>>,
    /// What the pod was claimed with.
    pub(super) claimed: OnceLock<Claimed>,
    /// Held by the containers that are being created, and by a claim: a container has all of it or
    /// is there to be given it.
    pub(super) claiming: tokio::sync::RwLock<()>,
}

impl Pod {
    /// Makes a pod without a VM; the first container boots it.
    pub fn new(
        id: String,
        namespace: String,
        config: NodeConfig,
        vmm: Arc<dyn Vmm>,
        events: Events,
    ) -> Arc<Self> {
        let tally = Tally::new(config.state_dir.clone());
        let turns = Turns::new(&config.state_dir, host_cpus() as usize);
        Arc::new(Self {
            id,
            namespace,
            config,
            vmm,
            events,
            machine: OnceCell::new(),
            spare: Mutex::default(),
            files: OnceLock::new(),
            home: PodHome::default(),
            scratch: scratch::Volumes::default(),
            containers: Mutex::default(),
            recorder: OnceLock::new(),
            steps: AtomicU64::new(0),
            tally,
            turns,
            late: Default::default(),
            claimed: OnceLock::new(),
            claiming: Default::default(),
        })
    }

    /// Gives the pod a VM that runs already, with its place on the host. The first container will
    /// not boot another one.
    pub fn give(&self, spare: Site) {
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(spare);
    }

    pub(super) fn take_spare(&self) -> Option<Site> {
        self.spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Returns a process, the folder of its container and the pid to report.
    pub fn process(&self, id: &str, exec: &str) -> Result<(Arc<Process>, PathBuf, u32)> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        Ok((process, container.bundle.clone(), container.pid))
    }

    /// The pid of the VM on the host, once it has one.
    pub fn pid(&self) -> Option<u32> {
        self.machine.get().map(|machine| machine.pid)
    }

    /// Returns the node, as far as sizes of VMs depend on it.
    pub(super) fn node(&self) -> Node<'_> {
        Node {
            vm: &self.config.vm,
            cpus: host_cpus(),
            memory_mib: host_memory_mib(),
        }
    }

    /// Returns the preset of the configuration that the pod has.
    pub fn preset(&self) -> Option<&str> {
        self.config.preset.as_deref()
    }

    /// Whether no container is left.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Ends the VM and removes everything of the pod from the host. Containers that still run end
    /// with it. Idempotent.
    pub async fn shutdown(&self) {
        drop(self.take_spare());
        if let Some(machine) = self.machine.get() {
            machine.shutdown().await;
        }
        tokio::join!(
            self.events.flush(Duration::from_secs(2)),
            self.tally.flush(),
        );
        pool::leave(&self.config);
    }

    /// Refuses an id that is invalid or taken.
    pub(super) fn check_new(&self, id: &str) -> Result<()> {
        caisson_oci::id::check(id)?;
        if caisson_node::pool::is_member(id) {
            return Err(Error::Request {
                field: "id",
                reason: "is of the form that names the members of the pool".to_owned(),
            });
        }
        match self.lock().contains_key(id) {
            false => Ok(()),
            true => Err(Error::Exists {
                what: "container",
                id: id.to_owned(),
            }),
        }
    }

    /// Registers a container under its id. The pod runs from its first container on.
    pub(super) fn admit(&self, id: &str, container: Container) -> Arc<Container> {
        let container = Arc::new(container);
        self.lock().insert(id.to_owned(), container.clone());
        self.record(|record| {
            record.pod_becomes(PodState::Running);
            record
                .containers
                .insert(id.to_owned(), container.recorded());
        });
        container
    }

    /// Forgets a container that has been removed.
    pub(super) fn dismiss(&self, id: &str) {
        self.lock().remove(id);
        self.record(|record| record.containers.remove(id));
    }

    pub(super) fn pods_home(&self) -> PodsHome<'_> {
        PodsHome {
            pod: &self.id,
            namespace: &self.namespace,
            home: &self.home,
        }
    }

    pub(super) fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.lock().get(id).cloned();
        found.ok_or_else(|| Error::NotFound {
            what: "container",
            id: id.to_owned(),
        })
    }

    /// A container that has processes in the guest.
    pub(super) fn guest_container(
        &self,
        operation: &'static str,
        id: &str,
    ) -> Result<Arc<Container>> {
        let container = self.container(id)?;
        match container.is_sandbox() {
            false => Ok(container),
            true => Err(Error::State {
                operation,
                id: id.to_owned(),
                state: "the pod's sandbox, which is its VM and runs no process",
            }),
        }
    }

    pub(super) fn machine(&self, id: &str) -> Result<Arc<Machine>> {
        self.machine.get().cloned().ok_or_else(|| Error::NotFound {
            what: "container",
            id: id.to_owned(),
        })
    }

    /// Changes the pod's record, see [`Recorder::change`]. Before the pod has a state folder there
    /// is nothing to record.
    pub(super) fn record<T>(&self, change: impl FnOnce(&mut Record) -> T) {
        if let Some(recorder) = self.recorder.get() {
            recorder.change(change);
        }
    }

    /// Moves a process on, see [`Process::transition`], and records it.
    pub(super) fn transition(
        &self,
        process: &Process,
        operation: &'static str,
        next: State,
    ) -> Result<()> {
        process.transition(operation, next)?;
        self.record_state(process);
        Ok(())
    }

    /// Records a registered container anew.
    pub(super) fn record_container(&self, id: &str, container: &Container) {
        self.record(|record| {
            if let Some(recorded) = record.containers.get_mut(id) {
                *recorded = container.recorded();
            }
        });
    }

    /// Records what a process is doing. One whose container is not registered yet, or not any more,
    /// has no place in the record.
    pub(super) fn record_state(&self, process: &Process) {
        self.record(|record| {
            let Some(container) = record.containers.get_mut(&process.id.container) else {
                return;
            };
            match process.id.exec.as_str() {
                "" => container.state = process.state(),
                exec => {
                    container.execs.insert(exec.to_owned(), process.state());
                }
            }
        });
    }

    /// Counts a start that began then, and its stages.
    pub(super) fn count_start<T>(&self, task: Task, began: Instant, started: &Result<T>) {
        self.tally.count_stages();
        self.tally.count(match (started, task, self.machine.get()) {
            (Err(error), ..) => Event::StartFailed(task, reason(error)),
            (Ok(_), Task::Pod, Some(machine)) => Event::PodStarted(machine.origin, began.elapsed()),
            (Ok(_), ..) => Event::ContainerStarted(began.elapsed()),
        });
    }

    /// Returns what the next create is for: the pod, as long as it has no VM.
    pub(super) fn next_task(&self) -> Task {
        match self.machine.get() {
            None => Task::Pod,
            Some(_) => Task::Container,
        }
    }

    /// Counts a create or a start.
    pub(super) fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the VM the OOM score that results from its containers.
    pub(super) async fn score(&self, machine: &Machine) {
        let scores: Vec<_> = {
            let containers = self.lock();
            let containers = containers.values().filter(|c| !c.is_sandbox());
            containers
                .map(|container| container.oom_score_adj)
                .collect()
        };
        machine.set_oom_score_adj(&scores).await;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

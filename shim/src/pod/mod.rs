//! A pod: one VM and the containers in it. This is what the task service does, without containerd's
//! messages.
//!
//! [`create`] creates containers, [`late`] attaches skills to existing ones, [`sandbox`] is the VM
//! as a task of its own, and [`watch`] follows the ends of processes and of the guest. The rest is
//! here.

mod create;
mod late;
mod sandbox;
mod watch;

pub use create::CreateRequest;
use late::LateSkill;
pub use sandbox::SandboxRequest;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    },
    time::{Duration, SystemTime},
};

use caisson_oci::{config::NodeConfig, spec::LinuxResources};
use caisson_protocol::agent::StatsResponse;
use caisson_vmm::Vmm;
use containerd_shim::protos::{
    events::task::{
        TaskDelete, TaskExecAdded, TaskExecStarted, TaskPaused, TaskResumed, TaskStart,
    },
    ttrpc,
};
use tokio::{sync::OnceCell, time::timeout};

use crate::{
    agent::ProcessId,
    container::Container,
    error::{Error, Result},
    events::Events,
    homes::PodHome,
    limits,
    machine::Machine,
    process::{Exit, Process, State},
    stats::timestamp,
    streams::{HostEnds, Stdio},
};

/// How long output may still take to arrive after a process' end before `delete` cuts it off.
/// Output that nobody reads does not keep a pod from being removed for long.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// The time without a start after which the devices that no start needs are plugged in. Earlier,
/// that would take the guest's only cpu from the program that starts.
const AFTER_START: Duration = Duration::from_secs(1);
/// How often that time is waited for at most. A program that asks the guest's kernel for a module
/// waits 5 s.
const WAITS_AFTER_START: u32 = 3;
/// The exit status of a process whose end nobody could see because the VM was gone.
const UNKNOWN_STATUS: u32 = 255;

/// A pod of this shim.
pub struct Pod {
    id: String,
    namespace: String,
    config: NodeConfig,
    vmm: Arc<dyn Vmm>,
    events: Events,
    machine: OnceCell<Arc<Machine>>,
    /// The folder of the files that the pod's containers share, if the sandbox service had to make
    /// them.
    files: OnceLock<PathBuf>,
    home: PodHome,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// The number of creates and starts of containers so far.
    steps: AtomicU64,
    /// The skills that were attached late. The lock is held while one is attached or detached;
    /// nothing else waits for it.
    late: tokio::sync::Mutex<Vec<LateSkill>>,
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
        Arc::new(Self {
            id,
            namespace,
            config,
            vmm,
            events,
            machine: OnceCell::new(),
            files: OnceLock::new(),
            home: PodHome::default(),
            containers: Mutex::default(),
            steps: AtomicU64::new(0),
            late: Default::default(),
        })
    }

    /// Starts a container's init or an exec. Returns the pid of the VM on the host.
    pub async fn start(self: &Arc<Self>, id: &str, exec: &str) -> Result<u32> {
        let machine = self.machine(id)?;
        let container = self.container(id)?;
        let process = container.process(exec)?;
        process.transition("start", State::Starting)?;
        let started = match exec {
            "" if container.is_sandbox() => machine.agent().await.map(drop),
            "" => machine.agent().await?.start(id).await,
            _ => self.start_exec(&machine, &container, &process).await,
        };
        if let Err(error) = started {
            match exec {
                // The init exists and ends with the container; `watch` announces its end.
                "" => self.settle(&process, State::Created),
                _ => self.stop_unstarted(&process),
            }
            return Err(error);
        }
        let (container_id, pid) = (id.to_owned(), container.pid);
        match exec {
            "" if !container.is_task => {}
            "" => self.events.send(TaskStart {
                container_id,
                pid,
                ..Default::default()
            }),
            _ => self.events.send(TaskExecStarted {
                container_id,
                exec_id: exec.to_owned(),
                pid,
                ..Default::default()
            }),
        }
        self.settle(&process, State::Running);
        if exec.is_empty() {
            tokio::spawn(self.clone().plug_the_rest(machine));
        } else {
            self.watch(machine, process, &container);
        }
        Ok(pid)
    }

    /// Plugs in the remaining devices once nothing is starting that would have to wait for that.
    async fn plug_the_rest(self: Arc<Self>, machine: Arc<Machine>) {
        self.step();
        for _ in 0..WAITS_AFTER_START {
            let before = self.steps.load(Ordering::Relaxed);
            tokio::time::sleep(AFTER_START).await;
            if self.steps.load(Ordering::Relaxed) == before {
                break;
            }
        }
        machine.plug_the_rest().await;
    }

    /// Counts a create or a start.
    fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    async fn start_exec(
        &self,
        machine: &Machine,
        container: &Container,
        process: &Process,
    ) -> Result<()> {
        let ends = HostEnds::open(&process.stdio, &process.id.container, &self.namespace).await?;
        let agent = machine.agent().await?;
        agent
            .exec(
                &process.id,
                process.process_json.clone(),
                &container.grants.descriptors,
                ends.tokens,
            )
            .await?;
        process.set_pumps(ends.connect(&machine.vm, process.name()).await?);
        Ok(())
    }

    /// Leaves the state `Starting`. If the process has ended meanwhile, it stays ended.
    fn settle(&self, process: &Process, state: State) {
        if let Err(error) = process.transition("settle", state) {
            log::debug!("{}", error.chain());
        }
    }

    /// Marks an exec that could not be started as ended, so that containerd can delete it.
    fn stop_unstarted(&self, process: &Process) {
        let exit = Exit {
            status: UNKNOWN_STATUS,
            at: SystemTime::now(),
        };
        self.settle(process, State::Stopped(exit));
    }

    /// Adds an exec, to be started later.
    pub fn exec(&self, id: &str, exec: &str, process_json: Vec<u8>, stdio: Stdio) -> Result<()> {
        caisson_oci::id::check(exec)?;
        let container = self.guest_container("exec", id)?;
        let process_json = container.grants.translate(process_json)?;
        let process_id = ProcessId {
            container: id.to_owned(),
            exec: exec.to_owned(),
        };
        container.add_exec(Process::new(process_id, stdio, process_json))?;
        self.events.send(TaskExecAdded {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        });
        Ok(())
    }

    /// Returns a process, the folder of its container and the pid to report.
    pub fn process(&self, id: &str, exec: &str) -> Result<(Arc<Process>, PathBuf, u32)> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        Ok((process, container.bundle.clone(), container.pid))
    }

    /// Signals a process, or all processes of its container.
    ///
    /// The signals that end a pause container end the sandbox, and the VM with it.
    pub async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<()> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        if let State::Stopped(_) = process.state() {
            // The words of runc's shim; containerd takes them for success.
            return Err(Error::NotFound {
                what: "process already finished: process",
                id: process.name().to_owned(),
            });
        }
        let machine = self.machine(id)?;
        if container.is_sandbox() {
            const ENDING: [i32; 3] = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT];
            if ENDING.contains(&(signal as i32)) {
                machine.stop().await;
            }
            return Ok(());
        }
        if signal == libc::SIGKILL as u32 && (all || exec.is_empty()) {
            return kill_container(machine, &container, all).await;
        }
        let sent = async { machine.agent().await?.kill(&process.id, signal, all).await };
        if signal != libc::SIGKILL as u32 {
            return sent.await;
        }
        process.kill();
        killed(process.name(), sent.await)
    }

    /// Removes a container or an exec that has ended. Returns its exit and the pid that was
    /// reported.
    pub async fn delete(&self, id: &str, exec: &str) -> Result<(Exit, u32)> {
        let container = self.container(id)?;
        let machine = self.machine(id)?;
        let process = container.process(exec)?;
        let exit = match process.state() {
            State::Stopped(exit) => exit,
            State::Created if container.is_sandbox() => {
                machine.stop().await;
                process.exited().await
            }
            State::Created if exec.is_empty() => {
                kill_container(machine.clone(), &container, true).await?;
                process.exited().await
            }
            State::Created => Exit {
                status: 0,
                at: SystemTime::now(),
            },
            state => {
                return Err(Error::State {
                    operation: "delete",
                    id: process.name().to_owned(),
                    state: state.name(),
                })
            }
        };
        process.drain(DRAIN_LIMIT).await;
        if !exec.is_empty() {
            container.remove_exec(exec);
            return Ok((exit, container.pid));
        }
        if container.is_sandbox() {
            machine.shutdown().await;
            self.lock().remove(id);
        } else {
            let mut ended = machine.vm.clone();
            tokio::select! {
                deleted = delete_in_guest(&machine, id) => if let Err(error) = deleted {
                    // Nothing in the guest outlives the VM, so the host's part goes on.
                    log::warn!(container = id; "{}", error.chain());
                },
                _ = ended.ended() => {}
            }
            self.lock().remove(id);
            self.score(&machine).await;
            machine.share.remove(id)?;
        }
        self.events.send(TaskDelete {
            container_id: id.to_owned(),
            pid: container.pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        });
        Ok((exit, container.pid))
    }

    /// Freezes a container.
    pub async fn pause(&self, id: &str) -> Result<()> {
        let init = self.guest_container("pause", id)?.init.clone();
        let machine = self.machine(id)?;
        match init.state() {
            State::Running => machine.agent().await?.pause(id).await?,
            state => return Err(wrong_state("pause", id, state)),
        }
        init.transition("pause", State::Paused)?;
        self.events.send(TaskPaused {
            container_id: id.to_owned(),
            ..Default::default()
        });
        Ok(())
    }

    /// Thaws a container.
    pub async fn resume(&self, id: &str) -> Result<()> {
        let init = self.guest_container("resume", id)?.init.clone();
        let machine = self.machine(id)?;
        match init.state() {
            State::Paused => machine.agent().await?.resume(id).await?,
            state => return Err(wrong_state("resume", id, state)),
        }
        init.transition("resume", State::Running)?;
        self.events.send(TaskResumed {
            container_id: id.to_owned(),
            ..Default::default()
        });
        Ok(())
    }

    /// The pids of a container. For its init this is the pid on the host, as everywhere; the others
    /// are the guest's pids.
    pub async fn pids(&self, id: &str) -> Result<Vec<u32>> {
        let container = self.container(id)?;
        if container.is_sandbox() {
            return Ok(vec![container.pid]);
        }
        let mut pids = self.machine(id)?.agent().await?.pids(id).await?;
        for pid in &mut pids {
            if Some(*pid) == container.guest_pid {
                *pid = container.pid;
            }
        }
        Ok(pids)
    }

    /// Returns what a container uses, within a second. A sandbox uses nothing, like a pause
    /// container that does nothing. What the VM itself uses is in the pod's cgroup on the host.
    pub async fn stats(&self, id: &str) -> Result<StatsResponse> {
        let container = self.container(id)?;
        if container.is_sandbox() {
            return Ok(StatsResponse::default());
        }
        let (machine, id) = (self.machine(id)?, id.to_owned());
        let ask = || async move { machine.agent().await?.stats(&id).await };
        // If one container is already waiting for its numbers, the caller need not wait for those
        // of the others too.
        let is_silent = self.lock().values().any(|other| other.stats.is_overdue());
        let wait = match is_silent {
            true => Duration::ZERO,
            false => limits::STATS_WAIT,
        };
        container.stats.get(wait, ask).await
    }

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
            machine.agent().await?.update(id, resources).await
        };
        if let Err(error) = updated.await {
            container.set_limits(old);
            return Err(error);
        }
        self.fit(&machine).await
    }

    /// Gives the VM the OOM score that results from its containers.
    async fn score(&self, machine: &Machine) {
        let scores: Vec<_> = {
            let containers = self.lock();
            let containers = containers.values().filter(|c| !c.is_sandbox());
            containers
                .map(|container| container.oom_score_adj)
                .collect()
        };
        machine.set_oom_score_adj(&scores).await;
    }

    /// Sets the size of a terminal.
    pub async fn resize_pty(&self, id: &str, exec: &str, width: u32, height: u32) -> Result<()> {
        let process = self.container(id)?.process(exec)?;
        let machine = self.machine(id)?;
        machine
            .agent()
            .await?
            .resize(&process.id, width, height)
            .await
    }

    /// Whether no container is left.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Ends the VM and removes everything of the pod from the host. Containers that still run end
    /// with it. Idempotent.
    pub async fn shutdown(&self) {
        if let Some(machine) = self.machine.get() {
            machine.shutdown().await;
        }
        self.events.flush(Duration::from_secs(2)).await;
    }

    /// The pid of the VM on the host, once it has one.
    pub fn pid(&self) -> Option<u32> {
        self.machine.get().map(|machine| machine.pid)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.lock().get(id).cloned();
        found.ok_or_else(|| Error::NotFound {
            what: "container",
            id: id.to_owned(),
        })
    }

    /// A container that has processes in the guest.
    fn guest_container(&self, operation: &'static str, id: &str) -> Result<Arc<Container>> {
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

    fn machine(&self, id: &str) -> Result<Arc<Machine>> {
        self.machine.get().cloned().ok_or_else(|| Error::NotFound {
            what: "container",
            id: id.to_owned(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills a container's init, or all of the container. If the container does not end in time,
/// whatever the guest says, its VM is killed.
async fn kill_container(machine: Arc<Machine>, container: &Container, all: bool) -> Result<()> {
    let init = container.init.clone();
    let id = init.id.clone();
    if init.kill() {
        let machine = machine.clone();
        let most = match init.state() {
            State::Created if machine.is_overdue() => limits::KILLED_UNSTARTED,
            _ => limits::KILLED,
        };
        tokio::spawn(async move {
            if timeout(most, init.exited()).await.is_err() {
                log::error!(
                    container = init.name();
                    "not ended {most:?} after SIGKILL: stopping the pod's VM"
                );
                machine.kill().await;
            }
        });
    }
    let sent = async {
        let agent = machine.agent().await?;
        agent.kill(&id, libc::SIGKILL as u32, all).await
    };
    killed(&id.container, sent.await)
}

/// The result to report for a SIGKILL. The process ends whatever the guest says, so other errors of
/// the agent count as success; but containerd has to know if there is no such process.
fn killed(name: &str, sent: Result<()>) -> Result<()> {
    match sent {
        Err(Error::Agent {
            code: ttrpc::Code::NOT_FOUND,
            ..
        }) => sent,
        Err(error @ (Error::Agent { .. } | Error::AgentSilent { .. })) => {
            log::warn!(process = name; "{}", error.chain());
            Ok(())
        }
        sent => sent,
    }
}

async fn delete_in_guest(machine: &Machine, id: &str) -> Result<()> {
    machine.agent().await?.delete(id).await?;
    machine.unplug_root(id).await
}

fn wrong_state(operation: &'static str, id: &str, state: State) -> Error {
    Error::State {
        operation,
        id: id.to_owned(),
        state: state.name(),
    }
}

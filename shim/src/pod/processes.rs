//! Starts, signals and removes the processes of a pod's containers.

use std::{
    sync::{atomic::Ordering, Arc},
    time::{Duration, SystemTime},
};

use caisson_node::host::chain::chain;
use caisson_oci::exec::Exec;
use caisson_vmm::Accelerator;
use containerd_shim::protos::{
    events::task::{
        TaskDelete, TaskExecAdded, TaskExecStarted, TaskPaused, TaskResumed, TaskStart,
    },
    ttrpc,
};
use tokio::time::timeout;

use super::base::{Pod, UNKNOWN_STATUS};
use crate::{
    agent::{AgentError, ProcessId},
    container::Container,
    error::{Error, Result},
    limits,
    machine::Machine,
    pool,
    process::{Exit, Process, State},
    stats::timestamp,
    streams::{HostEnds, Stdio},
    template,
};

/// How long output may still take to arrive after a process' end before `delete` cuts it off.
/// Output that nobody reads does not keep a pod from being removed for long.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// The time without a start in this pod after which the node prepares for the next pod.
const AFTER_START: Duration = Duration::from_secs(1);
/// The time without a start after which the guest begins to return free pages, and an emulated one
/// gets the node's cpus. Pods often come many at once, and this would take the cpus from those that
/// are still starting.
const AFTER_STARTS: Duration = Duration::from_secs(10);
/// How often such a time is waited for at most.
const WAITS: u32 = 3;

impl Pod {
    /// Starts a container's init or an exec. Returns the pid of the VM on the host.
    pub async fn start(self: &Arc<Self>, id: &str, exec: &str) -> Result<u32> {
        let machine = self.machine(id)?;
        let container = self.container(id)?;
        let process = container.process(exec)?;
        self.transition(&process, "start", State::Starting)?;
        let started = async {
            let start = async {
                match container.is_sandbox() {
                    true => machine.agent().await.map(drop),
                    false => Ok(machine.agent().await?.start(id).await?),
                }
            };
            match &process.exec {
                None => self.turns.take(id, Box::pin(start)).await,
                Some(exec) => self.start_exec(&machine, &process, exec).await,
            }
        };
        if let Err(error) = started.await {
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
            container.hooks.started(container.pid).await;
            tokio::spawn(self.clone().follow_up(machine));
        } else {
            self.watch(machine, process, &container);
        }
        Ok(pid)
    }

    /// Does what no start needs once nothing is starting that would have to wait for that.
    async fn follow_up(self: Arc<Self>, machine: Arc<Machine>) {
        self.step();
        self.quiet(AFTER_START).await;
        // Under emulation, plugging a cpu in takes much of the time of a start.
        let is_emulated = machine.accelerator == Accelerator::Tcg;
        if !is_emulated {
            self.give_cpus(&machine).await;
        }
        if let Some(spec) = machine.missing_template() {
            if let Err(error) = template::make(&self.config, self.vmm.as_ref(), &spec).await {
                log::info!("make the template of the node's VMs: {}", error.chain());
            }
        }
        pool::fill(&self.config).await;
        self.quiet(AFTER_STARTS).await;
        if is_emulated {
            self.give_cpus(&machine).await;
        }
        machine.return_free_pages().await;
    }

    /// Waits until nothing has started in this pod for a time, or for [`WAITS`] times as long.
    async fn quiet(&self, time: Duration) {
        for _ in 0..WAITS {
            let before = self.steps.load(Ordering::Relaxed);
            tokio::time::sleep(time).await;
            if self.steps.load(Ordering::Relaxed) == before {
                break;
            }
        }
    }

    async fn start_exec(&self, machine: &Machine, process: &Process, exec: &Exec) -> Result<()> {
        let ends = HostEnds::open(&process.stdio, &process.id.container, &self.namespace).await?;
        let agent = machine.agent().await?;
        agent.exec(&process.id, exec, ends.tokens).await?;
        process.set_pumps(ends.connect(&machine.vm, process.name()).await?);
        Ok(())
    }

    /// Leaves the state `Starting`. If the process has ended meanwhile, it stays ended.
    fn settle(&self, process: &Process, state: State) {
        if let Err(error) = self.transition(process, "settle", state) {
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
        let planned = container.grants().plan(&process_json)?;
        let process_id = ProcessId {
            container: id.to_owned(),
            exec: exec.to_owned(),
        };
        container.add_exec(Process::of_exec(process_id, stdio, planned))?;
        self.record_container(id, &container);
        self.events.send(TaskExecAdded {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        });
        Ok(())
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
        let sent = async {
            let agent = machine.agent().await?;
            Ok(agent.kill(&process.id, signal, all).await?)
        };
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
            self.record_container(id, &container);
            return Ok((exit, container.pid));
        }
        if container.is_sandbox() {
            machine.shutdown().await;
            self.dismiss(id);
        } else {
            let mut ended = machine.vm.clone();
            tokio::select! {
                deleted = delete_in_guest(&machine, id) => if let Err(error) = deleted {
                    // Nothing in the guest outlives the VM, so the host's part goes on.
                    log::warn!(container = id; "{}", error.chain());
                },
                _ = ended.ended() => {}
            }
            self.dismiss(id);
            self.score(&machine).await;
            machine.share.remove(id)?;
        }
        container.hooks.stopped().await;
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
        self.transition(&init, "pause", State::Paused)?;
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
        self.transition(&init, "resume", State::Running)?;
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

    /// Sets the size of a terminal.
    pub async fn resize_pty(&self, id: &str, exec: &str, width: u32, height: u32) -> Result<()> {
        let process = self.container(id)?.process(exec)?;
        let machine = self.machine(id)?;
        let agent = machine.agent().await?;
        Ok(agent.resize(&process.id, width, height).await?)
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
        Ok(agent.kill(&id, libc::SIGKILL as u32, all).await?)
    };
    killed(&id.container, sent.await)
}

/// The result to report for a SIGKILL. The process ends whatever the guest says, so other errors of
/// the agent count as success; but containerd has to know if there is no such process.
fn killed(name: &str, sent: Result<()>) -> Result<()> {
    match sent {
        Err(Error::Agent(AgentError::Refused {
            code: ttrpc::Code::NOT_FOUND,
            ..
        })) => sent,
        Err(Error::Agent(error @ (AgentError::Refused { .. } | AgentError::Silent { .. }))) => {
            log::warn!(process = name; "{}", chain(&error));
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

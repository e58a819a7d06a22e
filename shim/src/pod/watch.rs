//! Watches for what a pod does not ask for: the ends of processes, the guest's events, and the VM's
//! end.

use std::{
    collections::{hash_map::Entry, HashMap},
    future::Future,
    sync::Arc,
    time::SystemTime,
};

use caisson_node::{
    counters::Event,
    host::chain::chain,
    record::{MachineState, PodState},
};
use caisson_protocol::agent::event;
use caisson_vmm::EndReason;
use containerd_shim::protos::events::task::{TaskExit, TaskOOM};
use tokio::time::{timeout, Instant};

use super::base::{Pod, UNKNOWN_STATUS};
use crate::{
    agent::{Agent, AgentError},
    clock::Clock,
    container::Container,
    error::Error,
    limits,
    machine::Machine,
    open_files,
    process::{Exit, Process, State},
    stats::timestamp,
    vm::describe,
};

/// 128 plus SIGKILL.
const KILLED_STATUS: u32 = 137;

impl Pod {
    /// Waits for a process' end in the background and announces it.
    pub(super) fn watch(
        self: &Arc<Self>,
        machine: Arc<Machine>,
        process: Arc<Process>,
        container: &Container,
    ) {
        let pod = self.clone();
        let (is_sandbox, is_task) = (container.is_sandbox(), container.is_task);
        let pid = container.pid;
        tokio::spawn(async move {
            let status = match is_sandbox {
                true => status_with_the_vm(&machine).await,
                false => exit_status(&machine, &process).await,
            };
            let at = SystemTime::now();
            // containerd takes this event for the reason of the end that follows.
            if is_task
                && !is_sandbox
                && process.id.exec.is_empty()
                && machine.ran_out_of_memory().await
            {
                pod.events.send(TaskOOM {
                    container_id: process.id.container.clone(),
                    ..Default::default()
                });
            }
            // The end is announced after the start and after the output.
            process.settled().await;
            process.output_read().await;
            let stopped = State::Stopped(Exit { status, at });
            if let Err(error) = pod.transition(&process, "stop", stopped) {
                log::warn!("{}", error.chain());
                return;
            }
            if !is_task {
                // Nobody deletes it. So what the VM has on the host goes now, before the pod's
                // network namespace does.
                machine.shutdown().await;
                return;
            }
            let id = process.id.clone();
            let is_init = id.exec.is_empty();
            pod.events.send(TaskExit {
                id: if id.exec.is_empty() {
                    id.container.clone()
                } else {
                    id.exec
                },
                container_id: id.container,
                pid,
                exit_status: status,
                exited_at: Some(timestamp(at)).into(),
                ..Default::default()
            });
            // A child of an exec may go on writing, as with runc.
            if is_init {
                process.end_output().await;
            }
        });
    }

    /// Passes the guest's events on, stops the VM if its guest is dead or has broken off, and logs
    /// the VM's end.
    pub(super) fn watch_guest(self: &Arc<Self>, machine: Arc<Machine>) {
        let pod = self.clone();
        tokio::spawn(async move {
            let mut vm = machine.vm.clone();
            let lost = tokio::select! {
                _ = vm.ended() => None,
                why = pod.lose(&machine) => Some(why),
            };
            if let Some(why) = lost {
                if timeout(limits::LAST_WORDS, vm.ended()).await.is_err() {
                    machine.break_off(&why).await;
                }
            }
            let reason = describe(&vm.ended().await);
            log::info!("the VM has ended: {reason}");
            if let Some(failure) = machine.failure().await {
                pod.tally.count(Event::VmFailed(failure));
            }
            pod.record(|record| {
                record.machine_becomes(MachineState::Ended(reason));
                record.pod_becomes(PodState::Ended);
            });
            if machine.ran_out_of_memory().await {
                log::error!("the pod's cgroup ran out of memory: raise the containers' limits or the RuntimeClass' overhead");
            }
        });
    }

    /// Records what the pod's egress drops, until the VM's end. The log says so once.
    pub(super) async fn follow_denied(self: Arc<Self>, machine: Arc<Machine>) {
        let mut vm = machine.vm.clone();
        let mut before = 0;
        loop {
            tokio::select! {
                _ = vm.ended() => return,
                () = tokio::time::sleep(limits::LOOK_AT_DENIED) => {}
            }
            let frames = match machine.egress() {
                Ok(Some((_, frames))) => frames,
                Ok(None) => return,
                Err(error) => {
                    let why = error.chain();
                    log::warn!("count what the pod's egress drops: {why}");
                    return;
                }
            };
            if before == 0 && frames > 0 {
                log::info!(frames; "the pod's egress has dropped what the guest sent");
            }
            before = frames;
            self.record(|record| record.denied = Some(frames));
        }
    }

    /// Resolves with the reason when the guest is dead or has broken off. Never resolves if the
    /// guest never came up: the create reports that.
    async fn lose(self: &Arc<Self>, machine: &Arc<Machine>) -> String {
        let Ok(agent) = machine.agent().await else {
            return std::future::pending().await;
        };
        tokio::select! {
            error = self.follow_events(machine, agent) => chain(&error),
            never = open_files::keep_few(machine, agent) => match never {},
            () = overdrawn(agent) => format!(
                "its agent has left more than {} calls without an answer",
                limits::MOST_OVERDUE
            ),
            () = silence(|stepped| agent.ping(stepped)) => format!(
                "its agent has not answered {} pings in a row, each within {:?}",
                limits::PINGS_MISSED, agent.limit(limits::PING)
            ),
        }
    }

    /// Acts on the guest's events until there are no more, with a pause after each.
    async fn follow_events(self: &Arc<Self>, machine: &Arc<Machine>, agent: &Agent) -> AgentError {
        let mut told = HashMap::new();
        loop {
            match agent.next_event().await {
                Ok(event) => self.guest_event(machine, event.event, &mut told),
                Err(error) => return error,
            }
            tokio::time::sleep(limits::EVENT_PAUSE).await;
        }
    }

    /// Acts on an event of the guest. `told` records when each container was last reported to be
    /// out of memory.
    fn guest_event(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        event: Option<event::Event>,
        told: &mut HashMap<String, Instant>,
    ) {
        let containers = self.lock();
        told.retain(|id, at| containers.contains_key(id) && at.elapsed() < limits::OOM_PAUSE);
        match event {
            Some(event::Event::Oom(oom)) if containers.contains_key(&oom.container_id) => {
                if let Entry::Vacant(free) = told.entry(oom.container_id.clone()) {
                    free.insert(Instant::now());
                    self.events.send(TaskOOM {
                        container_id: oom.container_id,
                        ..Default::default()
                    });
                }
            }
            Some(event::Event::ModulesWanted(_)) => {
                let machine = machine.clone();
                tokio::spawn(async move { machine.plug_modules().await });
            }
            Some(event::Event::MemoryWanted(_)) => {
                let (pod, machine) = (self.clone(), machine.clone());
                tokio::spawn(async move { pod.grow(&machine).await });
            }
            // If the guest is honest, the event is about a container that is gone by now.
            _ => log::debug!("the guest sent an event that can't be"),
        }
    }
}

/// Resolves when [`limits::PINGS_MISSED`] pings in a row were not answered. A ping is due when some
/// time has passed, and when the host's clock was set.
async fn silence<F: Future<Output = Result<(), AgentError>>>(ping: impl Fn(bool) -> F) {
    let clock = Clock::watch().inspect_err(|error| {
        log::warn!("guests learn late that the clock was set: {error}");
    });
    let mut missed = 0;
    while missed < limits::PINGS_MISSED {
        let set = async {
            let Ok(clock) = &clock else {
                return std::future::pending().await;
            };
            clock.stepped().await.is_ok()
        };
        let stepped = timeout(limits::PING_EVERY, set).await.unwrap_or(false);
        missed = match ping(stepped).await {
            Ok(()) => 0,
            Err(_) => missed + 1,
        };
    }
}

/// Resolves when more than [`limits::MOST_OVERDUE`] calls have no answer.
async fn overdrawn(agent: &Agent) {
    while agent.overdue() <= limits::MOST_OVERDUE {
        tokio::time::sleep(limits::PING_EVERY).await;
    }
}

/// Waits for the VM's end. If the VM was stopped, its processes were killed; if it broke down,
/// their status is unknown.
async fn status_with_the_vm(machine: &Machine) -> u32 {
    match machine.vm.clone().ended().await {
        EndReason::Stopped if !machine.is_broken() => KILLED_STATUS,
        _ if machine.ran_out_of_memory().await => KILLED_STATUS,
        _ => UNKNOWN_STATUS,
    }
}

/// Waits for a process' end or the VM's end. A guest that breaks off is stopped, since it can't be
/// trusted any more.
async fn exit_status(machine: &Machine, process: &Process) -> u32 {
    let waited = async { Ok::<_, Error>(machine.agent().await?.wait(&process.id).await?) };
    let lost = tokio::select! {
        status = waited => match status {
            Ok(status) => return status,
            Err(error) => error,
        },
        status = status_with_the_vm(machine) => return status,
        () = given_up(process) => {
            log::error!(
                process = process.name();
                "not ended {:?} after SIGKILL: it counts as ended", limits::KILLED
            );
            return KILLED_STATUS;
        }
    };
    match timeout(limits::LAST_WORDS, status_with_the_vm(machine)).await {
        Ok(status) => status,
        Err(_) => {
            let name = process.name();
            let why = format!("lost sight of the process {name}: {}", lost.chain());
            machine.break_off(&why).await;
            UNKNOWN_STATUS
        }
    }
}

/// Resolves a while after an exec was killed. What keeps an exec from ending is the pod's affair,
/// but whoever waits for it must not wait on. For a container this never resolves: one that does
/// not end takes its VM with it instead, see [`Pod::kill`].
async fn given_up(process: &Process) {
    if process.id.exec.is_empty() {
        return std::future::pending().await;
    }
    process.killed().await;
    tokio::time::sleep(limits::KILLED).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn silent() -> Result<(), AgentError> {
        Err(AgentError::Silent {
            operation: "ping",
            message: String::new(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn agent_that_misses_pings_now_and_then_is_alive() {
        let count = Cell::new(0_u32);
        let asked = silence(|_| {
            count.set(count.get() + 1);
            let missed = !count.get().is_multiple_of(limits::PINGS_MISSED);
            async move {
                if missed {
                    silent()
                } else {
                    Ok(())
                }
            }
        });
        let day = std::time::Duration::from_secs(86_400);
        assert!(timeout(day, asked).await.is_err());
        assert!(count.get() > 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn agent_that_misses_three_in_a_row_is_dead() {
        let started = Instant::now();
        silence(|_| async { silent() }).await;
        let most = limits::PINGS_MISSED * (limits::PING_EVERY + limits::PING.limit);
        assert!(started.elapsed() <= most);
    }
}

//! What a pod hears of without asking: the ends of processes, the guest's events, the VM's end.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use caisson_protocol::agent::event;
use caisson_vmm::EndReason;
use containerd_shim::protos::events::task::{TaskExit, TaskOOM};

use super::{Pod, UNKNOWN_STATUS};
use crate::{
    container::Container,
    machine::Machine,
    process::{Exit, Process, State},
    stats::timestamp,
    vm::describe,
};

/// 128 and SIGKILL.
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
            // containerd takes it for the reason of the end that follows.
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
            // The end is announced after the start, and after the output.
            process.settled().await;
            process.output_read().await;
            if let Err(error) = process.transition("stop", State::Stopped(Exit { status, at })) {
                log::warn!("{}", error.chain());
                return;
            }
            if !is_task {
                // Nobody deletes it: what is the VM's on the host goes now, before the pod's network namespace does.
                machine.shutdown().await;
                return;
            }
            let id = process.id.clone();
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
        });
    }

    /// Passes the guest's events on, and logs the VM's end.
    pub(super) fn watch_guest(self: &Arc<Self>, machine: Arc<Machine>) {
        let pod = self.clone();
        let mut vm = machine.vm.clone();
        let listening = tokio::spawn({
            let machine = machine.clone();
            async move {
                let Ok(agent) = machine.agent().await else {
                    return;
                };
                loop {
                    match agent.next_event().await {
                        Ok(event) => pod.guest_event(event.event),
                        Err(error) => {
                            log::debug!("guest events end: {}", error.chain());
                            return;
                        }
                    }
                }
            }
        });
        tokio::spawn(async move {
            let reason = vm.ended().await;
            log::info!("the VM has ended: {}", describe(&reason));
            if machine.ran_out_of_memory().await {
                log::error!("the pod's cgroup ran out of memory: raise the containers' limits or the RuntimeClass' overhead");
            }
            listening.abort();
        });
    }

    fn guest_event(&self, event: Option<event::Event>) {
        match event {
            Some(event::Event::Oom(oom)) if self.lock().contains_key(&oom.container_id) => {
                self.events.send(TaskOOM {
                    container_id: oom.container_id,
                    ..Default::default()
                });
            }
            _ => log::warn!("the guest sent an event that can't be"),
        }
    }
}

/// Waits for the VM's end. What is in a VM that was stopped was killed; of one that broke down nobody knows.
async fn status_with_the_vm(machine: &Machine) -> u32 {
    match machine.vm.clone().ended().await {
        EndReason::Stopped => KILLED_STATUS,
        _ if machine.ran_out_of_memory().await => KILLED_STATUS,
        _ => UNKNOWN_STATUS,
    }
}

/// Waits for a process' end, or for the VM's. A guest that breaks off is stopped: its word is worth nothing any more.
async fn exit_status(machine: &Machine, process: &Process) -> u32 {
    let mut vm = machine.vm.clone();
    let waited = async { machine.agent().await?.wait(&process.id).await };
    tokio::select! {
        status = waited => match status {
            Ok(status) => return status,
            Err(error) => log::warn!(process = process.name(); "{}", error.chain()),
        },
        status = status_with_the_vm(machine) => return status,
    }
    if tokio::time::timeout(Duration::from_secs(2), vm.ended())
        .await
        .is_err()
    {
        log::error!(process = process.name(); "lost sight of the process, stopping the VM");
        if let Err(error) = machine.vm.stop().await {
            log::error!("stop the VM: {}", error.chain());
        }
    }
    UNKNOWN_STATUS
}

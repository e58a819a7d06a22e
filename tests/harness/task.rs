//! Uses containerd's Tasks service for what `ctr` has no commands for: wait, state, pids, update,
//! metrics.

use std::time::Duration;

use anyhow::{bail, Context, Result};
use containerd_client::{
    services::v1::{
        DeleteProcessRequest, ExecProcessRequest, GetRequest, KillRequest, ListPidsRequest,
        MetricsRequest, ResizePtyRequest, StartRequest, UpdateTaskRequest, WaitRequest,
    },
    tonic::Request,
    types::v1::{Process, Status},
    with_namespace,
};
use containerd_shim_protos::{cgroups, cgroups_v2};
use prost_types::Any;
use protobuf::Message;
use serde_json::Value;

use crate::{command, container::Container, node::LIMIT, Node};

/// The few figures of a task that both cgroup v1 and v2 have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub memory: u64,
    /// Bytes; `u64::MAX` or nearly that if there is no limit.
    pub memory_limit: u64,
    /// Nanoseconds since the start.
    pub cpu_nanos: u64,
    /// Processes and threads.
    pub pids: u64,
}

impl Container<'_> {
    /// Returns the state of the container's init.
    pub fn state(&self) -> Result<Process> {
        self.exec_state("")
    }

    /// Returns the state of an exec.
    pub fn exec_state(&self, exec_id: &str) -> Result<Process> {
        state(self.node, &self.id, exec_id)
    }

    /// Waits until an exec that was started elsewhere is running.
    pub fn wait_for_exec(&self, exec_id: &str) -> Result<()> {
        command::poll(&format!("exec {exec_id} to run"), LIMIT, || {
            let process = self.exec_state(exec_id).ok()?;
            (process.status() == Status::Running).then_some(())
        })
    }

    /// Waits for the end of the init. Returns its exit status.
    pub fn wait(&self) -> Result<u32> {
        self.wait_within(LIMIT)
    }

    /// Like [`Container::wait`], with a time limit.
    pub fn wait_within(&self, limit: Duration) -> Result<u32> {
        self.wait_exec("", limit)
    }

    /// Waits for the end of an exec (`""`: the init). Returns its exit status.
    pub fn wait_exec(&self, exec_id: &str, limit: Duration) -> Result<u32> {
        let request = WaitRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
        };
        let namespace = self.node.tag();
        self.node.call(|client| async move {
            let mut tasks = client.tasks();
            let answer = tasks.wait(with_namespace!(request, namespace));
            let answer = tokio::time::timeout(limit, answer).await;
            Ok(answer
                .context("the task has not ended in time")??
                .into_inner()
                .exit_status)
        })
    }

    /// Returns the ids of the container's processes, as the runtime numbers them.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let request = ListPidsRequest {
            container_id: self.id.clone(),
        };
        let namespace = self.node.tag();
        self.node.call(|client| async move {
            let answer = client
                .tasks()
                .list_pids(with_namespace!(request, namespace))
                .await?;
            Ok(answer
                .into_inner()
                .processes
                .iter()
                .map(|p| p.pid)
                .collect())
        })
    }

    /// Changes limits: `linux.resources` of the OCI runtime spec.
    pub fn update(&self, resources: &Value) -> Result<()> {
        let request = UpdateTaskRequest {
            container_id: self.id.clone(),
            resources: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
                value: serde_json::to_vec(resources)?,
            }),
            annotations: Default::default(),
        };
        let namespace = self.node.tag();
        self.node.call(|client| async move {
            client
                .tasks()
                .update(with_namespace!(request, namespace))
                .await?;
            Ok(())
        })
    }

    /// Adds a process without starting it: `process` of the OCI runtime spec.
    pub fn create_exec(&self, exec_id: &str, process: &Value) -> Result<()> {
        let request = ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: serde_json::to_vec(process)?,
            }),
            ..Default::default()
        };
        let namespace = self.node.tag();
        self.node.call(|client| async move {
            client
                .tasks()
                .exec(with_namespace!(request, namespace))
                .await?;
            Ok(())
        })
    }

    /// Starts an added process. Returns its pid.
    pub fn start_exec(&self, exec_id: &str) -> Result<u32> {
        let request = StartRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
        };
        let namespace = self.node.tag();
        self.node.call(|client| async move {
            Ok(client
                .tasks()
                .start(with_namespace!(request, namespace))
                .await?
                .into_inner()
                .pid)
        })
    }

    /// Removes an ended process. Returns its exit status.
    pub fn delete_exec(&self, exec_id: &str) -> Result<u32> {
        let request = DeleteProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
        };
        let namespace = self.node.tag();
        self.node.call(|client| async move {
            let answer = client
                .tasks()
                .delete_process(with_namespace!(request, namespace))
                .await?;
            Ok(answer.into_inner().exit_status)
        })
    }

    /// Sends a signal to an exec.
    pub fn kill_exec(&self, exec_id: &str, signal: u32) -> Result<()> {
        let request = KillRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
            signal,
            all: false,
        };
        let namespace = self.node.tag();
        self.node.call(|client| async move {
            client
                .tasks()
                .kill(with_namespace!(request, namespace))
                .await?;
            Ok(())
        })
    }

    /// Sets the size of a process's terminal.
    pub fn resize(&self, exec_id: &str, width: u32, height: u32) -> Result<()> {
        let request = ResizePtyRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
            width,
            height,
        };
        let namespace = self.node.tag();
        self.node.call(|client| async move {
            client
                .tasks()
                .resize_pty(with_namespace!(request, namespace))
                .await?;
            Ok(())
        })
    }

    /// Returns the task's metrics.
    pub fn metrics(&self) -> Result<Usage> {
        let request = MetricsRequest {
            filters: vec![format!("id=={}", self.id)],
        };
        let namespace = self.node.tag();
        let data = self.node.call(|client| async move {
            let answer = client
                .tasks()
                .metrics(with_namespace!(request, namespace))
                .await?;
            let metric = answer
                .into_inner()
                .metrics
                .into_iter()
                .next()
                .context("no metric")?;
            metric.data.context("metric without data")
        })?;
        usage(&data)
    }
}

/// Returns the state of a process of a task.
pub fn state(node: &Node, id: &str, exec_id: &str) -> Result<Process> {
    let request = GetRequest {
        container_id: id.into(),
        exec_id: exec_id.into(),
    };
    let namespace = node.tag();
    node.call(|client| async move {
        let answer = client
            .tasks()
            .get(with_namespace!(request, namespace))
            .await?;
        answer
            .into_inner()
            .process
            .context("no process in the answer")
    })
}

/// Returns whether a task exists and is running.
pub fn is_running(node: &Node, id: &str) -> bool {
    state(node, id, "").is_ok_and(|process| process.status() == Status::Running)
}

/// Returns whether a process has been started. Meant for a thread that has no node.
pub fn is_started(socket: &std::path::Path, namespace: &str, id: &str, exec_id: &str) -> bool {
    let request = GetRequest {
        container_id: id.into(),
        exec_id: exec_id.into(),
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return false;
    };
    runtime.block_on(async {
        let Ok(client) = containerd_client::Client::from_path(socket).await else {
            return false;
        };
        let answer = client
            .tasks()
            .get(with_namespace!(request, namespace))
            .await;
        let process = answer.ok().and_then(|answer| answer.into_inner().process);
        process.is_some_and(|process| matches!(process.status(), Status::Running | Status::Stopped))
    })
}

fn usage(data: &Any) -> Result<Usage> {
    match data.type_url.as_str() {
        "io.containerd.cgroups.v2.Metrics" => {
            let m = cgroups_v2::metrics::Metrics::parse_from_bytes(&data.value)?;
            Ok(Usage {
                memory: m.memory.usage,
                memory_limit: m.memory.usage_limit,
                cpu_nanos: m.cpu.usage_usec * 1000,
                pids: m.pids.current,
            })
        }
        "io.containerd.cgroups.v1.Metrics" => {
            let m = cgroups::metrics::Metrics::parse_from_bytes(&data.value)?;
            Ok(Usage {
                memory: m.memory.usage.usage,
                memory_limit: m.memory.usage.limit,
                cpu_nanos: m.cpu.usage.total,
                pids: m.pids.current,
            })
        }
        other => bail!("metrics of type {other}"),
    }
}

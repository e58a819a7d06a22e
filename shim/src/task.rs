//! Implements containerd's Task v2 service (api/runtime/task/v2/shim.proto): unpacks its messages
//! for the [`Pod`] and packs the answers.

use std::{future::Future, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use containerd_shim::{
    api::{
        CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
        DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
        PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
        StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status,
        UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    asynchronous::ExitSignal,
    protos::types::task::ProcessInfo,
    Task, TtrpcContext, TtrpcResult,
};

use crate::{
    error::Error,
    pod::{CreateRequest, Pod},
    process::State,
    stats::{self, timestamp},
    streams::Stdio,
};

/// The Task service of one shim.
pub struct TaskService {
    /// The pod, or the reason why the node's configuration was refused.
    pub pod: Result<Arc<Pod>, String>,
    pub exit: Arc<ExitSignal>,
}

impl TaskService {
    /// Returns the pod, or the refusal as an error.
    pub fn pod(&self) -> Result<Arc<Pod>, Error> {
        self.pod.clone().map_err(|reason| Error::Request {
            field: "configuration of the node",
            reason,
        })
    }
}

/// Finishes work that changes a pod even if containerd disconnects in the meantime: ttrpc drops the
/// futures of a connection that closes.
pub async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::Request {
            field: "request",
            reason: panic.to_string(),
        }),
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _ctx: &TtrpcContext,
        req: CreateTaskRequest,
    ) -> TtrpcResult<CreateTaskResponse> {
        log::info!(container = req.id; "create");
        let request = CreateRequest {
            id: req.id,
            bundle: PathBuf::from(req.bundle),
            rootfs: req.rootfs,
            stdio: Stdio {
                stdin: req.stdin,
                stdout: req.stdout,
                stderr: req.stderr,
                terminal: req.terminal,
            },
        };
        if !req.checkpoint.is_empty() {
            return Err(Error::Request {
                field: "checkpoint",
                reason: "restoring from a checkpoint is not supported".to_owned(),
            }
            .into());
        }
        let pod = self.pod()?;
        let created = async move {
            let created = pod.create(request).await;
            created.map_err(|error| error.of_preset(pod.preset()))
        };
        let pid = finish(created).await?;
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(&self, _ctx: &TtrpcContext, req: StartRequest) -> TtrpcResult<StartResponse> {
        log::info!(container = req.id, exec = req.exec_id; "start");
        let pod = self.pod()?;
        let pid = finish(async move { pod.start(&req.id, &req.exec_id).await }).await?;
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn state(&self, _ctx: &TtrpcContext, req: StateRequest) -> TtrpcResult<StateResponse> {
        let (process, bundle, pid) = self.pod()?.process(&req.id, &req.exec_id)?;
        let mut answer = StateResponse {
            id: req.id,
            exec_id: req.exec_id,
            bundle: bundle.display().to_string(),
            pid,
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            ..Default::default()
        };
        let status = match process.state() {
            State::Created | State::Starting => Status::CREATED,
            State::Running => Status::RUNNING,
            State::Paused => Status::PAUSED,
            State::Stopped(exit) => {
                answer.exit_status = exit.status;
                answer.exited_at = Some(timestamp(exit.at)).into();
                Status::STOPPED
            }
        };
        answer.set_status(status);
        Ok(answer)
    }

    async fn exec(&self, _ctx: &TtrpcContext, req: ExecProcessRequest) -> TtrpcResult<Empty> {
        log::info!(container = req.id, exec = req.exec_id; "exec");
        let stdio = Stdio {
            stdin: req.stdin,
            stdout: req.stdout,
            stderr: req.stderr,
            terminal: req.terminal,
        };
        let process = req.spec.into_option().ok_or_else(|| Error::Request {
            field: "spec",
            reason: "is missing".to_owned(),
        })?;
        self.pod()?
            .exec(&req.id, &req.exec_id, process.value, stdio)?;
        Ok(Empty::new())
    }

    async fn kill(&self, _ctx: &TtrpcContext, req: KillRequest) -> TtrpcResult<Empty> {
        log::info!(container = req.id, exec = req.exec_id, signal = req.signal, all = req.all; "kill");
        self.pod()?
            .kill(&req.id, &req.exec_id, req.signal, req.all)
            .await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _ctx: &TtrpcContext, req: WaitRequest) -> TtrpcResult<WaitResponse> {
        let (process, ..) = self.pod()?.process(&req.id, &req.exec_id)?;
        let exit = process.exited().await;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn delete(&self, _ctx: &TtrpcContext, req: DeleteRequest) -> TtrpcResult<DeleteResponse> {
        log::info!(container = req.id, exec = req.exec_id; "delete");
        let pod = self.pod()?;
        let (exit, pid) = finish(async move { pod.delete(&req.id, &req.exec_id).await }).await?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn pids(&self, _ctx: &TtrpcContext, req: PidsRequest) -> TtrpcResult<PidsResponse> {
        let pids = self.pod()?.pids(&req.id).await?;
        let process = |pid| ProcessInfo {
            pid,
            ..Default::default()
        };
        Ok(PidsResponse {
            processes: pids.into_iter().map(process).collect(),
            ..Default::default()
        })
    }

    async fn pause(&self, _ctx: &TtrpcContext, req: PauseRequest) -> TtrpcResult<Empty> {
        log::info!(container = req.id; "pause");
        let pod = self.pod()?;
        finish(async move { pod.pause(&req.id).await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _ctx: &TtrpcContext, req: ResumeRequest) -> TtrpcResult<Empty> {
        log::info!(container = req.id; "resume");
        let pod = self.pod()?;
        finish(async move { pod.resume(&req.id).await }).await?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _ctx: &TtrpcContext, req: ResizePtyRequest) -> TtrpcResult<Empty> {
        let pod = self.pod()?;
        pod.resize_pty(&req.id, &req.exec_id, req.width, req.height)
            .await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _ctx: &TtrpcContext, req: CloseIORequest) -> TtrpcResult<Empty> {
        if req.stdin {
            let (process, ..) = self.pod()?.process(&req.id, &req.exec_id)?;
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _ctx: &TtrpcContext, req: UpdateTaskRequest) -> TtrpcResult<Empty> {
        log::info!(container = req.id; "update");
        let resources = req.resources.into_option().unwrap_or_default();
        let resources =
            serde_json::from_slice(&resources.value).map_err(|error| Error::Request {
                field: "resources",
                reason: error.to_string(),
            })?;
        let pod = self.pod()?;
        finish(async move { pod.update(&req.id, &resources).await }).await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _ctx: &TtrpcContext, req: StatsRequest) -> TtrpcResult<StatsResponse> {
        let stats = self.pod()?.stats(&req.id).await?;
        let packed = stats::pack(&stats).map_err(|error| Error::Request {
            field: "stats",
            reason: error.to_string(),
        })?;
        Ok(StatsResponse {
            stats: Some(packed).into(),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _ctx: &TtrpcContext,
        _req: ConnectRequest,
    ) -> TtrpcResult<ConnectResponse> {
        let own = std::process::id();
        let task = self.pod.as_ref().ok().and_then(|pod| pod.pid());
        Ok(ConnectResponse {
            shim_pid: own,
            task_pid: task.unwrap_or(own),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _ctx: &TtrpcContext, req: ShutdownRequest) -> TtrpcResult<Empty> {
        if let Ok(pod) = &self.pod {
            if !pod.is_empty() && !req.now {
                return Ok(Empty::new());
            }
            pod.shutdown().await;
        }
        self.exit.signal();
        Ok(Empty::new())
    }
}

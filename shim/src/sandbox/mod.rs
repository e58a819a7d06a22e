//! containerd's Sandbox service (api/runtime/sandbox/v1/sandbox.proto), for a runtime with
//! `sandboxer = "shim"`. It unpacks the messages for the [`Pod`](crate::pod::Pod) and packs the
//! answers.
//!
//! A pod is requested with CRI's PodSandboxConfig. From it, [`spec`] makes the spec that containerd
//! itself writes for a pause container, and [`files`] writes what containerd itself lays out beside
//! it. From there on it is the sandbox of a pod like any other.

mod files;
pub mod spec;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use containerd_shim::{protos::protobuf::Message, TtrpcContext, TtrpcResult};
use containerd_shim_protos::{
    sandbox_api::{
        CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
        PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
        SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse,
        StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
        WaitSandboxRequest, WaitSandboxResponse,
    },
    sandbox_async::Sandbox,
    types::platform::Platform,
};

use serde_json::Value;

use crate::{
    cri::pod_sandbox_config::PodSandboxConfig,
    error::{Error, Result},
    pod::SandboxRequest,
    process::State,
    stats::{self, timestamp},
    task::{finish, TaskService},
};

/// The states in CRI's words, which containerd passes on.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The time for the answer to the last request to go out.
const ANSWER_TIME: Duration = Duration::from_millis(200);

/// The service of one shim.
pub struct SandboxService {
    /// The task service, which has the pod and ends the shim.
    task: Arc<TaskService>,
    created: OnceLock<Created>,
}

/// What is reported about a sandbox that was created.
struct Created {
    at: SystemTime,
    spec: Value,
}

impl SandboxService {
    /// Makes the service that goes with the task service of the same pod.
    pub fn new(task: Arc<TaskService>) -> Self {
        Self {
            task,
            created: OnceLock::new(),
        }
    }

    fn created(&self, id: &str) -> Result<&Created> {
        self.created.get().ok_or_else(|| Error::NotFound {
            what: "sandbox",
            id: id.to_owned(),
        })
    }

    /// The information that crictl shows, under the names that containerd's own sandboxer uses.
    fn info(&self, id: &str, pid: u32) -> Result<String> {
        let spec = &self.created(id)?.spec;
        Ok(serde_json::json!({"pid": pid, "runtimeSpec": spec}).to_string())
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _ctx: &TtrpcContext,
        req: CreateSandboxRequest,
    ) -> TtrpcResult<CreateSandboxResponse> {
        log::info!(sandbox = req.sandbox_id; "create sandbox");
        let config = match req.options.into_option() {
            Some(options) => PodSandboxConfig::parse_from_bytes(&options.value),
            None => Ok(PodSandboxConfig::default()),
        };
        let config = config.map_err(|error| Error::Request {
            field: "options",
            reason: format!("no PodSandboxConfig: {error}"),
        })?;
        let spec = spec::of(&req.sandbox_id, &config, &req.netns_path);
        let bundle = PathBuf::from(req.bundle_path);
        let files = files::folder(&bundle);
        files::write(&files, &config)?;
        let created = Created {
            at: SystemTime::now(),
            spec,
        };
        let request = SandboxRequest {
            id: req.sandbox_id,
            bundle,
            // Parsed from text, like the spec of a bundle. Reading it from a value would compile
            // all of that code a second time.
            spec: serde_json::from_slice(created.spec.to_string().as_bytes())
                .map_err(|error| Error::from(caisson_oci::Error::Spec(error.into())))?,
            files,
        };
        let pod = self.task.pod()?;
        let creation = async move {
            let made = pod.create_sandbox(request).await;
            made.map_err(|error| error.of_preset(pod.preset()))
        };
        finish(creation).await?;
        self.created.get_or_init(|| created);
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _ctx: &TtrpcContext,
        req: StartSandboxRequest,
    ) -> TtrpcResult<StartSandboxResponse> {
        log::info!(sandbox = req.sandbox_id; "start sandbox");
        let created = self.created(&req.sandbox_id)?.at;
        let pod = self.task.pod()?;
        let pid = finish(async move { pod.start(&req.sandbox_id, "").await }).await?;
        Ok(StartSandboxResponse {
            pid,
            created_at: Some(timestamp(created)).into(),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _ctx: &TtrpcContext,
        _req: PlatformRequest,
    ) -> TtrpcResult<PlatformResponse> {
        // Go's names, which are those of the image specification.
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            ..Default::default()
        };
        Ok(PlatformResponse {
            platform: Some(platform).into(),
            ..Default::default()
        })
    }

    /// Idempotent. Returns once the VM has ended and its own part of the pod's network namespace is
    /// gone.
    async fn stop_sandbox(
        &self,
        _ctx: &TtrpcContext,
        req: StopSandboxRequest,
    ) -> TtrpcResult<StopSandboxResponse> {
        log::info!(sandbox = req.sandbox_id; "stop sandbox");
        let pod = self.task.pod()?;
        let (process, ..) = pod.process(&req.sandbox_id, "")?;
        if !matches!(process.state(), State::Stopped(_)) {
            finish(async move {
                pod.kill(&req.sandbox_id, "", libc::SIGKILL as u32, true)
                    .await
            })
            .await?;
            process.exited().await;
        }
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _ctx: &TtrpcContext,
        req: WaitSandboxRequest,
    ) -> TtrpcResult<WaitSandboxResponse> {
        let (process, ..) = self.task.pod()?.process(&req.sandbox_id, "")?;
        let exit = process.exited().await;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _ctx: &TtrpcContext,
        req: SandboxStatusRequest,
    ) -> TtrpcResult<SandboxStatusResponse> {
        let (process, _, pid) = self.task.pod()?.process(&req.sandbox_id, "")?;
        let created = self.created(&req.sandbox_id)?.at;
        let mut answer = SandboxStatusResponse {
            pid,
            state: NOT_READY.to_owned(),
            created_at: Some(timestamp(created)).into(),
            ..Default::default()
        };
        match process.state() {
            State::Running => answer.state = READY.to_owned(),
            State::Stopped(exit) => answer.exited_at = Some(timestamp(exit.at)).into(),
            State::Created | State::Starting | State::Paused => {}
        }
        if req.verbose {
            let info = self.info(&req.sandbox_id, pid)?;
            answer.info.insert("info".to_owned(), info);
        }
        answer.sandbox_id = req.sandbox_id;
        Ok(answer)
    }

    async fn ping_sandbox(
        &self,
        _ctx: &TtrpcContext,
        req: PingRequest,
    ) -> TtrpcResult<PingResponse> {
        let (process, ..) = self.task.pod()?.process(&req.sandbox_id, "")?;
        match process.state() {
            State::Stopped(_) => Err(Error::State {
                operation: "ping",
                id: req.sandbox_id,
                state: process.state().name(),
            }
            .into()),
            _ => Ok(PingResponse::new()),
        }
    }

    async fn shutdown_sandbox(
        &self,
        _ctx: &TtrpcContext,
        req: ShutdownSandboxRequest,
    ) -> TtrpcResult<ShutdownSandboxResponse> {
        log::info!(sandbox = req.sandbox_id; "shutdown sandbox");
        if let Ok(pod) = self.task.pod() {
            finish(async move {
                pod.shutdown().await;
                Ok(())
            })
            .await?;
        }
        // When the server ends, it closes connections, answered or not, and containerd takes a
        // missing answer for a failed removal.
        let exit = self.task.exit.clone();
        tokio::spawn(async move {
            tokio::time::sleep(ANSWER_TIME).await;
            exit.signal();
        });
        Ok(ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _ctx: &TtrpcContext,
        req: SandboxMetricsRequest,
    ) -> TtrpcResult<SandboxMetricsResponse> {
        let stats = self.task.pod()?.sandbox_stats().await?;
        let packed = stats::pack(&stats).map_err(|error| Error::Request {
            field: "metrics",
            reason: error.to_string(),
        })?;
        let mut answer = SandboxMetricsResponse::new();
        let metric = answer.metrics.mut_or_insert_default();
        metric.id = req.sandbox_id;
        metric.timestamp = Some(timestamp(SystemTime::now())).into();
        metric.data = Some(packed).into();
        Ok(answer)
    }
}

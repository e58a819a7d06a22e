//! The client of the agent's service in the guest. The guest is hostile, so every call has a time
//! limit and every answer is checked.

use std::{
    collections::HashMap,
    future::Future,
    path::Path,
    pin::pin,
    sync::{
        atomic::{AtomicUsize, Ordering},
        Arc,
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use caisson_node::host::{error::FileError, random};
use caisson_oci::{exec::Exec, secrets::Descriptor, IdMap, PidNamespace, Plan};
use caisson_protocol::{
    agent::{self as proto, show_request::Source},
    agent_ttrpc::AgentClient,
};
use containerd_shim::protos::ttrpc::{
    self,
    context::Context,
    r#async::{transport::Socket, Client},
};
use tokio::{net::UnixStream, sync::oneshot, time::timeout};

use crate::{
    frames::Frames,
    guest_text::shorten,
    limits::{self, Call, Patience},
    share::Share,
    streams::Tokens,
};

/// The largest number of pids that the shim accepts in one answer.
pub const MAX_PIDS: usize = 65_536;
/// The longest text that is passed on from the guest, in bytes.
const MAX_MESSAGE: usize = 2048;

impl ProcessId {
    /// The id of a container's init.
    pub fn init(container: &str) -> Self {
        Self {
            container: container.to_owned(),
            exec: String::new(),
        }
    }
}

/// What can go wrong with a call of the agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent refused the request; its own text says why.
    #[error("OCI runtime {operation} failed: {message}")]
    Refused {
        /// `create`, `start`, `exec` …
        operation: &'static str,
        code: ttrpc::Code,
        /// Shortened, since a guest may send anything.
        message: String,
    },
    /// The agent did not answer in time, or the connection broke.
    #[error("the agent in the guest did not answer {operation}: {message}")]
    Silent {
        operation: &'static str,
        message: String,
    },
    /// The request can't be encoded.
    #[error("request: {field}: {reason}")]
    Request { field: &'static str, reason: String },
    /// The host has no randomness.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The agent of one guest. Clones share the connection.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    patience: Patience,
    overdue: Arc<AtomicUsize>,
}

/// Identifies a process by its container and exec id. An empty exec id means the container's init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessId {
    pub container: String,
    pub exec: String,
}

/// Makes one call. Takes its row in the table of limits, the client's method and the request.
macro_rules! call {
    ($self:ident, $call:ident, $method:ident, $request:expr) => {{
        let (client, request) = ($self.client.clone(), $request);
        let asked = async move { client.$method(Context::default(), &request).await };
        $self.ask(limits::$call, asked).await
    }};
}

type Result<T> = std::result::Result<T, AgentError>;

impl Agent {
    /// Creates a client on a connection to the agent's port.
    pub fn new(connection: UnixStream, patience: Patience) -> Self {
        let connection = Frames::new(connection);
        Self {
            client: AgentClient::new(Client::new(Socket::new(connection))),
            patience,
            overdue: Arc::default(),
        }
    }

    /// Returns the answer to a call, if it arrives within the call's limit.
    ///
    /// The call itself stays open until the guest answers or the connection ends, even when nobody
    /// waits for it any more: ttrpc keeps every call that has no answer, and logs a warning if
    /// nobody takes the answer in the end. (ttrpc's own limit would not count the time in which the
    /// guest does not read the request.)
    async fn ask<T: Send + 'static>(
        &self,
        call: Call,
        asked: impl Future<Output = ttrpc::Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let overdue = self.overdue.clone();
        let limit = self.patience.limit(call);
        tokio::spawn(async move {
            let mut asked = pin!(asked);
            match timeout(limit, asked.as_mut()).await {
                Ok(answer) => drop(reply.send(answer)),
                Err(_) => {
                    drop(reply);
                    overdue.fetch_add(1, Ordering::Relaxed);
                    drop(asked.await);
                    overdue.fetch_sub(1, Ordering::Relaxed);
                }
            }
        });
        match answer.await {
            Ok(answer) => answer.map_err(|error| translate(call.name, error)),
            Err(_) => Err(AgentError::Silent {
                operation: call.name,
                message: format!("no answer within {limit:?}"),
            }),
        }
    }

    /// Returns how long the answer to a call may take.
    pub fn limit(&self, call: Call) -> Duration {
        self.patience.limit(call)
    }

    /// Returns the number of calls that should have been answered by now and were not.
    pub fn overdue(&self) -> usize {
        self.overdue.load(Ordering::Relaxed)
    }

    /// Gives a new machine its identity: clock, randomness and names, and the limit of the pod's
    /// processes. Returns the guest's kernel release.
    pub async fn configure(&self, hostname: &str, max_processes: Option<u64>) -> Result<String> {
        let mut entropy = vec![0; 64];
        random::fill(&mut entropy)?;
        let mut machine_id = [0; 16];
        random::fill(&mut machine_id)?;
        let request = proto::ConfigureRequest {
            realtime_nanos: realtime_nanos(),
            entropy,
            hostname: hostname.to_owned(),
            machine_id: hex::encode(machine_id),
            max_processes: max_processes.unwrap_or(0),
            ..Default::default()
        };
        let answer = call!(self, CONFIGURE, configure, request)?;
        Ok(shorten(&answer.kernel_release, 128))
    }

    /// Sets kernel parameters of the guest, named with dots.
    pub async fn set_sysctls(&self, sysctls: HashMap<String, String>) -> Result<()> {
        if sysctls.is_empty() {
            return Ok(());
        }
        let request = proto::SetSysctlsRequest {
            sysctls,
            ..Default::default()
        };
        call!(self, SET_SYSCTLS, set_sysctls, request).map(drop)
    }

    /// Attaches a device in the guest: the guest's half of plugging it in.
    pub async fn attach(&self, device: proto::attach_request::Device) -> Result<()> {
        let request = proto::AttachRequest {
            device: Some(device),
            ..Default::default()
        };
        call!(self, ATTACH, attach, request).map(drop)
    }

    /// Detaches a device in the guest: the guest's half of unplugging it.
    pub async fn detach(&self, device: proto::detach_request::Device) -> Result<()> {
        let request = proto::DetachRequest {
            device: Some(device),
            ..Default::default()
        };
        call!(self, DETACH, detach, request).map(drop)
    }

    /// Shows what is attached at a path of a container that already exists.
    pub async fn show(&self, container: &str, source: Source, target: &Path) -> Result<()> {
        let request = show_request(container, source, target, true);
        call!(self, SHOW, show, request).map(drop)
    }

    /// Hides what [`Agent::show`] has shown. It is a success if the container has ended meanwhile.
    pub async fn hide(&self, container: &str, source: Source, target: &Path) -> Result<()> {
        let request = show_request(container, source, target, false);
        match call!(self, SHOW, show, request) {
            Err(AgentError::Refused {
                code: ttrpc::Code::NOT_FOUND | ttrpc::Code::FAILED_PRECONDITION,
                ..
            }) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Creates a container; its init waits for [`Agent::start`]. Returns the init's pid in the
    /// guest.
    pub async fn create(&self, id: &str, plan: &Plan, streams: Tokens) -> Result<u32> {
        let memory = plan.memory.iter().map(|memory| proto::Memory {
            name: memory.name.clone(),
            size_bytes: memory.size,
            owner: Some(owner(&memory.owner)).into(),
            strict: memory.strict,
            copy_of: copied(memory),
            ..Default::default()
        });
        let parts = plan.parts.iter().map(|part| proto::Part {
            name: part.name.clone(),
            whole: part.whole.display().to_string(),
            path: part.path.display().to_string(),
            folder: part.folder.as_ref().map(owner).into(),
            shared: part.shared,
            ..Default::default()
        });
        let disks = plan.disks.iter().map(|disk| proto::DiskNode {
            serial: disk.serial.clone(),
            path: disk.path.display().to_string(),
            mode: disk.mode,
            uid: disk.uid,
            gid: disk.gid,
            access: disk.access.clone(),
            ..Default::default()
        });
        let request = proto::CreateContainerRequest {
            container_id: id.to_owned(),
            spec_json: to_json("spec", &plan.spec)?,
            streams: Some(to_streams(streams, plan.terminal())).into(),
            memory: memory.collect(),
            parts: parts.collect(),
            cpu_max: plan.cpu_max.clone().unwrap_or_default(),
            disks: disks.collect(),
            guest_devices: plan.guest_devices,
            descriptors: descriptors(&plan.descriptors),
            pid_namespace: pid_namespace(&plan.pid_namespace).into(),
            pod_users: plan.pod_users.as_ref().map(users).into(),
            shared: plan
                .shared
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
            ..Default::default()
        };
        call!(self, CREATE, create_container, request).map(|made| made.pid)
    }

    /// Lets a container's init run.
    pub async fn start(&self, id: &str) -> Result<()> {
        call!(self, START, start_container, container(id)).map(drop)
    }

    /// Removes a container.
    pub async fn delete(&self, id: &str) -> Result<()> {
        call!(self, DELETE, delete_container, container(id)).map(drop)
    }

    /// Runs an additional process in a container.
    pub async fn exec(&self, id: &ProcessId, exec: &Exec, streams: Tokens) -> Result<()> {
        let request = proto::ExecRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            process_json: to_json("process", &exec.process)?,
            descriptors: descriptors(&exec.descriptors),
            streams: Some(to_streams(streams, exec.terminal())).into(),
            ..Default::default()
        };
        call!(self, EXEC, exec, request).map(drop)
    }

    /// Waits for the end of a process, without a limit. Returns its exit status, 0-255.
    pub async fn wait(&self, id: &ProcessId) -> Result<u32> {
        let request = proto::ProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            ..Default::default()
        };
        let answer = call!(self, WAIT, wait, request)?;
        Ok(answer.exit_status.min(255))
    }

    /// Sends a signal to a process or, with `all`, to every process of its container.
    pub async fn kill(&self, id: &ProcessId, signal: u32, all: bool) -> Result<()> {
        let request = proto::KillRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            signal,
            all,
            ..Default::default()
        };
        call!(self, KILL, kill, request).map(drop)
    }

    /// Sets the size of a process' terminal, in characters.
    pub async fn resize(&self, id: &ProcessId, width: u32, height: u32) -> Result<()> {
        let request = proto::ResizePtyRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            width,
            height,
            ..Default::default()
        };
        call!(self, RESIZE, resize_pty, request).map(drop)
    }

    /// Returns the pids of a container, as the guest numbers them.
    pub async fn pids(&self, id: &str) -> Result<Vec<u32>> {
        let mut pids = call!(self, LIST_PROCESSES, list_processes, container(id))?.pids;
        pids.truncate(MAX_PIDS);
        Ok(pids)
    }

    /// Freezes a container.
    pub async fn pause(&self, id: &str) -> Result<()> {
        call!(self, PAUSE, pause, container(id)).map(drop)
    }

    /// Thaws a container.
    pub async fn resume(&self, id: &str) -> Result<()> {
        call!(self, RESUME, resume, container(id)).map(drop)
    }

    /// Has the guest forget the files of shares that nothing uses.
    pub async fn forget_files(&self) -> Result<()> {
        call!(self, FORGET_FILES, forget_files, proto::Empty::new()).map(drop)
    }

    /// Changes a container's limits.
    pub async fn update(
        &self,
        id: &str,
        resources: &caisson_oci::spec::LinuxResources,
    ) -> Result<()> {
        let request = proto::UpdateRequest {
            container_id: id.to_owned(),
            resources_json: to_json("resources", resources)?,
            ..Default::default()
        };
        call!(self, UPDATE, update, request).map(drop)
    }

    /// Returns what a container uses. Waits without a limit.
    pub async fn stats(&self, id: &str) -> Result<proto::StatsResponse> {
        call!(self, STATS, stats, container(id))
    }

    /// Returns the next event of the guest. Waits without a limit.
    pub async fn next_event(&self) -> Result<proto::Event> {
        call!(self, NEXT_EVENT, next_event, proto::Empty::new())
    }

    /// Checks that the agent is alive, and tells it the time. Any answer counts, even an error.
    /// `stepped` says that the host's clock was just set.
    pub async fn ping(&self, stepped: bool) -> Result<()> {
        let request = proto::PingRequest {
            realtime_nanos: realtime_nanos(),
            stepped,
            ..Default::default()
        };
        match call!(self, PING, ping, request) {
            Ok(_) | Err(AgentError::Refused { .. }) => Ok(()),
            Err(silent) => Err(silent),
        }
    }

    /// Tells the guest to write everything out to its disks.
    pub async fn shutdown(&self) -> Result<()> {
        call!(self, SHUTDOWN, shutdown, proto::Empty::new()).map(drop)
    }
}

/// The clock, in nanoseconds since 1970.
fn realtime_nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_nanos() as u64
}

fn to_streams(tokens: Tokens, terminal: bool) -> proto::Streams {
    proto::Streams {
        stdin: tokens.stdin,
        stdout: tokens.stdout,
        stderr: tokens.stderr,
        terminal,
        ..Default::default()
    }
}

fn show_request(container: &str, source: Source, target: &Path, shown: bool) -> proto::ShowRequest {
    proto::ShowRequest {
        container_id: container.to_owned(),
        source: Some(source),
        target: target.display().to_string(),
        shown,
        ..Default::default()
    }
}

fn pid_namespace(namespace: &PidNamespace) -> Option<proto::PidNamespace> {
    let container_id = match namespace {
        PidNamespace::Own => return None,
        PidNamespace::Pod => String::new(),
        PidNamespace::Of(id) => id.clone(),
    };
    Some(proto::PidNamespace {
        container_id,
        ..Default::default()
    })
}

fn users(map: &IdMap) -> proto::Users {
    proto::Users {
        uid_map: map.uid_map(),
        gid_map: map.gid_map(),
        ..Default::default()
    }
}

fn descriptors(descriptors: &[Descriptor]) -> Vec<proto::Descriptor> {
    let descriptor = |descriptor: &Descriptor| proto::Descriptor {
        directory: descriptor.directory.display().to_string(),
        name: descriptor.name.clone(),
        origin: descriptor.origin.clone(),
        ..Default::default()
    };
    descriptors.iter().map(descriptor).collect()
}

/// Returns the path in the guest of the volume that `memory` is a copy of.
fn copied(memory: &caisson_oci::volume::Memory) -> String {
    let name = memory.copy_of.as_ref();
    let path = name.map(|name| Share::guest_volumes().join(name));
    path.unwrap_or_default().display().to_string()
}

fn owner(owner: &caisson_oci::volume::Owner) -> proto::Owner {
    proto::Owner {
        mode: owner.mode,
        uid: owner.uid,
        gid: owner.gid,
        ..Default::default()
    }
}

fn container(id: &str) -> proto::ContainerRequest {
    proto::ContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    }
}

fn to_json(field: &'static str, value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| AgentError::Request {
        field,
        reason: error.to_string(),
    })
}

fn translate(operation: &'static str, error: ttrpc::Error) -> AgentError {
    match error {
        ttrpc::Error::RpcStatus(status) => AgentError::Refused {
            operation,
            code: status.code(),
            message: shorten(&status.message, MAX_MESSAGE),
        },
        other => AgentError::Silent {
            operation,
            message: shorten(&other.to_string(), MAX_MESSAGE),
        },
    }
}

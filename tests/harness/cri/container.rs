//! A container of a pod over CRI, from CreateContainer to RemoveContainer.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    api::{
        Capability, ContainerConfig, ContainerMetadata, ContainerState, ContainerStats,
        ContainerStatsRequest, ContainerStatus, ContainerStatusRequest, CreateContainerRequest,
        ExecSyncRequest, Int64Value, KeyValue, LinuxContainerResources,
        LinuxContainerSecurityContext, Mount, RemoveContainerRequest, ReopenContainerLogRequest,
        SecurityProfile, StartContainerRequest, StopContainerRequest,
        UpdateContainerResourcesRequest,
    },
    image_spec,
    log::{self, Line},
    pod::{Pod, USERS},
    stream::Session,
    CriNode,
};
use crate::{command, node::LIMIT, Output};

/// The period of the CPU quota in microseconds, which is the kubelet's.
const CPU_PERIOD: i64 = 100_000;

static NUMBER: AtomicU32 = AtomicU32::new(1);

/// A container to be created.
#[must_use]
pub struct ContainerBuilder<'p> {
    pod: &'p Pod<'p>,
    image: String,
    config: ContainerConfig,
}

impl<'p> ContainerBuilder<'p> {
    pub(crate) fn new(pod: &'p Pod<'_>, image: &str) -> Self {
        let name = format!("c{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut config = ContainerConfig {
            log_path: format!("{name}.log"),
            metadata: Some(ContainerMetadata { name, attempt: 0 }),
            ..Default::default()
        };
        let sandbox = pod.config.linux.as_ref();
        let sandbox = sandbox.and_then(|linux| linux.security_context.as_ref());
        let linux = config.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        security.namespace_options = sandbox.and_then(|context| context.namespace_options.clone());
        linux.resources = Some(LinuxContainerResources {
            cpu_period: CPU_PERIOD,
            cpu_shares: 2,
            ..Default::default()
        });
        Self {
            pod,
            image: image.to_owned(),
            config,
        }
    }

    /// Sets the name in the pod and the number of the attempt, which a restart increases.
    pub fn named(mut self, name: &str, attempt: u32) -> Self {
        self.config.log_path = format!("{name}_{attempt}.log");
        self.config.metadata = Some(ContainerMetadata {
            name: name.into(),
            attempt,
        });
        self
    }

    /// Sets the arguments, in place of the image's.
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.config.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// Sets a line for `/bin/sh` as the command.
    pub fn sh(self, line: &str) -> Self {
        self.args(["sh", "-c", line])
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(KeyValue {
            key: key.into(),
            value: value.into(),
        });
        self
    }

    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.configure(|config| {
            config.annotations.insert(key.into(), value.into());
        })
    }

    /// Mounts a folder, file or socket of the host as a volume.
    pub fn mount(self, source: &Path, target: &str) -> Self {
        self.mount_with(source, target, |_| {})
    }

    /// Like [`ContainerBuilder::mount`], read-only.
    pub fn mount_read_only(self, source: &Path, target: &str) -> Self {
        self.mount_with(source, target, |mount| mount.readonly = true)
    }

    /// Like [`ContainerBuilder::mount`], with owners as on the node in a pod of
    /// [`super::PodBuilder::own_users`]. The kubelet does this with the volumes of such a pod.
    pub fn mount_mapped(self, source: &Path, target: &str) -> Self {
        self.mount_with(source, target, |mount| {
            mount.uid_mappings = vec![USERS];
            mount.gid_mappings = vec![USERS];
        })
    }

    /// Like [`ContainerBuilder::mount`], with the mount changed by `edit`.
    pub fn mount_with(
        mut self,
        source: &Path,
        target: &str,
        edit: impl FnOnce(&mut Mount),
    ) -> Self {
        let mut mount = Mount {
            host_path: source.display().to_string(),
            container_path: target.into(),
            ..Default::default()
        };
        edit(&mut mount);
        self.config.mounts.push(mount);
        self
    }

    pub fn memory_mib(self, mib: i64) -> Self {
        self.resources(|resources| resources.memory_limit_in_bytes = mib << 20)
    }

    /// Sets the CPU limit, in thousandths of a CPU.
    pub fn milli_cpus(self, milli: i64) -> Self {
        self.resources(|resources| resources.cpu_quota = milli * CPU_PERIOD / 1000)
    }

    pub fn resources(self, edit: impl FnOnce(&mut LinuxContainerResources)) -> Self {
        self.configure(|config| {
            let linux = config.linux.get_or_insert_default();
            edit(linux.resources.get_or_insert_default());
        })
    }

    pub fn user(self, uid: i64, gid: Option<i64>) -> Self {
        self.security(|security| {
            security.run_as_user = Some(Int64Value { value: uid });
            security.run_as_group = gid.map(|value| Int64Value { value });
        })
    }

    pub fn capabilities(self, add: &[&str], drop: &[&str]) -> Self {
        let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capability = Capability {
            add_capabilities: texts(add),
            drop_capabilities: texts(drop),
            ..Default::default()
        };
        self.security(|security| security.capabilities = Some(capability))
    }

    pub fn seccomp(self, profile: SecurityProfile) -> Self {
        self.security(|security| security.seccomp = Some(profile))
    }

    pub fn read_only_root(self) -> Self {
        self.security(|security| security.readonly_rootfs = true)
    }

    pub fn privileged(self) -> Self {
        self.security(|security| security.privileged = true)
    }

    pub fn security(self, edit: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        self.configure(|config| {
            let linux = config.linux.get_or_insert_default();
            edit(linux.security_context.get_or_insert_default());
        })
    }

    /// Gives the container a standard input that [`Container::attach`] reaches.
    pub fn stdin(mut self) -> Self {
        self.config.stdin = true;
        self
    }

    /// Gives the container a terminal.
    pub fn tty(mut self) -> Self {
        self.config.tty = true;
        self
    }

    /// Changes settings that this builder has no method for.
    pub fn configure(mut self, edit: impl FnOnce(&mut ContainerConfig)) -> Self {
        edit(&mut self.config);
        self
    }

    /// Calls CreateContainer.
    pub fn create(mut self) -> Result<Container<'p>> {
        // A full name is that of an image which the test has pulled.
        let image = if self.image.contains('/') {
            self.image
        } else {
            self.pod.node.image(&self.image)?
        };
        self.config.image = Some(image_spec(&image));
        let request = CreateContainerRequest {
            pod_sandbox_id: self.pod.id().to_owned(),
            config: Some(self.config.clone()),
            sandbox_config: Some(self.pod.config.clone()),
        };
        let answer = self
            .pod
            .node
            .runtime_call("CreateContainer", |mut cri| async move {
                cri.create_container(request).await
            })?;
        Ok(Container {
            node: self.pod.node,
            log: Path::new(&self.pod.config.log_directory).join(&self.config.log_path),
            tty: self.config.tty,
            stdin: self.config.stdin,
            pod: self.pod,
            id: answer.container_id,
        })
    }

    /// Calls CreateContainer and StartContainer.
    pub fn start(self) -> Result<Container<'p>> {
        let container = self.create()?;
        container.start()?;
        Ok(container)
    }

    /// Starts the container, waits for its end and removes it. Returns its exit code and output.
    pub fn run(self) -> Result<Output> {
        self.run_within(LIMIT)
    }

    /// Like [`ContainerBuilder::run`], for containers that take longer than others in the tests.
    pub fn run_within(self, limit: Duration) -> Result<Output> {
        let container = self.start()?;
        let status = container.wait_within(limit)?;
        let output = Output {
            code: status.exit_code,
            stdout: container.stdout()?.into_bytes(),
            stderr: container.stderr()?.into_bytes(),
        };
        container.remove()?;
        Ok(output)
    }
}

/// A created container. Dropping it removes it.
pub struct Container<'p> {
    node: &'p CriNode,
    /// The lifetime ensures that a container never outlives its pod.
    pod: &'p Pod<'p>,
    id: String,
    log: PathBuf,
    tty: bool,
    stdin: bool,
}

impl<'p> Container<'p> {
    /// Returns the pod of this container.
    pub fn pod(&self) -> &'p Pod<'p> {
        self.pod
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Calls StartContainer.
    pub fn start(&self) -> Result<()> {
        let request = StartContainerRequest {
            container_id: self.id.clone(),
        };
        self.node
            .runtime_call("StartContainer", |mut cri| async move {
                cri.start_container(request).await
            })
            .map(drop)
    }

    pub fn status(&self) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: false,
        };
        let answer = self
            .node
            .runtime_call("ContainerStatus", |mut cri| async move {
                cri.container_status(request).await
            })?;
        answer.status.context("no status in the answer")
    }

    /// Waits until the container has ended. Returns its status then.
    pub fn wait(&self) -> Result<ContainerStatus> {
        self.wait_within(LIMIT)
    }

    /// Like [`Container::wait`], for containers that take longer than others in the tests.
    pub fn wait_within(&self, limit: Duration) -> Result<ContainerStatus> {
        let what = format!("the end of container {}", self.id);
        command::poll(&what, limit, || {
            let status = self.status().ok()?;
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
    }

    /// Calls ExecSync: a further process, run to its end.
    pub fn exec<I, S>(&self, args: I) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.exec_within(args, LIMIT)
    }

    /// Like [`Container::exec`], with CRI's own time limit, which probes have.
    pub fn exec_within<I, S>(&self, args: I, limit: Duration) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: args.into_iter().map(Into::into).collect(),
            timeout: i64::try_from(limit.as_secs())?,
        };
        let answer =
            self.node.runtime_call(
                "ExecSync",
                |mut cri| async move { cri.exec_sync(request).await },
            )?;
        Ok(Output {
            code: answer.exit_code,
            stdout: answer.stdout,
            stderr: answer.stderr,
        })
    }

    /// Runs a line of `/bin/sh` in the container. Returns its output if it exits with 0.
    pub fn sh(&self, line: &str) -> Result<String> {
        let output = self.exec(["sh", "-c", line])?;
        Ok(output.ok().with_context(|| line.to_owned())?.line())
    }

    /// Calls Exec: a further process with its streams connected.
    pub fn exec_streams<I, S>(&self, args: I, tty: bool) -> Result<Session>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let args = args.into_iter().map(Into::into).collect();
        Session::exec(self.node, &self.id, args, tty)
    }

    /// Calls Attach: the streams of the container's init.
    pub fn attach(&self) -> Result<Session> {
        Session::attach(self.node, &self.id, self.stdin, self.tty)
    }

    /// Returns what the container has written so far, in CRI's log format.
    pub fn logs(&self) -> Result<Vec<Line>> {
        log::read(&self.log)
    }

    /// Returns standard output from the log.
    pub fn stdout(&self) -> Result<String> {
        Ok(log::text(&self.logs()?, "stdout"))
    }

    /// Returns standard error from the log.
    pub fn stderr(&self) -> Result<String> {
        Ok(log::text(&self.logs()?, "stderr"))
    }

    /// Waits until the container has written a text to its standard output.
    pub fn wait_for_output(&self, text: &str) -> Result<()> {
        let mut last = String::new();
        command::poll(&format!("{text:?} in the log"), LIMIT, || {
            last = self.stdout().ok()?;
            last.contains(text).then_some(())
        })
        .with_context(|| format!("log: {last}"))
    }

    /// Returns the path of the log file.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Calls ReopenContainerLog, as after a rotation.
    pub fn reopen_log(&self) -> Result<()> {
        let request = ReopenContainerLogRequest {
            container_id: self.id.clone(),
        };
        self.node
            .runtime_call("ReopenContainerLog", |mut cri| async move {
                cri.reopen_container_log(request).await
            })
            .map(drop)
    }

    pub fn stats(&self) -> Result<ContainerStats> {
        let request = ContainerStatsRequest {
            container_id: self.id.clone(),
        };
        let answer = self
            .node
            .runtime_call("ContainerStats", |mut cri| async move {
                cri.container_stats(request).await
            })?;
        answer.stats.context("no stats in the answer")
    }

    /// Calls UpdateContainerResources, as an in-place resize of the pod does.
    pub fn update(&self, resources: LinuxContainerResources) -> Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(resources),
            ..Default::default()
        };
        self.node
            .runtime_call("UpdateContainerResources", |mut cri| async move {
                cri.update_container_resources(request).await
            })
            .map(drop)
    }

    /// Calls StopContainer: SIGTERM, and SIGKILL if the container still exists after `grace`.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        let request = StopContainerRequest {
            container_id: self.id.clone(),
            timeout: i64::try_from(grace.as_secs())?,
        };
        self.node
            .runtime_call("StopContainer", |mut cri| async move {
                cri.stop_container(request).await
            })
            .map(drop)
    }

    /// Calls RemoveContainer, which ends the container first if it is running.
    pub fn remove(&self) -> Result<()> {
        let request = RemoveContainerRequest {
            container_id: self.id.clone(),
        };
        self.node
            .runtime_call("RemoveContainer", |mut cri| async move {
                cri.remove_container(request).await
            })
            .map(drop)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

//! Builds `ctr run` command lines and controls the running containers.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{bail, Context, Result};
use containerd_client::{
    services::v1::{GetContainerRequest, UpdateContainerRequest},
    tonic::Request,
    with_namespace,
};
use prost_types::FieldMask;
use serde_json::Value;

use crate::{
    command::{self, Output, Running, Stdin},
    exec::ExecBuilder,
    gvisor, leftovers,
    node::LIMIT,
    Node,
};

/// The shim that runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Caisson's shim.
    Caisson,
    /// containerd's own shim, for comparison.
    Runc,
    /// gVisor's, for the bench. It is there after `cargo xtask test-tools --gvisor`.
    Gvisor,
}

impl Runtime {
    /// Returns the name by which containerd finds the shim.
    pub fn name(self) -> &'static str {
        match self {
            Self::Caisson => "io.containerd.caisson.v2",
            Self::Runc => "io.containerd.runc.v2",
            Self::Gvisor => "io.containerd.runsc.v1",
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A container to be run.
#[must_use]
pub struct ContainerBuilder<'n> {
    node: &'n Node,
    id: String,
    image: String,
    runtime: Runtime,
    flags: Vec<String>,
    args: Vec<String>,
    stdin: Option<Vec<u8>>,
    log: Option<String>,
    hooks: Option<Value>,
    limit: Duration,
}

impl<'n> ContainerBuilder<'n> {
    pub(crate) fn new(node: &'n Node, image: &str) -> Self {
        Self {
            node,
            id: node.next_id(),
            image: image.to_owned(),
            runtime: Runtime::Caisson,
            flags: Vec::new(),
            args: Vec::new(),
            stdin: None,
            log: None,
            hooks: None,
            limit: LIMIT,
        }
    }

    /// Selects the shim. The default is Caisson's.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Sets the command, in place of the image's.
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// Sets a line for `/bin/sh` as the command.
    pub fn sh(self, line: &str) -> Self {
        self.args(["sh", "-c", line])
    }

    /// Adds a flag of `ctr run` with its value.
    pub fn flag(mut self, flag: &str, value: impl fmt::Display) -> Self {
        self.flags.extend([flag.to_owned(), value.to_string()]);
        self
    }

    /// Adds a flag of `ctr run` without a value.
    pub fn switch(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Sets the container's memory limit.
    pub fn memory_mib(self, mib: u64) -> Self {
        self.flag("--memory-limit", mib * 1024 * 1024)
    }

    /// Sets the container's CPU limit.
    pub fn cpus(self, cpus: u32) -> Self {
        self.flag("--cpus", cpus)
    }

    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.flag("--annotation", format!("{key}={value}"))
    }

    /// Adds a bind mount of a host directory.
    pub fn bind(self, source: &std::path::Path, target: &str, options: &str) -> Self {
        let source = source.display();
        self.flag(
            "--mount",
            format!("type=bind,src={source},dst={target},options={options}"),
        )
    }

    /// Sets the bytes for the command's standard input, which is closed after them.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Sets where a started container's output goes: `file:///…` or `binary:///…`. The default is
    /// nowhere.
    pub fn log_uri(mut self, uri: &str) -> Self {
        self.log = Some(uri.to_owned());
        self
    }

    /// Sets the spec's `hooks`, for which `ctr` has no flag. They go for
    /// [`ContainerBuilder::start`].
    pub fn hooks(mut self, hooks: Value) -> Self {
        self.hooks = Some(hooks);
        self
    }

    /// Sets how long [`ContainerBuilder::run`] may take.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Returns the id that the container will have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs the container to its end and removes it: `ctr run --rm`.
    pub fn run(self) -> Result<Output> {
        let limit = self.limit;
        if self.runtime == Runtime::Runc && self.stdin.is_none() {
            let run = || command::run(&mut self.foreground()?, None, limit);
            let output = run()?;
            // `ctr` loses the output of a container that ends before it has opened the pipes
            // (containerd, client/task.go: `Delete` cancels that). With runc, that is soon enough.
            return match output.code == 0 && output.is_silent() {
                true => run(),
                false => Ok(output),
            };
        }
        self.spawn()?.finish(limit)
    }

    /// Starts `ctr run --rm`, which keeps running beside the test.
    pub fn spawn(mut self) -> Result<Running> {
        let stdin = self.stdin.take();
        let mut ctr = self.command(&["run", "--rm"])?;
        let stdin = stdin.map(|bytes| Stdin::for_process(bytes, self.node, &self.id, ""));
        command::spawn(&mut ctr, stdin)
    }

    /// Returns a `ctr run --rm` command for a test that starts it with a terminal or pipes of its
    /// own.
    pub fn foreground(&self) -> Result<Command> {
        self.command(&["run", "--rm"])
    }

    /// Starts the container and leaves it running: `ctr run --detach`.
    pub fn start(self) -> Result<Container<'n>> {
        let mut ctr = match (&self.log, &self.hooks) {
            (Some(uri), _) => self.command(&["run", "--detach", "--log-uri", uri])?,
            (None, None) => self.command(&["run", "--detach", "--null-io"])?,
            (None, Some(hooks)) => {
                command::run(&mut self.command(&["container", "create"])?, None, LIMIT)?.ok()?;
                set_hooks(self.node, &self.id, hooks.clone())?;
                let mut ctr = self.node.ctr_command();
                ctr.args(["task", "start", "--detach", "--null-io", &self.id]);
                ctr
            }
        };
        let container = Container {
            node: self.node,
            id: self.id.clone(),
            execs: 1.into(),
        };
        let output = command::run(&mut ctr, None, self.limit)?;
        output
            .ok()
            .with_context(|| format!("start {}", container.id))?;
        Ok(container)
    }

    fn command(&self, how: &[&str]) -> Result<Command> {
        let image = self.node.image(&self.image)?;
        let mut ctr = self.node.ctr_command();
        ctr.args(how).args(["--runtime", self.runtime.name()]);
        if self.runtime == Runtime::Gvisor {
            // Its shim gives streams of its own only to what CRI calls a sandbox.
            ctr.args(["--annotation", "io.kubernetes.cri.container-type=sandbox"])
                .arg("--runtime-config-path")
                .arg(gvisor::config_file(self.node.dir()));
        }
        ctr.args(&self.flags)
            .arg(image)
            .arg(&self.id)
            .args(&self.args);
        Ok(ctr)
    }
}

/// Writes hooks into the spec of a container that has no task yet.
fn set_hooks(node: &Node, id: &str, hooks: Value) -> Result<()> {
    let (id, namespace) = (id.to_owned(), node.tag());
    node.call(|client| async move {
        let mut containers = client.containers();
        let request = GetContainerRequest { id };
        let got = containers.get(with_namespace!(request, namespace)).await?;
        let mut container = got.into_inner().container.context("no container")?;
        let spec = container
            .spec
            .as_mut()
            .context("a container without a spec")?;
        let mut json: Value = serde_json::from_slice(&spec.value)?;
        json["hooks"] = hooks;
        spec.value = serde_json::to_vec(&json)?;
        let request = UpdateContainerRequest {
            container: Some(container),
            update_mask: Some(FieldMask {
                paths: vec!["spec".to_owned()],
            }),
        };
        containers
            .update(with_namespace!(request, namespace))
            .await?;
        Ok(())
    })
}

/// A started container. Dropping it kills and removes it, so that a failed test leaves nothing
/// behind.
pub struct Container<'n> {
    pub(crate) node: &'n Node,
    pub(crate) id: String,
    execs: std::sync::atomic::AtomicU32,
}

impl<'n> Container<'n> {
    /// Takes over a container that was not made by [`ContainerBuilder::start`].
    pub fn adopt(node: &'n Node, id: &str) -> Self {
        Self {
            node,
            id: id.to_owned(),
            execs: 1.into(),
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn node(&self) -> &'n Node {
        self.node
    }

    /// Runs a further process in the container to its end.
    pub fn exec<I, S>(&self, args: I) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.process(args).run()
    }

    /// Runs a line of `/bin/sh` in the container. Returns its output if it exits with 0.
    pub fn sh(&self, line: &str) -> Result<String> {
        Ok(self
            .exec(["sh", "-c", line])?
            .ok()
            .with_context(|| line.to_owned())?
            .line())
    }

    /// Returns by how many seconds the container's clock is ahead of the host's, by busybox.
    ///
    /// The host's is taken before and after: 0 if the container's is between the two.
    pub fn clock_off(&self) -> Result<f64> {
        let host = || Ok::<_, anyhow::Error>(SystemTime::now().duration_since(UNIX_EPOCH)?);
        let before = host()?.as_secs_f64();
        let said = self.sh("adjtimex | grep time.tv_")?;
        let after = host()?.as_secs_f64();
        let numbers = said.lines().map(|line| {
            let number = line.split_whitespace().nth(1).context("no number")?;
            Ok(number.parse::<f64>()?)
        });
        let numbers: Vec<f64> = numbers.collect::<Result<_>>().context(said)?;
        let [seconds, microseconds] = numbers[..] else {
            bail!("adjtimex says {numbers:?}");
        };
        let own = seconds + microseconds / 1e6;
        Ok(match own {
            own if own < before => own - before,
            own if own > after => own - after,
            _ => 0.0,
        })
    }

    /// Begins building a further process.
    pub fn process<I, S>(&self, args: I) -> ExecBuilder<'_>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let number = self
            .execs
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        ExecBuilder::new(self, format!("e{number}"), args)
    }

    /// Sends a signal to the container's init.
    pub fn kill(&self, signal: &str) -> Result<()> {
        self.ctr(&["tasks", "kill", "--signal", signal, &self.id])
    }

    /// Sends a signal to every process of the container.
    pub fn kill_all(&self, signal: &str) -> Result<()> {
        self.ctr(&["tasks", "kill", "--all", "--signal", signal, &self.id])
    }

    pub fn pause(&self) -> Result<()> {
        self.ctr(&["tasks", "pause", &self.id])
    }

    pub fn resume(&self) -> Result<()> {
        self.ctr(&["tasks", "resume", &self.id])
    }

    /// Removes the ended task, then the container.
    pub fn delete(&self) -> Result<()> {
        // `ctr` repeats the task's exit code as its own, so success is judged by whether the task
        // is gone.
        let output = self.node.ctr(["tasks", "delete", &self.id])?;
        anyhow::ensure!(
            self.state().is_err(),
            "delete {}: {}",
            self.id,
            output.errors()
        );
        self.remove()
    }

    /// Removes a container whose task is gone.
    pub fn remove(&self) -> Result<()> {
        self.ctr(&["containers", "delete", &self.id])
    }

    /// Returns the pid of the VMM, whichever hypervisor it is.
    pub fn vmm(&self) -> Result<u32> {
        vmm(&self.state_dir())
    }

    /// Returns the pid of a host process of the VM by its role as in the state folder: `qemu`,
    /// `vsock`, `virtiofsd-…`.
    pub fn vm_process(&self, role: &str) -> Result<u32> {
        let processes = self.vm_processes()?;
        let found = processes.iter().find(|(name, _)| name.starts_with(role));
        Ok(found
            .with_context(|| format!("no {role} among {processes:?}"))?
            .1)
    }

    /// Returns all host processes of the VM: role and pid.
    pub fn vm_processes(&self) -> Result<Vec<(String, u32)>> {
        vm_processes(&self.state_dir())
    }

    /// Returns the shim's pid.
    pub fn shim(&self) -> Result<u32> {
        shim(self.node, &self.id)
    }

    /// Returns Caisson's folder for this container, which exists while the container runs.
    pub fn state_dir(&self) -> PathBuf {
        self.node.state_dir().join(&self.id)
    }

    fn ctr(&self, args: &[&str]) -> Result<()> {
        self.node
            .ctr(args)?
            .ok()
            .map(drop)
            .with_context(|| args.join(" "))
    }
}

/// Returns the pid of the VMM of a VM: the first process that its state folder lists.
pub fn vmm(state_dir: &Path) -> Result<u32> {
    let processes = vm_processes(state_dir)?;
    let (_, pid) = processes
        .first()
        .context("no process of a VM is recorded")?;
    Ok(*pid)
}

/// Returns the host processes of a VM that its state folder lists: role and pid.
pub fn vm_processes(state_dir: &Path) -> Result<Vec<(String, u32)>> {
    let path = state_dir.join("pids");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let process = |line: &str| {
        let mut fields = line.split(' ');
        let pid = fields.next()?.parse().ok()?;
        Some((fields.nth(1)?.to_owned(), pid))
    };
    Ok(text.lines().filter_map(process).collect())
}

/// Returns the pid of the shim that serves an id. One of Caisson may have been started for the
/// pool; its pod's state folder names it.
pub fn shim(node: &Node, id: &str) -> Result<u32> {
    if let Ok(text) = std::fs::read_to_string(node.state_dir().join(id).join("shim.pid")) {
        return Ok(text.split(' ').next().context("no pid")?.parse()?);
    }
    let shims = leftovers::processes(id);
    let shim = shims
        .iter()
        .find(|process| process.command.contains("containerd-shim-"));
    Ok(shim.context("no shim")?.pid)
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.node.ctr(["tasks", "delete", "--force", &self.id]);
        let _ = self.node.ctr(["containers", "delete", &self.id]);
    }
}

//! Runs the hooks of a bundle on the host, as [`caisson_oci::Hooks`] has them.
//!
//! A hook is told the container's state on its stdin (OCI runtime spec, runtime.md, "State"). The
//! pid in it is the container's [`StandIn`](crate::stand_in::StandIn), which is in the container's
//! network namespace: that is where a hook brings the network to.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use caisson_node::host::{
    chain::chain,
    error::{FileError, OnFile},
};
use caisson_oci::{spec::Hook, Hooks};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::guest_text::shorten;

/// The file in the bundle that is there while the hooks after the container's end have to be run:
/// by the shim, or by containerd's `delete` if the shim is gone.
const OWED: &str = "poststop";
/// How much of what a failed hook wrote to stderr its error has, in bytes.
const MAX_OUTPUT: usize = 1000;

/// A hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be run.
    #[error("run the hook {}", path.display())]
    Run {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// It ended with a failure.
    #[error("the hook {}: {status}: {output}", path.display())]
    Failed {
        path: PathBuf,
        status: ExitStatus,
        output: String,
    },
    /// It took longer than the spec allows.
    #[error("the hook {} took longer than its timeout of {} s", path.display(), limit.as_secs())]
    Timeout { path: PathBuf, limit: Duration },
    /// An operation on a file of the host failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The hooks of one container, with what they are told.
#[derive(Debug, Clone, Default)]
pub struct HostHooks {
    hooks: Hooks,
    id: String,
    bundle: PathBuf,
}

impl HostHooks {
    /// Makes the hooks of the container with this id and bundle.
    pub fn new(hooks: Hooks, id: &str, bundle: &Path) -> Self {
        Self {
            hooks,
            id: id.to_owned(),
            bundle: bundle.to_owned(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// Runs those that come before the container is created. The first failure ends this.
    pub async fn create(&self, pid: u32) -> Result<(), HookError> {
        if !self.hooks.stopped.is_empty() {
            let owed = self.bundle.join(OWED);
            std::fs::write(&owed, "").map_err(HookError::file("write", owed))?;
        }
        for hook in &self.hooks.create {
            self.run(hook, "creating", Some(pid)).await?;
        }
        Ok(())
    }

    /// Runs those that come after the container's start. A failure is logged, as the spec says.
    pub async fn started(&self, pid: u32) {
        self.run_all(&self.hooks.started, "running", Some(pid))
            .await;
    }

    /// Runs those that come after the container's end, unless that was done. A failure is logged,
    /// as the spec says.
    pub async fn stopped(&self) {
        let owed = self.bundle.join(OWED);
        if owed.exists() {
            self.run_all(&self.hooks.stopped, "stopped", None).await;
            let _ = std::fs::remove_file(owed);
        }
    }

    async fn run_all(&self, hooks: &[Hook], status: &str, pid: Option<u32>) {
        for hook in hooks {
            if let Err(error) = self.run(hook, status, pid).await {
                log::warn!(container = self.id; "{}", chain(&error));
            }
        }
    }

    async fn run(&self, hook: &Hook, status: &str, pid: Option<u32>) -> Result<(), HookError> {
        let path = hook.path();
        let mut state = serde_json::json!({
            "ociVersion": self.hooks.version,
            "id": self.id,
            "status": status,
            "bundle": self.bundle,
            "annotations": self.hooks.annotations,
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        let ran = self.output(hook, state.to_string());
        let limit = hook
            .timeout()
            .and_then(|seconds| u64::try_from(seconds).ok());
        let ran = match limit.map(Duration::from_secs) {
            None => ran.await,
            Some(limit) => match tokio::time::timeout(limit, ran).await {
                Ok(ran) => ran,
                Err(_) => {
                    return Err(HookError::Timeout {
                        path: path.clone(),
                        limit,
                    })
                }
            },
        };
        let output = ran.map_err(|source| HookError::Run {
            path: path.clone(),
            source,
        })?;
        match output.status.success() {
            true => Ok(()),
            false => Err(HookError::Failed {
                path: path.clone(),
                status: output.status,
                output: shorten(String::from_utf8_lossy(&output.stderr).trim(), MAX_OUTPUT),
            }),
        }
    }

    /// Runs a hook to its end. If nobody waits any more, it is killed.
    async fn output(&self, hook: &Hook, state: String) -> std::io::Result<std::process::Output> {
        let mut command = Command::new(hook.path());
        if let Some((name, arguments)) = hook.args().as_ref().and_then(|all| all.split_first()) {
            command.arg0(name).args(arguments);
        }
        let variables = hook.env().iter().flatten();
        let mut child = command
            .env_clear()
            .envs(variables.filter_map(|variable| variable.split_once('=')))
            .current_dir(&self.bundle)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A hook need not read it.
            let _ = stdin.write_all(state.as_bytes()).await;
        }
        child.wait_with_output().await
    }
}

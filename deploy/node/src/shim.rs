//! Starts a shim and calls it as containerd does (containerd, docs: runtime v2).
//!
//! ```text
//! `start` in the bundle --> address on stdout --> Task service by ttrpc --> Shutdown --> `delete`
//!          its events go to a service of this module, which accepts and drops them
//! ```

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use async_trait::async_trait;
pub use caisson_node::config::PROGRAM;
use caisson_node::host::program;
use containerd_shim_protos::{
    api::{Empty, ForwardRequest},
    shim_async::{create_events, Client, Events, TaskClient},
    ttrpc::{
        self, context,
        r#async::{Server, TtrpcContext},
    },
};
use tokio::process::Command;

/// The name in the bundle that the shim is given as containerd's socket. No such socket exists; the
/// shim names its own socket after it.
pub const CONTAINERD: &str = "containerd.sock";

/// How long `start` may take, and how long `delete` may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What a shim is given when it starts.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The shim's program.
    pub program: PathBuf,
    /// The folder with config.json, which is the shim's working directory.
    pub bundle: PathBuf,
    pub namespace: String,
    pub id: String,
    /// The configuration file, where it is not the one that the environment names.
    pub config: Option<PathBuf>,
}

/// A running shim.
pub struct Shim {
    launch: Launch,
    /// containerd's Task service.
    pub tasks: TaskClient,
    events: Server,
}

impl Launch {
    /// Returns the path of the shim beside this program, or else its name, to be found in `PATH`.
    pub fn program() -> PathBuf {
        program::beside(PROGRAM)
    }

    /// Starts the shim and connects to it.
    pub async fn start(self) -> Result<Shim> {
        let mut events = self.serve_events().await?;
        match self.connect().await {
            Ok(tasks) => Ok(Shim {
                launch: self,
                tasks,
                events,
            }),
            Err(error) => {
                events.shutdown().await?;
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<TaskClient> {
        // The shim's log. containerd makes a FIFO; without any file the shim fails.
        let log = self.bundle.join("log");
        if !log.exists() {
            std::fs::write(log, "").context("make the shim's log")?;
        }
        let output = self.call("start").await?;
        let address = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let client = Client::connect(&address).await;
        Ok(TaskClient::new(
            client.with_context(|| format!("connect shim at {address}"))?,
        ))
    }

    async fn call(&self, action: &str) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command
            .args(["-namespace", &self.namespace, "-id", &self.id])
            .arg("-address")
            .arg(self.bundle.join(CONTAINERD))
            .args(["-publish-binary", "/bin/true"])
            .arg("-bundle")
            .arg(&self.bundle)
            .arg(action)
            .current_dir(&self.bundle)
            .env("TTRPC_ADDRESS", self.events_socket())
            .stdin(Stdio::null())
            // As containerd does: Ctrl-C on a terminal is meant for this process, not for the shim
            // and its VM.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(config) = &self.config {
            command.env(caisson_node::config::CONFIG_ENV, config);
        }
        let output = tokio::time::timeout(LIMIT, command.output()).await;
        let output = output.with_context(|| format!("{PROGRAM} {action}: not within {LIMIT:?}"))?;
        let output = output.with_context(|| format!("start {}", self.program.display()))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{PROGRAM} {action}: {}",
            errors.trim()
        );
        Ok(output)
    }

    fn events_socket(&self) -> PathBuf {
        self.bundle.join("events.sock")
    }

    async fn serve_events(&self) -> Result<Server> {
        let address = format!("unix://{}", self.events_socket().display());
        let server = Server::new()
            .bind(&address)
            .with_context(|| format!("bind {address}"))?;
        let mut server = server.register_service(create_events(Arc::new(Forgetful)));
        server.start().await.context("serve the shim's events")?;
        Ok(server)
    }
}

impl Shim {
    /// Returns what the shim logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.launch.bundle.join("log")).unwrap_or_default()
    }

    /// Returns the folder that the shim was started in.
    pub fn bundle(&self) -> &Path {
        &self.launch.bundle
    }

    /// Ends the shim, then has its `delete` clean up what is left. To be called also where a call
    /// failed or the shim is dead.
    pub async fn end(mut self) -> Result<()> {
        let request = containerd_shim_protos::api::ShutdownRequest {
            id: self.launch.id.clone(),
            now: true,
            ..Default::default()
        };
        // A shim that is gone does not answer, and a shim that is ending does not always answer.
        let _ = self.tasks.shutdown(within(LIMIT), &request).await;
        let deleted = self.launch.call("delete").await;
        self.events
            .shutdown()
            .await
            .context("end the events' service")?;
        deleted.map(drop)
    }
}

/// Returns the context of a request that has to be answered within `limit`.
pub fn within(limit: Duration) -> context::Context {
    context::with_duration(limit)
}

/// Returns the context of a request without a time limit.
pub fn patient() -> context::Context {
    context::Context::default()
}

/// Accepts all events and keeps none, since nothing reads them.
struct Forgetful;

#[async_trait]
impl Events for Forgetful {
    async fn forward(&self, _: &TtrpcContext, _: ForwardRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }
}

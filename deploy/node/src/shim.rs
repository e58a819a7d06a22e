//! A shim, started and spoken to as containerd does it (containerd, docs: runtime v2).
//!
//! ```text
//! `start` in the bundle --> address on stdout --> Task service over ttrpc --> Shutdown --> `delete`
//!          its events go to a service of ours, which takes and forgets them
//! ```

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{ensure, Context, Result};
use async_trait::async_trait;
use containerd_shim_protos::{
    api::{Empty, ForwardRequest},
    shim_async::{create_events, Client, Events, TaskClient},
    ttrpc::{
        self, context,
        r#async::{Server, TtrpcContext},
    },
};
use tokio::process::Command;

/// The shim's program, as containerd looks for it.
pub const PROGRAM: &str = "containerd-shim-caisson-v2";

/// What the shim is told to be containerd's socket, in the bundle; there is none. Its own socket is named after it.
pub const CONTAINERD: &str = "containerd.sock";

/// How long `start`, and how long `delete` may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What a shim is told at its start.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The shim's program.
    pub program: PathBuf,
    /// Folder with config.json; the shim's working directory.
    pub bundle: PathBuf,
    pub namespace: String,
    pub id: String,
    /// The configuration file, where it is not the one of the environment.
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
    /// The shim beside this program, or the one of `PATH`.
    pub fn program() -> PathBuf {
        let beside = std::env::current_exe().map(|own| own.with_file_name(PROGRAM));
        beside
            .ok()
            .filter(|path| path.exists())
            .unwrap_or_else(|| PROGRAM.into())
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
        // The shim's log: containerd makes a FIFO, and without any the shim fails.
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
            // As containerd does: Ctrl-C on a terminal is for this process, not for the shim and its VM.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(config) = &self.config {
            command.env(caisson_shim::config::CONFIG_ENV, config);
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
    /// What the shim logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.launch.bundle.join("log")).unwrap_or_default()
    }

    /// The folder that the shim was started in.
    pub fn bundle(&self) -> &Path {
        &self.launch.bundle
    }

    /// Ends the shim, then has it clean up what is left. Also where a call failed or the shim is dead.
    pub async fn end(mut self) -> Result<()> {
        let request = containerd_shim_protos::api::ShutdownRequest {
            id: self.launch.id.clone(),
            now: true,
            ..Default::default()
        };
        // A shim that is gone does not answer, and one that ends does not always.
        let _ = self.tasks.shutdown(within(LIMIT), &request).await;
        let deleted = self.launch.call("delete").await;
        self.events
            .shutdown()
            .await
            .context("end the events' service")?;
        deleted.map(drop)
    }
}

/// A request that has to be answered within a time.
pub fn within(limit: Duration) -> context::Context {
    context::with_duration(limit)
}

/// A request that may take as long as it takes.
pub fn patient() -> context::Context {
    context::Context::default()
}

/// Takes all events and keeps none: nobody listens.
struct Forgetful;

#[async_trait]
impl Events for Forgetful {
    async fn forward(&self, _: &TtrpcContext, _: ForwardRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }
}

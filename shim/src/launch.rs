//! The shim's life as containerd knows it: `start` spawns the serving process, `delete` cleans up after a dead one.

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use caisson_oci::NodeConfig;
use containerd_shim::{
    api::DeleteResponse,
    asynchronous::{spawn, util::write_str_to_file, ExitSignal, Shim},
    publisher::RemotePublisher,
    Config, Flags, StartOpts,
};

use crate::{
    accelerator, config, events::Events, pod::Pod, state, stats::timestamp, task::TaskService,
};

/// The exit status that `delete` reports for a task whose shim died: as killed.
const KILLED: u32 = 137;

/// In the bundle, which is the working directory: the address of the serving shim's socket.
const ADDRESS_FILE: &str = "address";

/// One invocation of the shim.
pub struct Caisson {
    id: String,
    namespace: String,
    /// Or why it was refused: told with the first request, where its user looks.
    config: Result<NodeConfig, String>,
    exit: Arc<ExitSignal>,
}

#[async_trait]
impl Shim for Caisson {
    type T = TaskService;

    async fn new(_runtime_id: &str, args: &Flags, shim: &mut Config) -> Self {
        let config = config::load().map_err(|error| error.chain());
        if let Ok(config) = &config {
            shim.default_log_level.clone_from(&config.log.level);
        }
        Self {
            id: args.id.clone(),
            namespace: args.namespace.clone(),
            config,
            exit: Arc::default(),
        }
    }

    async fn start_shim(&mut self, opts: StartOpts) -> containerd_shim::Result<String> {
        let grouping = opts.id.clone();
        let address = spawn(opts, &grouping, Vec::new()).await?;
        // By it containerd 1.6 finds a running shim again, and the shim its socket when it ends.
        write_str_to_file(ADDRESS_FILE, &address).await?;
        Ok(address)
    }

    async fn delete_shim(&mut self) -> containerd_shim::Result<DeleteResponse> {
        let state_dir = match &self.config {
            Ok(config) => config.state_dir.clone(),
            Err(_) => NodeConfig::default().state_dir,
        };
        state::remove(&state_dir, &self.id)
            .map_err(|error| containerd_shim::Error::Other(error.chain()))?;
        remove_socket();
        Ok(DeleteResponse {
            exit_status: KILLED,
            exited_at: Some(timestamp(SystemTime::now())).into(),
            ..Default::default()
        })
    }

    async fn wait(&mut self) {
        self.exit.wait().await;
    }

    async fn create_task_service(&self, publisher: RemotePublisher) -> TaskService {
        let pod = self.config.clone().map(|config| {
            let events = Events::new(publisher.address.clone(), self.namespace.clone());
            let vmm = Arc::new(accelerator::qemu(&config));
            Pod::new(self.id.clone(), self.namespace.clone(), config, vmm, events)
        });
        TaskService {
            pod,
            exit: self.exit.clone(),
        }
    }
}

/// Removes the socket of a shim that died before it could.
fn remove_socket() {
    let Ok(address) = std::fs::read_to_string(ADDRESS_FILE) else {
        return;
    };
    let path = address.strip_prefix("unix://").unwrap_or(&address);
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            log::warn!("remove socket {path}: {error}");
        }
        _ => {}
    }
}

//! How a container comes into a pod: from the bundle to an init that waits for its start.

use std::{path::PathBuf, sync::Arc, time::Instant};

use caisson_oci::translate::{translate, Node};
use containerd_shim::protos::{
    events::task::{TaskCreate, TaskIO},
    types::mount::Mount,
};

use super::Pod;
use crate::{
    agent::ProcessId,
    container::{Container, Wishes},
    error::{Error, Result},
    machine::{host_cpus, host_memory_mib, stage, Machine},
    process::Process,
    share::Share,
    state::PodDir,
    streams::{HostEnds, Stdio},
};

/// A request to create a container.
pub struct CreateRequest {
    pub id: String,
    pub bundle: PathBuf,
    /// Containerd's mounts for the root, to be stacked.
    pub rootfs: Vec<Mount>,
    pub stdio: Stdio,
}

impl Pod {
    /// Creates a container, in a VM of its own. Returns the pid of the VM on the host. A failure leaves nothing.
    pub async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<u32> {
        caisson_oci::id::check(&request.id)?;
        if self.lock().contains_key(&request.id) {
            return Err(Error::Exists {
                what: "container",
                id: request.id,
            });
        }
        let created = self.create_container(&request).await;
        let (machine, container) = match created {
            Ok(created) => created,
            Err(error) => {
                self.shutdown().await;
                return Err(error);
            }
        };
        let init = container.init.clone();
        self.lock().insert(request.id.clone(), container);
        self.events.send(TaskCreate {
            container_id: request.id,
            bundle: request.bundle.display().to_string(),
            rootfs: request.rootfs,
            io: Some(TaskIO {
                stdin: request.stdio.stdin,
                stdout: request.stdio.stdout,
                stderr: request.stdio.stderr,
                terminal: request.stdio.terminal,
                ..Default::default()
            })
            .into(),
            pid: machine.pid,
            ..Default::default()
        });
        self.watch(machine.clone(), init);
        Ok(machine.pid)
    }

    async fn create_container(
        self: &Arc<Self>,
        request: &CreateRequest,
    ) -> Result<(Arc<Machine>, Arc<Container>)> {
        let started = Instant::now();
        let id = &request.id;
        let wishes = Wishes::read(&request.bundle)?;
        let dir = PodDir::create(&self.config, &self.id)?;
        let share = Share::create(dir.shared())?;
        let folder = wishes.root(&request.bundle);
        share
            .mount_rootfs(id, request.rootfs.clone(), &folder)
            .await?;
        let (paths, plugs) =
            wishes.resolve(&self.config, id, &self.namespace, &share.rootfs(id))?;
        let node = Node {
            vm: &self.config.vm,
            cpus: host_cpus(),
            memory_mib: host_memory_mib(),
        };
        let plan = translate(wishes.spec, id, node, &paths)?;
        for warning in &plan.warnings {
            log::warn!(container = id; "{warning}");
        }
        share.mount_volumes(id, &plan.volumes)?;
        let ends = HostEnds::open(&request.stdio, id, &self.namespace).await?;
        stage(&self.id, "prepare", started);

        let hostname = plan.guest_spec.hostname().clone();
        let hostname = hostname.unwrap_or_else(|| id.clone());
        let machine = self
            .machine
            .get_or_try_init(|| async {
                let machine = Machine::boot(
                    self.vmm.as_ref(),
                    &self.config,
                    &self.id,
                    hostname,
                    dir,
                    share,
                    plan.size,
                )
                .await?;
                let machine = Arc::new(machine);
                self.watch_guest(machine.clone());
                Result::Ok(machine)
            })
            .await?;
        let (agent, ()) = tokio::try_join!(machine.agent(), machine.plug(plugs))?;
        stage(&self.id, "attached", started);
        let guest_pid = agent.create(id, &plan.guest_spec, ends.tokens).await?;
        stage(&self.id, "created", started);
        let process_id = ProcessId {
            container: id.clone(),
            exec: String::new(),
        };
        let init = Process::new(process_id, request.stdio.clone(), Vec::new());
        init.set_pumps(ends.connect(&machine.vm, id).await?);
        stage(&self.id, "streams", started);
        let container = Container::new(request.bundle.clone(), Arc::new(init), guest_pid);
        Ok((machine.clone(), Arc::new(container)))
    }
}

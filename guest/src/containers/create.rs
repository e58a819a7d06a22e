//! Makes containers, up to the point before their programs run.

use std::{collections::hash_map::Entry, fs, path::PathBuf, sync::Arc};

use caisson_protocol::{agent, path::SHARES};
use oci_spec::runtime::Spec;

use super::{container::Container, memory, pod_pids::PodPids, process::Process, Containers};
use crate::{
    id, reaper,
    runtime::task::{Descriptor, DiskNode, Request, SPEC_FILE},
    Error, Result,
};

impl Containers {
    /// Makes a container up to the point before its program runs. A failure leaves nothing behind.
    pub async fn create(&self, request: agent::CreateContainerRequest) -> Result<u32> {
        let id = request.container_id.clone();
        id::check("container_id", &id)?;
        let spec: Spec =
            serde_json::from_slice(&request.spec_json).map_err(|source| Error::Json {
                field: "spec_json",
                source,
            })?;
        let mut container = Container::plan(&self.machine, &id, &spec)?;
        let copied = request
            .memory
            .iter()
            .map(|memory| PathBuf::from(&memory.copy_of));
        container
            .uses
            .extend(copied.filter(|path| path.starts_with(SHARES)));
        let container = Arc::new(container);
        match self.lock().entry(id.clone()) {
            Entry::Occupied(_) => {
                return Err(Error::Exists {
                    what: "container",
                    id,
                })
            }
            Entry::Vacant(free) => free.insert(container.clone()),
        };
        let _step = container.step.lock().await;
        let terminal = spec
            .process()
            .as_ref()
            .and_then(|process| process.terminal());
        let shares_pids = PodPids::wanted(&spec);
        let users = PodPids::users(&spec);
        let among_others = PodPids::shared(&spec);
        let shares = shares_pids || users.is_some();
        let made = async {
            let pod = match shares {
                true => Some(self.pod_pids.init(users).await?),
                false => None,
            };
            self.make(&container, &request, terminal == Some(true), pod)
                .await
        };
        let made = made.await;
        match made {
            Ok(process) => {
                let pid = process.pid;
                if among_others {
                    end_with_init(&container, &process);
                }
                if terminal == Some(true) {
                    let size = spec
                        .process()
                        .as_ref()
                        .and_then(|process| process.console_size());
                    if let Some(size) = size {
                        process.resize(size.width() as u16, size.height() as u16)?;
                    }
                }
                // Only this call sets it.
                let _ = container.init.set(process);
                self.oom.watch(&id, &container.cgroup);
                log::info!(container = id, pid; "container created");
                Ok(pid)
            }
            Err(error) => {
                self.lock().remove(&id);
                if let Err(left) = self.clean(&container).await {
                    log::error!(container = id, error = left.chain(); "clean up after a failed create");
                }
                Err(error)
            }
        }
    }

    async fn make(
        &self,
        container: &Container,
        request: &agent::CreateContainerRequest,
        terminal: bool,
        pod: Option<i32>,
    ) -> Result<Process> {
        for memory in &request.memory {
            match memory.copy_of.is_empty() {
                true => memory::mount(memory)?,
                false => self.followed.add(&container.id, memory)?,
            }
        }
        let bundle = &container.bundle;
        fs::create_dir_all(bundle).map_err(Error::file("create directory", bundle))?;
        let path = bundle.join(SPEC_FILE);
        fs::write(&path, &request.spec_json).map_err(Error::file("write", path))?;
        let state = self.machine.state().join("containers");
        fs::create_dir_all(&state).map_err(Error::file("create directory", &state))?;
        let task = Request::Create {
            id: container.id.clone(),
            bundle: bundle.clone(),
            state,
            cgroup: container.cgroup_path.clone(),
            pod,
            disks: request.disks.iter().map(DiskNode::from).collect(),
            guest_devices: request.guest_devices,
            descriptors: request.descriptors.iter().map(Descriptor::from).collect(),
        };
        Process::start(
            &self.reaper,
            &self.streams,
            &task,
            &request.streams,
            terminal,
        )
        .await
    }
}

/// Kills what a container in a shared pid namespace leaves behind when its init ends. In a pid
/// namespace of its own, the kernel does so.
fn end_with_init(container: &Arc<Container>, init: &Process) {
    let (container, exit) = (container.clone(), init.exit.clone());
    tokio::spawn(async move {
        reaper::ended(&exit).await;
        if let Err(error) = container.cgroup.kill() {
            log::warn!(container = container.id, error = error.chain(); "kill what its init left");
        }
    });
}

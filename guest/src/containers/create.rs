//! Makes containers, up to the point before their programs run.

use std::{
    collections::hash_map::Entry,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use caisson_protocol::agent;

use super::{container::Container, memory, part, process::Process, Containers};
use crate::{
    id,
    pause::Users,
    reaper,
    runtime::task::{Descriptor, DiskNode, Request, SPEC_FILE},
    Error, Result,
};

impl Containers {
    /// Makes a container up to the point before its program runs. A failure leaves nothing behind.
    pub async fn create(&self, request: agent::CreateContainerRequest) -> Result<u32> {
        let id = request.container_id.clone();
        id::check("container_id", &id)?;
        let shared = request.shared.iter().map(PathBuf::from);
        let copied = request
            .memory
            .iter()
            .map(|memory| PathBuf::from(&memory.copy_of))
            .filter(|path| !path.as_os_str().is_empty());
        let parts = request
            .parts
            .iter()
            .map(part::place)
            .collect::<Result<_>>()?;
        let container = Container::new(&self.machine, &id, shared.chain(copied).collect(), parts);
        let limit = Some(request.cpu_max.clone()).filter(|limit| !limit.is_empty());
        let container = Arc::new(Container {
            cpu_max: Mutex::new(limit),
            ..container
        });
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
        let made = self.make(&container, &request).await;
        match made {
            Ok(process) => {
                let pid = process.pid;
                if container.pid_namespace.get().is_some() {
                    end_with_init(&container, &process);
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
    ) -> Result<Process> {
        let user_namespace = match request.pod_users.as_ref() {
            None => None,
            Some(_) => Some(self.pod_namespace("user", request).await?),
        };
        if let Some(wanted) = request.pid_namespace.as_ref() {
            let place = match wanted.container_id.as_str() {
                "" => self.pod_namespace("pid", request).await?,
                other => self.pid_namespace_of(other)?,
            };
            // Only this call sets it.
            let _ = container.pid_namespace.set(place);
        }
        for memory in &request.memory {
            match memory.copy_of.is_empty() {
                true => memory::mount(memory)?,
                false => self.followed.add(&container.id, memory)?,
            }
        }
        for part in &request.parts {
            part::mount(part)?;
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
            pid_namespace: container.pid_namespace.get().cloned(),
            user_namespace,
            disks: request.disks.iter().map(DiskNode::from).collect(),
            guest_devices: request.guest_devices,
            descriptors: request.descriptors.iter().map(Descriptor::from).collect(),
        };
        Process::start(&self.reaper, &self.streams, &task, &request.streams).await
    }

    /// Returns the path of a namespace of the pod, which is made if there is none.
    async fn pod_namespace(
        &self,
        name: &str,
        request: &agent::CreateContainerRequest,
    ) -> Result<PathBuf> {
        let users = request.pod_users.as_ref().map(|users| Users {
            uid_map: users.uid_map.clone(),
            gid_map: users.gid_map.clone(),
        });
        let init = self.pod_namespaces.init(users).await?;
        Ok(format!("/proc/{init}/ns/{name}").into())
    }

    /// Returns the path of the pid namespace of a container, its own or one that it has joined.
    fn pid_namespace_of(&self, id: &str) -> Result<PathBuf> {
        let container = self.get(id)?;
        if let Some(joined) = container.pid_namespace.get() {
            return Ok(joined.clone());
        }
        let init = container.init.get();
        let init = init.ok_or_else(|| container.refuse("share its pid namespace"))?;
        Ok(format!("/proc/{}/ns/pid", init.pid).into())
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

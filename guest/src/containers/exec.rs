//! Starts further processes in running containers.

use std::{
    fs,
    sync::{atomic::Ordering, Arc},
};

use caisson_protocol::agent;

use super::{container::forget_ended, process::Process, Containers};
use crate::{
    id,
    runtime::task::{Descriptor, Request},
    Error, Result,
};

impl Containers {
    /// Starts a further process in a running container.
    pub async fn exec(&self, request: agent::ExecRequest) -> Result<u32> {
        let container = self.get(&request.container_id)?;
        let exec = request.exec_id.clone();
        id::check("exec_id", &exec)?;
        container.expect("exec", &["running"])?;
        let Some(init) = container.init.get() else {
            return Err(container.refuse("exec"));
        };
        {
            let mut execs = container.execs();
            let taken = match execs.get(&exec) {
                None => false,
                Some(None) => true,
                Some(Some(old)) => !old.has_ended(),
            };
            if taken {
                return Err(Error::Exists {
                    what: "exec",
                    id: exec,
                });
            }
            forget_ended(&mut execs);
            execs.insert(exec.clone(), None);
        }
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = container.bundle.join(format!("process-{number}.json"));
        let task = Request::Exec {
            bundle: container.bundle.clone(),
            process: path.clone(),
            init: init.pid as i32,
            cgroup: container.cgroup.path().to_path_buf(),
            descriptors: request.descriptors.iter().map(Descriptor::from).collect(),
        };
        let started = async {
            fs::write(&path, &request.process_json).map_err(Error::file("write", &path))?;
            Process::start(&self.reaper, &self.streams, &task, &request.streams).await
        }
        .await;
        // The file is in memory and is removed with the bundle at the latest.
        let _ = fs::remove_file(&path);
        match started {
            Ok(process) => {
                let pid = process.pid;
                log::debug!(container = container.id, exec, pid; "process started");
                container.execs().insert(exec, Some(Arc::new(process)));
                Ok(pid)
            }
            Err(error) => {
                container.execs().remove(&exec);
                Err(error)
            }
        }
    }
}

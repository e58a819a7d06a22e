//! A container of a pod: its processes, and what containerd asked for when it created the
//! container.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use caisson_node::record;
use caisson_oci::{exec::Grants, Limits};

use crate::{
    error::{Error, Result},
    hooks::HostHooks,
    process::Process,
    stand_in::StandIn,
    stats,
};

/// A container.
pub struct Container {
    pub bundle: PathBuf,
    pub init: Arc<Process>,
    /// The pid on the host that containerd is told for its processes: the VMM's, or in a pod the
    /// pid of its [`StandIn`].
    pub pid: u32,
    stand_in: Option<StandIn>,
    /// The hooks that the host runs for it.
    pub hooks: HostHooks,
    /// The init's pid in the guest. `None` for the sandbox, which is the VM itself.
    pub guest_pid: Option<u32>,
    /// Whether containerd has a task for the container and therefore gets events about it.
    pub is_task: bool,
    /// The container's limits, which the VM must be large enough for.
    limits: Mutex<Limits>,
    /// The spec's `process.oomScoreAdj`, or 0 if it has none.
    pub oom_score_adj: i32,
    /// What every additional process of the container gets.
    grants: Mutex<Grants>,
    /// The container's name in the pod, if CRI gives one.
    pub name: Option<String>,
    /// The skills that the container was created with: mount point and path in the guest.
    pub skills: Vec<(PathBuf, PathBuf)>,
    /// The last known resource usage.
    pub stats: stats::Last,
    execs: Mutex<HashMap<String, Arc<Process>>>,
}

impl Container {
    /// Creates a container whose init has been created.
    pub fn new(
        bundle: PathBuf,
        init: Process,
        pid: u32,
        guest_pid: u32,
        limits: Limits,
        grants: Grants,
    ) -> Self {
        Self {
            bundle,
            init: Arc::new(init),
            pid,
            stand_in: None,
            hooks: HostHooks::default(),
            guest_pid: Some(guest_pid),
            is_task: true,
            limits: Mutex::new(limits),
            oom_score_adj: 0,
            grants: Mutex::new(grants),
            name: None,
            skills: Vec::new(),
            stats: stats::Last::default(),
            execs: Mutex::default(),
        }
    }

    /// Gives the container a pid of its own for as long as it exists.
    pub fn stand_in(&mut self, stand_in: StandIn) {
        self.pid = stand_in.pid;
        self.stand_in = Some(stand_in);
    }

    /// Creates the sandbox of a pod: containerd's pause container, or the sandbox of containerd's
    /// sandbox service, which is no task.
    pub fn sandbox(bundle: PathBuf, init: Process, pid: u32, is_task: bool) -> Self {
        Self {
            guest_pid: None,
            is_task,
            ..Self::new(bundle, init, pid, 0, Limits::default(), Grants::default())
        }
    }

    /// Whether this is the sandbox, which is the VM itself and has no process in the guest.
    pub fn is_sandbox(&self) -> bool {
        self.guest_pid.is_none()
    }

    /// Returns what the pod's record has of the container.
    pub fn recorded(&self) -> record::Container {
        let limits = self.limits();
        let execs = self.lock();
        let execs = execs.iter().map(|(id, exec)| (id.clone(), exec.state()));
        record::Container {
            name: self.name.clone(),
            bundle: self.bundle.clone(),
            pid: self.pid,
            guest_pid: self.guest_pid,
            state: self.init.state(),
            cpu_milli: limits.cpu_milli,
            memory: limits.memory,
            skills: self.skills.clone(),
            execs: execs.collect(),
        }
    }

    /// Returns the container's current limits.
    pub fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records new limits.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Returns what every additional process of the container gets.
    pub fn grants(&self) -> Grants {
        let grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.clone()
    }

    /// Changes what every additional process of the container gets from now on.
    pub fn set_grants(&self, grants: Grants) {
        *self.grants.lock().unwrap_or_else(PoisonError::into_inner) = grants;
    }

    /// Returns the container's name in its pod, or its id if it has none.
    pub fn shown_name(&self) -> String {
        let name = self.name.clone();
        name.unwrap_or_else(|| self.init.id.container.clone())
    }

    /// Returns the init, if the exec id is empty, or an exec.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let found = self.lock().get(exec).cloned();
        found.ok_or_else(|| Error::NotFound {
            what: "exec",
            id: exec.to_owned(),
        })
    }

    /// Adds an exec that has not been started yet.
    pub fn add_exec(&self, process: Process) -> Result<()> {
        let exec = process.id.exec.clone();
        let mut execs = self.lock();
        if execs.contains_key(&exec) {
            return Err(Error::Exists {
                what: "exec",
                id: exec,
            });
        }
        execs.insert(exec, Arc::new(process));
        Ok(())
    }

    /// Removes an exec.
    pub fn remove_exec(&self, exec: &str) {
        self.lock().remove(exec);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

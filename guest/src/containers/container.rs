//! One container: its parts and its state. [`super::Containers`] has the operations on it.
//!
//! ```text
//!   create --> created --start--> running --init ends--> stopped --delete--> gone
//!                 |                 |  ^                    ^
//!                 |           pause v  | resume             |
//!                 |               paused ---- kill ---------|
//!                 `---- delete: killed first ---> gone -----'
//! ```

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    },
};

use super::process::Process;
use crate::{
    cgroup::{self, Cgroup},
    machine::Machine,
    Error, Result,
};

/// How many ended execs of a container are kept, so that they can still be asked for.
const MAX_ENDED: usize = 256;

/// One container.
pub struct Container {
    pub id: String,
    pub bundle: PathBuf,
    /// The path below the cgroup mount point.
    pub cgroup_path: PathBuf,
    pub cgroup: Cgroup,
    /// The paths below shares that the container uses. Each may be a mount of its own.
    pub shared: Vec<PathBuf>,
    /// The places of the parts of volumes that it uses.
    pub parts: Vec<PathBuf>,
    /// The limit of cpu time that is not in force yet, as `cpu.max` of the cgroup has it.
    pub cpu_max: Mutex<Option<String>>,
    /// The pid namespace that it has joined, if it has none of its own.
    pub pid_namespace: OnceLock<PathBuf>,
    pub init: OnceLock<Process>,
    pub execs: Mutex<HashMap<String, Option<Arc<Process>>>>,
    pub started: AtomicBool,
    pub paused: AtomicBool,
    pub step: tokio::sync::Mutex<()>,
}

impl Container {
    /// Returns a container that has not been made yet.
    pub fn new(
        machine: &Machine,
        id: &str,
        shared: Vec<PathBuf>,
        parts: Vec<PathBuf>,
    ) -> Container {
        let cgroup_path = machine.cgroup_path(id);
        Container {
            id: id.to_string(),
            bundle: machine.state().join("bundles").join(id),
            cgroup: Cgroup::new(Path::new(cgroup::MOUNT_POINT), &cgroup_path),
            cgroup_path,
            shared,
            parts,
            cpu_max: Mutex::default(),
            pid_namespace: OnceLock::new(),
            init: OnceLock::new(),
            execs: Mutex::default(),
            started: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            step: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the state in the words of the OCI runtime spec, or `paused`.
    pub fn state(&self) -> &'static str {
        match self.init.get() {
            None => "creating",
            Some(init) if init.has_ended() => "stopped",
            Some(_) if self.paused.load(Ordering::SeqCst) => "paused",
            Some(_) if self.started.load(Ordering::SeqCst) => "running",
            Some(_) => "created",
        }
    }

    /// Fails unless the container is in one of these states.
    pub fn expect(&self, action: &'static str, states: &[&str]) -> Result<()> {
        match states.contains(&self.state()) {
            true => Ok(()),
            false => Err(self.refuse(action)),
        }
    }

    /// Puts the limit of cpu time in force, once.
    pub fn limit_cpu(&self) -> Result<()> {
        let mut limit = self.cpu_max.lock().unwrap_or_else(PoisonError::into_inner);
        match limit.take() {
            Some(limit) => self.cgroup.limit_cpu(&limit),
            None => Ok(()),
        }
    }

    /// Returns the error for an action that the current state does not allow.
    pub fn refuse(&self, action: &'static str) -> Error {
        Error::State {
            container: self.id.clone(),
            state: self.state(),
            action,
        }
    }

    /// Returns an exec that was started.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        let found = self.execs().get(exec).cloned().flatten();
        found.ok_or_else(|| Error::NoProcess {
            container: self.id.clone(),
            exec: exec.to_string(),
            what: "not found",
        })
    }

    /// Locks and returns all execs. `None` stands for one that is being started.
    pub fn execs(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Process>>>> {
        match self.execs.lock() {
            Ok(execs) => execs,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

/// Forgets some of the ended execs once there are many: a container that is probed for a year has
/// millions.
pub fn forget_ended(execs: &mut HashMap<String, Option<Arc<Process>>>) {
    let ended = |process: &Option<Arc<Process>>| process.as_ref().is_some_and(|p| p.has_ended());
    let mut count = execs.values().filter(|process| ended(process)).count();
    execs.retain(|_, process| {
        let goes = count >= MAX_ENDED && ended(process);
        count -= usize::from(goes);
        !goes
    });
}

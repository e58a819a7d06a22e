//! Holds the pid namespace and the user namespace that containers of this pod share, if they do.
//! Both are made when the first container asks for them, and kept until the end.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use caisson_protocol::path::{POD_PID_NAMESPACE, POD_USER_NAMESPACE};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};

use crate::{
    launch,
    pause::Users,
    reaper::{Exit, Reaper},
    runtime::task::Request,
    Error, Result,
};

/// The pod's namespaces, held by their init process ([`crate::pause`]). Cheap to clone.
#[derive(Clone)]
pub struct PodPids {
    reaper: Reaper,
    /// Locked while the init is being started.
    making: Arc<tokio::sync::Mutex<()>>,
    init: Arc<Mutex<Option<(i32, Exit)>>>,
}

impl PodPids {
    pub fn new(reaper: Reaper) -> PodPids {
        PodPids {
            reaper,
            making: Arc::default(),
            init: Arc::default(),
        }
    }

    /// Returns whether a container with this spec is to join the pod's pid namespace.
    pub fn wanted(spec: &Spec) -> bool {
        joins(spec, LinuxNamespaceType::Pid, POD_PID_NAMESPACE)
    }

    /// Returns whether a container with this spec has its processes in a pid namespace with others.
    /// Its processes then do not end by themselves when its init ends.
    pub fn shared(spec: &Spec) -> bool {
        paths(spec, LinuxNamespaceType::Pid).next().is_some()
    }

    /// Returns the users of the pod, if a container with this spec is to join the pod's user
    /// namespace.
    pub fn users(spec: &Spec) -> Option<Users> {
        let linux = spec.linux().as_ref()?;
        let lines = |lines: &Option<Vec<LinuxIdMapping>>| {
            let line =
                |m: &LinuxIdMapping| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size());
            lines.iter().flatten().map(line).collect()
        };
        joins(spec, LinuxNamespaceType::User, POD_USER_NAMESPACE).then(|| Users {
            uid_map: lines(linux.uid_mappings()),
            gid_map: lines(linux.gid_mappings()),
        })
    }

    /// Returns the pid of the namespaces' init, and starts it if there is none. Either all
    /// containers of a pod have the same users, or none has users.
    pub async fn init(&self, users: Option<Users>) -> Result<i32> {
        let _making = self.making.lock().await;
        if let Some(pid) = self.running() {
            return Ok(pid);
        }
        let expected = self.reaper.expect();
        let made = launch::run(&expected, &Request::Pause { users }, &[]).await?;
        let pid = made.pid.ok_or(Error::Runtime {
            message: "the runtime process told no pid".to_string(),
        })?;
        let (exit, _) = expected.watch(pid);
        log::info!(pid; "namespaces of the pod made");
        *self.init.lock().unwrap_or_else(PoisonError::into_inner) = Some((pid, exit));
        Ok(pid)
    }

    /// Kills the init, and with it everything in the pid namespace.
    pub fn kill(&self) {
        if let Some(pid) = self.running() {
            // SAFETY: the arguments are plain numbers; the child is not reaped while it has no
            // status.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }

    fn running(&self) -> Option<i32> {
        let init = self.init.lock().unwrap_or_else(PoisonError::into_inner);
        let (pid, exit) = init.as_ref()?;
        let ended = exit.borrow().is_some();
        (!ended).then_some(*pid)
    }
}

fn joins(spec: &Spec, typ: LinuxNamespaceType, place: &str) -> bool {
    paths(spec, typ).any(|path| path.as_os_str() == place)
}

/// Returns the paths of the namespaces of one type that a container with this spec joins.
fn paths(spec: &Spec, typ: LinuxNamespaceType) -> impl Iterator<Item = &PathBuf> {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    let namespaces = namespaces.into_iter().flatten();
    namespaces
        .filter(move |namespace| namespace.typ() == typ)
        .filter_map(|namespace| namespace.path().as_ref())
}

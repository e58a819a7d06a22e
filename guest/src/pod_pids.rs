//! The pid namespace and the user namespace that containers of this pod share if they share one: made when the first asks for
//! it, kept until the end.

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
    runtime::Request,
    Error, Result,
};

/// The namespace, by its init ([`crate::pause`]). Cheap to clone.
#[derive(Clone)]
pub struct PodPids {
    reaper: Reaper,
    /// Held while it is made.
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

    /// Whether a container with this spec is to be in it.
    pub fn wanted(spec: &Spec) -> bool {
        joins(spec, LinuxNamespaceType::Pid, POD_PID_NAMESPACE)
    }

    /// Whether a container with this spec has its processes among those of others: then they do not end with its init by themselves.
    pub fn shared(spec: &Spec) -> bool {
        paths(spec, LinuxNamespaceType::Pid).next().is_some()
    }

    /// The users of the pod, if a container with this spec is to be in their namespace.
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

    /// The pid of its init, which is started if there is none. All containers of a pod have the same users, or none.
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

    /// Kills its init, and so all that is in it.
    pub fn kill(&self) {
        if let Some(pid) = self.running() {
            // SAFETY: plain numbers; our child is not reaped as long as it has no status.
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

/// Where the namespaces of a type are that a container with this spec joins.
fn paths(spec: &Spec, typ: LinuxNamespaceType) -> impl Iterator<Item = &PathBuf> {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    let namespaces = namespaces.into_iter().flatten();
    namespaces
        .filter(move |namespace| namespace.typ() == typ)
        .filter_map(|namespace| namespace.path().as_ref())
}

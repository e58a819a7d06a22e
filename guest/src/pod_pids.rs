//! The pid namespace that containers of this pod share if they share one: made when the first asks for it, kept until the end.

use std::sync::{Arc, Mutex, PoisonError};

use caisson_protocol::path::POD_PID_NAMESPACE;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::{
    launch,
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
        let linux = spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
        namespaces.into_iter().flatten().any(|namespace| {
            namespace.typ() == LinuxNamespaceType::Pid
                && namespace
                    .path()
                    .as_ref()
                    .is_some_and(|path| path.as_os_str() == POD_PID_NAMESPACE)
        })
    }

    /// The pid of its init, which is started if there is none.
    pub async fn init(&self) -> Result<i32> {
        let _making = self.making.lock().await;
        if let Some(pid) = self.running() {
            return Ok(pid);
        }
        let expected = self.reaper.expect();
        let made = launch::run(&expected, &Request::Pause, &[]).await?;
        let pid = made.pid.ok_or(Error::Runtime {
            message: "the runtime process told no pid".to_string(),
        })?;
        let (exit, _) = expected.watch(pid);
        log::info!(pid; "pid namespace of the pod made");
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

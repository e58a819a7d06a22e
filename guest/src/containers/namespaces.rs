//! Holds the pid namespace and the user namespace that containers of this pod share, if they do.
//! Both are made when the first container is to join one of them, and kept until the end.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    launch,
    pause::Users,
    reaper::{Exit, Reaper},
    runtime::task::Request,
    Error, Result,
};

/// The pod's namespaces, held by their init process ([`crate::pause`]). Cheap to clone.
#[derive(Clone)]
pub struct PodNamespaces {
    reaper: Reaper,
    /// Locked while the init is being started.
    making: Arc<tokio::sync::Mutex<()>>,
    init: Arc<Mutex<Option<(i32, Exit)>>>,
}

impl PodNamespaces {
    pub fn new(reaper: Reaper) -> PodNamespaces {
        PodNamespaces {
            reaper,
            making: Arc::default(),
            init: Arc::default(),
        }
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

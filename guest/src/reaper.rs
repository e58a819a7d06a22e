//! Waits for child processes. Nothing else does, since every process of the guest ends up as a
//! child of PID 1.
//!
//! A pid is known only after the runtime process has answered, and the new process may have ended
//! by then. So the caller takes an [`Expected`] before it starts a process. While any of them is
//! held, exit statuses that nobody waits for are kept.

use std::{
    collections::HashMap,
    os::fd::{FromRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard},
};

use rustix::{
    io::Errno,
    process::{wait, WaitOptions, WaitStatus},
};
use tokio::{
    signal::unix::{signal, SignalKind},
    sync::watch,
};

use crate::{Error, Result};

/// The exit status: 0-255, or 128 + n after signal n; `None` while the process runs.
pub type Exit = watch::Receiver<Option<u32>>;

/// Waits for all children. Cheap to clone.
#[derive(Clone)]
pub struct Reaper {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    watched: HashMap<i32, watch::Sender<Option<u32>>>,
    unclaimed: HashMap<i32, u32>,
    expected: usize,
}

impl Reaper {
    /// Starts to wait for children, on the event loop that this is called from.
    pub fn start() -> Result<Reaper> {
        let reaper = Reaper {
            table: Arc::default(),
        };
        let mut children =
            signal(SignalKind::child()).map_err(Error::system("listen for SIGCHLD"))?;
        let reaping = reaper.clone();
        tokio::spawn(async move {
            loop {
                reaping.reap();
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Keeps the statuses of unknown children until the value is dropped.
    pub fn expect(&self) -> Expected {
        self.lock().expected += 1;
        Expected {
            reaper: self.clone(),
        }
    }

    fn reap(&self) {
        loop {
            // The table is locked for each child, so that a pid is not reaped while it is being
            // looked up.
            let mut table = self.lock();
            let (pid, ended) = match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, ended))) => (pid.as_raw_pid(), ended),
                Ok(None) | Err(Errno::CHILD) => return,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    log::error!(error:%; "wait for children");
                    return;
                }
            };
            let Some(status) = status(ended) else {
                continue;
            };
            log::debug!(pid, status; "process ended");
            match table.watched.remove(&pid) {
                // Possibly nothing waits for this status any more.
                Some(sender) => drop(sender.send(Some(status))),
                None if table.expected > 0 => drop(table.unclaimed.insert(pid, status)),
                None => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        match self.table.lock() {
            Ok(table) => table,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

/// Returns the exit status of a process that has ended, see [`Exit`]. Any signal may have ended it,
/// also one of the real-time signals, which have numbers and no names (signal(7)).
fn status(ended: WaitStatus) -> Option<u32> {
    let code = ended.exit_status();
    let signal = ended.terminating_signal().map(|signal| 128 + signal);
    code.or(signal).map(|status| status as u32)
}

/// Keeps exit statuses while it is held; see [`Reaper::expect`].
pub struct Expected {
    reaper: Reaper,
}

impl Expected {
    /// Returns the reaper that it is of.
    pub fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// Returns the exit of a child, which may have ended already, and a descriptor to signal it if
    /// it has not.
    pub fn watch(&self, pid: i32) -> (Exit, Option<OwnedFd>) {
        let mut table = self.reaper.lock();
        let ended = table.unclaimed.remove(&pid);
        let (sender, receiver) = watch::channel(ended);
        if ended.is_some() {
            return (receiver, None);
        }
        table.watched.insert(pid, sender);
        // SAFETY: plain numbers; the result is checked.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        // SAFETY: pidfd_open(2) just returned this descriptor, and nothing else owns it.
        let pidfd = (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result as i32) });
        (receiver, pidfd)
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut table = self.reaper.lock();
        table.expected -= 1;
        if table.expected == 0 {
            table.unclaimed.clear();
        }
    }
}

/// Waits until the process has ended, and returns its status.
pub async fn ended(exit: &Exit) -> u32 {
    let mut exit = exit.clone();
    let status = match exit.wait_for(Option::is_some).await {
        Ok(status) => *status,
        // The reaper is gone with the event loop.
        Err(_) => None,
    };
    status.unwrap_or(255)
}

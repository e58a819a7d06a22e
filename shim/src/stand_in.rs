//! Provides a host pid for each container of a pod. The container's processes are in the guest, but
//! containerd wants a pid for each task, and uses it to find the pid namespace of an ephemeral
//! container's target (`/proc/<pid>/ns/pid`).

use std::{sync::mpsc, thread};

use caisson_node::host::error::OnFile;
use nix::unistd::gettid;

use crate::error::{Error, Result};

/// The thread's stack. It is small, since the thread does nothing.
const STACK: usize = 16 << 10;

/// A thread that waits until this is dropped.
pub struct StandIn {
    /// The thread's id. It has an entry in /proc like a process, but is not listed there (proc(5)).
    pub pid: u32,
    _end: mpsc::Sender<()>,
}

impl StandIn {
    /// Starts the thread.
    pub fn start() -> Result<Self> {
        let (started, pid) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::Builder::new()
            .name("container".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let _ = started.send(gettid().as_raw().unsigned_abs());
                // Fails when the other end is dropped.
                let _ = ended.recv();
            })
            .map_err(Error::file("start a thread for", "the container"))?;
        let pid = pid.recv().map_err(|_| Error::NotFound {
            what: "thread for",
            id: "the container".to_owned(),
        })?;
        Ok(Self { pid, _end: end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{path::Path, time::Duration};

    #[test]
    fn each_has_a_pid_of_its_own_until_it_is_dropped() {
        let (one, two) = (StandIn::start().unwrap(), StandIn::start().unwrap());
        assert_ne!(one.pid, two.pid);
        let namespace = format!("/proc/{}/ns/pid", one.pid);
        assert!(Path::new(&namespace).exists());
        drop(one);
        let gone = (0..100).any(|_| {
            thread::sleep(Duration::from_millis(20));
            !Path::new(&namespace).exists()
        });
        assert!(gone);
    }
}

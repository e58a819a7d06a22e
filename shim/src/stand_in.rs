//! What a container of a pod is on the host: its processes are the guest's, but containerd wants a pid for each task, and finds the pid namespace
//! of an ephemeral container's target by it (`/proc/<pid>/ns/pid`).

use std::{sync::mpsc, thread};

use nix::unistd::gettid;

use crate::error::{Error, Result};

/// It does nothing.
const STACK: usize = 16 << 10;

/// A thread that waits until this is dropped.
pub struct StandIn {
    /// In /proc as any other, though not listed there (proc(5)).
    pub pid: u32,
    _end: mpsc::Sender<()>,
}

impl StandIn {
    /// Starts one.
    pub fn start() -> Result<Self> {
        let (started, pid) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::Builder::new()
            .name("container".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let _ = started.send(gettid().as_raw().unsigned_abs());
                // Fails when the other end goes.
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

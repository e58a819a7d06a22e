//! Provides a host pid for each container of a pod. The container's processes are in the guest, but
//! containerd wants a pid for each task, and uses it to find the pid namespace of an ephemeral
//! container's target (`/proc/<pid>/ns/pid`).

use std::{fs::File, io, path::PathBuf, sync::mpsc, thread};

use caisson_node::host::error::OnFile;
use nix::{
    sched::{setns, unshare, CloneFlags},
    unistd::gettid,
};

use crate::error::{Error, Result};

/// The thread's stack. It is small, since the thread does nothing.
const STACK: usize = 16 << 10;

/// The network namespace that a [`StandIn`] is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// One of its own, which is empty.
    New,
    /// The one that this path names.
    Of(PathBuf),
}

/// A thread that waits until this is dropped.
pub struct StandIn {
    /// The thread's id. It has an entry in /proc like a process, but is not listed there (proc(5)).
    pub pid: u32,
    _end: mpsc::Sender<()>,
}

impl StandIn {
    /// Starts the thread in a network namespace.
    pub fn start(network: Network) -> Result<Self> {
        let (started, pid) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::Builder::new()
            .name("container".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let entered = enter(&network);
                let is_in = entered.is_ok();
                let _ = started.send(entered.map(|()| gettid().as_raw().unsigned_abs()));
                if is_in {
                    // Fails when the other end is dropped.
                    let _ = ended.recv();
                }
            })
            .map_err(Error::file("start a thread for", "the container"))?;
        let pid = pid
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        let pid = pid.map_err(Error::file(
            "enter the network namespace of",
            "the container",
        ))?;
        Ok(Self { pid, _end: end })
    }

    /// Returns the path of the thread's network namespace.
    pub fn network(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid).into()
    }
}

/// Puts the calling thread into a network namespace.
fn enter(network: &Network) -> io::Result<()> {
    match network {
        Network::Host => {}
        Network::New => unshare(CloneFlags::CLONE_NEWNET)?,
        Network::Of(path) => setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{path::Path, time::Duration};

    fn start(network: Network) -> StandIn {
        StandIn::start(network).unwrap()
    }

    #[test]
    fn each_has_a_pid_of_its_own_until_it_is_dropped() {
        let (one, two) = (start(Network::Host), start(Network::Host));
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

    #[test]
    fn network_that_is_not_there_is_an_error() {
        let network = Network::Of("/run/netns/no such".into());
        assert!(StandIn::start(network).is_err());
    }
}

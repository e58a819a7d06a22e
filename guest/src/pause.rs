//! `/pause`: the init of the pid namespace that containers of a pod share
//! (`shareProcessNamespace`). Kubernetes promises a process of this name as PID 1 there.
//!
//! It reaps orphans of the namespace and does nothing else until it is killed. In a pod with users
//! of its own (`hostUsers: false`) it also holds the pod's user namespace, to which its pid
//! namespace then belongs.
//!
//! [`start`] starts it from a runtime process ([`crate::runtime`]); [`run`] is the program.

use std::{
    convert::Infallible,
    ffi::CString,
    io::{self, Read, Write},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        wait::{waitpid, WaitPidFlag, WaitStatus},
    },
};
use serde::{Deserialize, Serialize};

/// The name of the program, by which [`crate::main`] recognises it.
pub const NAME: &str = "/pause";
/// The score that the kubelet gives it: freeing any other memory is better than killing the init of
/// the other processes (Kubernetes, pkg/kubelet/qos `PodInfraOOMAdj`).
const OOM_SCORE_ADJ: &str = "-998";

/// The mappings of a user namespace, in the format of `/proc/<pid>/uid_map`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Users {
    pub uid_map: String,
    pub gid_map: String,
}

/// Forks the program into a new pid namespace, and a new user namespace if there are `users`.
/// Returns its pid in the caller's namespace. The caller must have one thread.
pub fn start(users: Option<&Users>) -> io::Result<i32> {
    let program = CString::new("/proc/self/exe")?;
    let arguments = [CString::new(NAME)?];
    let (mut waits, mapped) = io::pipe()?;
    let user = match users {
        Some(_) => libc::CLONE_NEWUSER,
        None => 0,
    };
    let flags = libc::CLONE_NEWPID | user | libc::SIGCHLD;
    // SAFETY: works like fork, with namespaces; this process has one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } as i32;
    match pid {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            drop(mapped);
            // The process can only report a failure by its end. Every container that joins the
            // namespace then fails.
            if let Ok(1) = waits.read(&mut [0]) {
                let _ = execute(&program, &arguments);
            }
            // SAFETY: ends this process at once, without the parent's exit handlers.
            unsafe { libc::_exit(255) }
        }
        _ => {}
    }
    if let Some(users) = users {
        std::fs::write(format!("/proc/{pid}/uid_map"), &users.uid_map)?;
        std::fs::write(format!("/proc/{pid}/gid_map"), &users.gid_map)?;
    }
    (&mapped).write_all(&[1])?;
    Ok(pid)
}

fn execute(program: &CString, arguments: &[CString]) -> nix::Result<Infallible> {
    nix::unistd::setsid()?;
    // Becomes root of its user namespace, unless it is that already.
    nix::unistd::setresgid(0.into(), 0.into(), 0.into())?;
    nix::unistd::setresuid(0.into(), 0.into(), 0.into())?;
    nix::unistd::execve::<_, CString>(program, arguments, &[])
}

/// Runs the program, which only SIGKILL ends.
pub fn run() -> ! {
    // Its root directory is the agent's, which containers must not reach through /proc/1.
    let _ = nix::sys::prctl::set_dumpable(false);
    let _ = nix::sys::prctl::set_name(c"pause");
    // The host of a test may not grant the right to lower the score.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let _ = children.thread_block();
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                _ => {}
            }
        }
        let _ = children.wait();
    }
}

//! `/pause`: the init of the pid namespace that containers of a pod share (`shareProcessNamespace`), where Kubernetes promises
//! a process of this name as PID 1. It reaps what is orphaned there and does nothing else, until it is killed.
//!
//! [`start`] makes it, in a runtime process ([`crate::runtime`]); [`run`] is the program.

use std::{convert::Infallible, ffi::CString, io};

use nix::{
    errno::Errno,
    sched::{unshare, CloneFlags},
    sys::{
        signal::{SigSet, Signal},
        wait::{waitpid, WaitPidFlag, WaitStatus},
    },
};

/// Its name, by which [`crate::main`] knows it.
pub const NAME: &str = "/pause";
/// As the kubelet gives it: nobody's memory is worth more than the init of the others (Kubernetes, pkg/kubelet/qos `PodInfraOOMAdj`).
const OOM_SCORE_ADJ: &str = "-998";

/// Forks it into a new pid namespace. Returns its pid in the namespace of the caller, who has one thread.
pub fn start() -> io::Result<i32> {
    let program = CString::new("/proc/self/exe")?;
    let arguments = [CString::new(NAME)?];
    unshare(CloneFlags::CLONE_NEWPID)?;
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // Its end is all that can be told: every container that joins the namespace fails then.
            let _ = execute(&program, &arguments);
            // SAFETY: ends this process at once, without the parent's exit handlers.
            unsafe { libc::_exit(255) }
        }
        pid => Ok(pid),
    }
}

fn execute(program: &CString, arguments: &[CString]) -> nix::Result<Infallible> {
    nix::unistd::setsid()?;
    nix::unistd::execve::<_, CString>(program, arguments, &[])
}

/// The program. Ends by SIGKILL alone.
pub fn run() -> ! {
    // Its root is the agent's: not for containers that look at /proc/1.
    let _ = nix::sys::prctl::set_dumpable(false);
    let _ = nix::sys::prctl::set_name(c"pause");
    // A test's host may not give the right to lower it.
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

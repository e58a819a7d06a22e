//! Has members of the pool born.

use std::{io, path::Path, process::Stdio};

use caisson_node::{host::error::OnFile, pool};
use caisson_oci::NodeConfig;
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
};

use crate::error::{Error, Result};

/// What a member's command line ends with, as `start` and `delete` end containerd's.
pub const ACTION: &str = "member";

/// Has members born until the pool has its size, one after the other. Logs why one was not.
pub async fn fill(config: &NodeConfig) {
    for _ in 0..missing(config) {
        if let Err(error) = bear().await {
            log::info!("the pool is not full: {}", error.chain());
            return;
        }
    }
}

/// Does the same as [`fill`], but waits for none of them: the pod has ended, and so will its shim.
pub fn leave(config: &NodeConfig) {
    for _ in 0..missing(config) {
        if let Err(error) = start(Stdio::null()) {
            log::info!("the pool is not full: {}", error.chain());
        }
    }
}

fn missing(config: &NodeConfig) -> usize {
    match config.pool.size as usize {
        0 => 0,
        size => size.saturating_sub(pool::members(&config.state_dir).len()),
    }
}

/// Starts a member. It waits until no other one is being born, and ends if the pool is full then.
fn start(stderr: Stdio) -> Result<Child> {
    let program = std::env::current_exe().map_err(Error::file("find", "/proc/self/exe"))?;
    let mut command = Command::new(&program);
    command
        .args(["-id", &pool::new_id()?, ACTION])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        // A signal to this process and its group is none to the member.
        .process_group(0);
    // SAFETY: close_range is async-signal-safe, and changes nothing of the parent's.
    unsafe { command.pre_exec(keep_no_descriptors) };
    command.spawn().map_err(Error::file("start", program))
}

/// Has the descriptors of the pod's shim closed when the member's program begins.
fn keep_no_descriptors() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
    // SAFETY: takes no pointer.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts a member and waits until it is ready.
async fn bear() -> Result<()> {
    let mut child = start(Stdio::piped())?;
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        // The member closes it when it is ready.
        let read = stderr.read_to_string(&mut said).await;
        read.map_err(Error::file("read what is said by", "a new member"))?;
    }
    match said.trim() {
        "" => Ok(()),
        said => {
            let source = io::Error::other(said.to_owned());
            Err(Error::file("make a VM for", Path::new("the pool"))(source))
        }
    }
}

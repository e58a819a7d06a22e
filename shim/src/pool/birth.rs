//! Has members of the pool born.

use std::{io, path::Path, process::Stdio};

use caisson_node::{
    config,
    host::{error::OnFile, size::available_memory_mib},
    pool,
};
use caisson_oci::NodeConfig;
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
};

use crate::error::{Error, Result};

/// How much memory the node must have left for another member, in MiB.
const ROOM_MIB: u64 = 512;

/// What a member's command line ends with, as `start` and `delete` end containerd's.
pub const ACTION: &str = "member";

/// Has a member born if the pool is not full, and waits for it. Logs why there is none. Each member
/// has the next one born.
pub async fn fill(config: &NodeConfig) {
    if is_full(config) {
        return;
    }
    if let Err(error) = bear().await {
        log::info!("the pool is not full: {}", error.chain());
    }
}

/// Does the same as [`fill`], but does not wait: this process may end before.
pub fn leave(config: &NodeConfig) {
    if is_full(config) {
        return;
    }
    if let Err(error) = start(Stdio::null()) {
        log::info!("the pool is not full: {}", error.chain());
    }
}

/// Whether the pool has its size, or the node no memory for another member.
pub fn is_full(config: &NodeConfig) -> bool {
    let size = config.pool.size as usize;
    size == 0 || pool::members(&config.state_dir).len() >= size || available_memory_mib() < ROOM_MIB
}

/// Starts a member. It ends if another one is being born, or if the pool is full.
fn start(stderr: Stdio) -> Result<Child> {
    let program = std::env::current_exe().map_err(Error::file("find", "/proc/self/exe"))?;
    let mut command = Command::new(&program);
    command
        .args(["-id", &pool::new_id()?, ACTION])
        // A member is made as the node's configuration says, and may serve any pod.
        .env_remove(config::PRESET_ENV)
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

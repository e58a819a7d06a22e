//! User namespaces that are made for their mappings: no process stays in them.
//!
//! A process in one in which every id is the host's own has capabilities over files (owners, modes) since all owners are mapped, but none over the host: it can't
//! make device nodes, set `trusted.*` attributes, mount the host's filesystems or change its network.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
};

/// Makes a namespace in which every id is the host's own. Fails where the host allows none (`user.max_user_namespaces`).
pub(crate) fn identity() -> io::Result<OwnedFd> {
    with_maps(&own_map("uid_map")?, &own_map("gid_map")?)
}

/// Makes a namespace with these mappings, in the words of `/proc/<pid>/uid_map` (user_namespaces(7)).
pub fn with_maps(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    // The child lives until its end of the pipe's writer is closed by us.
    let (hold, release) = io::pipe()?;
    // SAFETY: like fork with a namespace; the child makes system calls only, then exits.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::CLONE_NEWUSER | libc::SIGCHLD,
            0,
            0,
            0,
            0,
        )
    } as libc::pid_t;
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: descriptors that this copy of the process owns; one byte on the stack.
        unsafe {
            let mut byte = 0u8;
            libc::close(release.as_raw_fd());
            libc::read(hold.as_raw_fd(), (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
    let namespace = map(pid, uid_map, gid_map);
    drop(release);
    // SAFETY: our child, which nobody else waits for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    namespace
}

fn map(pid: libc::pid_t, uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    for (name, lines) in [("uid_map", uid_map), ("gid_map", gid_map)] {
        let path = format!("/proc/{pid}/{name}");
        File::options()
            .write(true)
            .open(path)?
            .write_all(lines.as_bytes())?;
    }
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// What is mapped here, to itself: 4294967295 ids on a host, fewer in a container.
fn own_map(name: &str) -> io::Result<String> {
    let mut identity = String::new();
    for line in std::fs::read_to_string(format!("/proc/self/{name}"))?.lines() {
        let mut fields = line.split_whitespace();
        if let (Some(inside), Some(_), Some(count)) = (fields.next(), fields.next(), fields.next())
        {
            identity.push_str(&format!("{inside} {inside} {count}\n"));
        }
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_namespace_is_not_the_host_s() {
        // SAFETY: geteuid can't fail.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("skipped: needs root");
            return;
        }
        use std::os::unix::fs::MetadataExt;
        let ours = std::fs::metadata("/proc/self/ns/user").unwrap().ino();
        let made = File::from(identity().unwrap()).metadata().unwrap().ino();
        assert_ne!(made, ours);
    }
}

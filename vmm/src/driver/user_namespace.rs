//! Makes user namespaces for their mappings: no process stays in them.
//!
//! In a namespace in which every id is the host's own, all owners are mapped. So a process in it
//! has capabilities over files (owners, modes), but none over the host: it can't make device nodes,
//! set `trusted.*` attributes, mount the host's filesystems or change its network.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
};

/// Makes a namespace in which every id is the host's own. Fails if the host allows none
/// (`user.max_user_namespaces`).
pub fn identity() -> io::Result<OwnedFd> {
    with_maps(&own_map("uid_map")?, &own_map("gid_map")?)
}

/// Makes a namespace in which root is `uid` and `gid` outside and every other id is the host's own.
/// Nobody in it can be the host's root.
pub fn with_root(uid: u32, gid: u32) -> io::Result<OwnedFd> {
    let maps = [("uid_map", uid), ("gid_map", gid)];
    let [uids, gids] =
        maps.map(|(name, root)| Ok::<_, io::Error>(root_moved(&own_map(name)?, root)));
    with_maps(&uids?, &gids?)
}

/// Changes an identity mapping so that root is `root` outside.
fn root_moved(identity: &str, root: u32) -> String {
    let mut lines = format!("0 {root} 1\n");
    for line in identity.lines() {
        let mut numbers = line.split(' ').filter_map(|n| n.parse::<u64>().ok());
        let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next())
        else {
            continue;
        };
        let (end, root) = (first + count, u64::from(root));
        for (from, to) in [(first.max(1), end.min(root)), (first.max(root + 1), end)] {
            if from < to {
                lines.push_str(&format!("{from} {from} {}\n", to - from));
            }
        }
    }
    lines
}

/// Makes a namespace with these mappings, in the format of `/proc/<pid>/uid_map`
/// (user_namespaces(7)).
pub fn with_maps(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
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
        // The child lives until it is killed. It does not wait for the end of a pipe: a child that
        // another thread makes at the same time has a copy of the pipe's other end.
        // SAFETY: system calls that touch no memory.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        }
    }
    let namespace = map(pid, uid_map, gid_map);
    // SAFETY: our child, which nobody else waits for.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
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

/// Maps everything that is mapped here to itself: 4294967295 ids on a host, fewer in a container.
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
    fn root_is_another_outside_and_nobody_is_root_there() {
        let moved = "0 500 1\n1 1 499\n501 501 4294966794\n";
        assert_eq!(root_moved("0 0 4294967295\n", 500), moved);
        assert_eq!(root_moved("0 0 501\n", 500), "0 500 1\n1 1 499\n");
    }

    #[test]
    fn namespaces_that_are_made_at_once_do_not_wait_for_each_other() {
        // SAFETY: geteuid can't fail.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("skipped: needs root");
            return;
        }
        let makers = [(); 4].map(|()| {
            std::thread::spawn(|| {
                for _ in 0..100 {
                    identity().unwrap();
                }
            })
        });
        for maker in makers {
            maker.join().unwrap();
        }
    }

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

//! Starts the virtiofs daemon of a shared directory.

use std::{
    fs::{self, File},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixListener},
    },
    path::Path,
    sync::Arc,
};

use super::{
    limits::Limits,
    placement,
    process::Child,
    spawn::{Confinement, Program, FIRST_DESCRIPTOR},
};
use crate::{Error, Exclusive, Result, VmSpec};

/// Who changes a shared directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    /// Not the guest.
    pub read_only: bool,
    /// What of it the guest alone.
    pub exclusive: Exclusive,
}

/// Starts a daemon that serves `shared` and nothing else. Returns our end of its vhost-user
/// connection.
///
/// The daemon is root of `user_namespace`, and so has no rights over the host.
pub(crate) async fn start(
    virtiofsd: &Path,
    vm: &VmSpec,
    tag: &str,
    shared: &Path,
    access: Access,
    user_namespace: Arc<OwnedFd>,
) -> Result<(Child, OwnedFd)> {
    let cwd = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(shared)
        .map_err(|source| Error::File {
            what: "open shared directory",
            path: shared.to_owned(),
            source,
        })?;
    let (listener, connection) = connected_pair(&vm.dir)?;
    let cache = match access.exclusive {
        Exclusive::Everything => "always",
        Exclusive::Nothing | Exclusive::Mounts(_) => "auto",
    };
    let mut arguments = vec![
        format!("--fd={FIRST_DESCRIPTOR}"),
        // The directory is passed as the working directory: no path reaches the daemon, and the
        // directory can't be swapped meanwhile.
        "--shared-dir=.".to_owned(),
        "--sandbox=namespace".to_owned(),
        "--seccomp=kill".to_owned(),
        // Handles need CAP_DAC_READ_SEARCH, with which any file of the filesystem can be opened.
        "--inode-file-handles=never".to_owned(),
        // A guest's device nodes do not belong in the host's filesystem. In the user namespace the
        // capability would have no effect anyway. Overlayfs's whiteouts need no capability.
        "--modcaps=-mknod".to_owned(),
        "--xattr".to_owned(),
        // The guest's kernel obeys ACLs; the host's file system gives them to what is made in a
        // folder with a default ACL, and applies the umask in any other.
        "--posix-acl".to_owned(),
        // Root in a guest may have trusted attributes, which an overlay over a volume needs. The
        // host's own ones require a capability.
        "--xattrmap=:map:trusted.:user.virtiofs.:".to_owned(),
        format!("--cache={cache}"),
        "--log-level=warn".to_owned(),
        format!("--rlimit-nofile={}", max_open_files()),
    ];
    if let Exclusive::Mounts(prefix) = access.exclusive {
        arguments.push(format!("--exclusive-mounts={prefix}"));
    }
    if access.read_only {
        arguments.push("--readonly".to_owned());
    }
    let child = Child::start(Program {
        role: format!("virtiofsd-{tag}"),
        path: virtiofsd.to_owned(),
        arguments,
        descriptors: vec![listener.into()],
        confinement: Confinement::Itself {
            cwd: cwd.into(),
            user_namespace,
        },
        placement: vm.placement.clone(),
        limits: Limits::virtiofsd(max_open_files()),
    })
    .await?;
    Ok((child, connection))
}

/// Makes a listening socket and a connection that waits in its queue. `socket_dir` must be ours
/// alone. The socket file is gone when this returns.
fn connected_pair(socket_dir: &Path) -> Result<(UnixListener, OwnedFd)> {
    let failed = |e| Error::Io("make a vhost-user socket", e);
    let dir = File::open(socket_dir).map_err(failed)?;
    // Through the descriptor, since a socket's path has at most 107 bytes (unix(7)).
    let path = format!("/proc/self/fd/{}/fs-{}", dir.as_raw_fd(), dir.as_raw_fd());
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let connection = std::os::unix::net::UnixStream::connect(&path).map_err(failed);
    std::fs::remove_file(&path).map_err(failed)?;
    Ok((listener, connection?.into()))
}

/// Returns how many files a daemon has open. 0 if it has ended.
pub(crate) fn open_files(daemon: &Child) -> u64 {
    let pids = placement::family(daemon.pid()).into_iter();
    pids.map(descriptors).max().unwrap_or(0)
}

/// Returns how many descriptors a process has. From Linux 6.2 on, the size of the folder says so.
fn descriptors(pid: u32) -> u64 {
    let folder = format!("/proc/{pid}/fd");
    let size = fs::metadata(&folder).map_or(0, |folder| folder.len());
    match size {
        0 => fs::read_dir(&folder).map_or(0, |entries| entries.count() as u64),
        _ => size,
    }
}

/// The number of files of a shared directory that its daemon can have open, and so that the guest
/// can know at a time.
///
/// It is the limit of this process. With the capability to raise that, it is a million.
pub fn max_open_files() -> u64 {
    const WANTED: libc::rlim_t = 1_000_000;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a struct to write to, and one to read from.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        if limit.rlim_max < WANTED {
            let raised = libc::rlimit {
                rlim_max: WANTED,
                ..limit
            };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 {
                limit = raised;
            }
        }
    }
    limit.rlim_max.min(WANTED)
}

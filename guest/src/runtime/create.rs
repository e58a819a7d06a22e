//! Makes a container with libcontainer.

use std::{
    fs,
    io::IoSliceMut,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use caisson_protocol::path::SHARES;
use libcontainer::{container::builder::ContainerBuilder, syscall::syscall::SyscallType};
use nix::{
    cmsg_space,
    errno::Errno,
    fcntl::OFlag,
    sys::{
        socket::{recvmsg, ControlMessageOwned, MsgFlags, UnixAddr},
        stat::Mode,
    },
};
use oci_spec::runtime::Spec;
use pathrs::Root;

use super::{
    descriptors, device_filter,
    error::{Error, Result},
    executor::Init,
    program, report,
    spec::{self, Filled, Known},
    task::{Descriptor, Made, SPEC_FILE},
    users,
};
use crate::kernel::tty;

const CONSOLE_SOCKET: &str = "console.sock";

/// Creates the container. Its init then waits for the start.
pub fn run(
    id: &str,
    bundle: &Path,
    state: &Path,
    known: &Known<'_>,
    descriptors: &[Descriptor],
) -> Result<Made> {
    let given: Spec = spec::read(&bundle.join(SPEC_FILE), "config.json")?;
    let Filled {
        spec,
        process,
        rules,
    } = spec::fill(given, known)?;
    let root = spec
        .root()
        .as_ref()
        .ok_or(Error::Missing { field: "root" })?;
    let rootfs = root.path().clone();
    fs::metadata(&rootfs).map_err(Error::file("open root", &rootfs))?;
    cross_mounts(&spec);
    let open = descriptors::open(descriptors)?;
    spec::oom_score_adj(process.oom_score_adj())?;
    own_stdio(users::uid(&spec, process.user().uid()));
    make_cwd(&spec, &rootfs, process.cwd());
    let config = bundle.join("config.json");
    spec.save(&config)
        .map_err(|error| Error::file("write", &config)(std::io::Error::other(error)))?;

    let console = match process.terminal() {
        Some(true) => Some(listen(bundle)?),
        _ => None,
    };
    let (cwd, size) = (process.cwd().clone(), process.console_size());
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().clone());
    let mut devices = resources
        .and_then(|resources| resources.devices().clone())
        .unwrap_or_default();
    devices.extend(rules);
    let terminal = console.as_ref().map(|_| bundle.join(CONSOLE_SOCKET));
    let container = ContainerBuilder::new(id.to_string(), SyscallType::default())
        .with_executor(Init { process })
        .with_console_socket(terminal)
        .with_preserved_fds(open)
        .with_root_path(state)
        .and_then(|builder| {
            let builder = builder.as_init(bundle).with_systemd(false);
            builder.build()
        })
        .map_err(|error| explain_cwd(error, &cwd))?;
    // The nodes are made, and the program does not run yet.
    let below = known.cgroup.strip_prefix("/").unwrap_or(known.cgroup);
    device_filter::attach(&Path::new(crate::cgroup::MOUNT_POINT).join(below), &devices)?;
    let terminal = console.map(accept).transpose()?;
    if let (Some(terminal), Some(size)) = (&terminal, size) {
        tty::resize(terminal, size.width() as u16, size.height() as u16)
            .map_err(Error::system("set the size of the terminal"))?;
    }
    Ok(Made {
        pid: container.pid().map(|pid| pid.as_raw()),
        terminal,
    })
}

/// Mounts the sources of the bind mounts in the agent's mount namespace, of which containers get
/// copies.
///
/// Something that the host mounted below a share becomes a mount of its own when a path first
/// crosses it. If that happened in a container's namespace, the mount would belong to that
/// container alone and have inodes of its own, so other containers would not see the same sockets
/// and locks.
fn cross_mounts(spec: &Spec) {
    for source in spec
        .mounts()
        .iter()
        .flatten()
        .filter_map(|m| m.source().as_ref())
    {
        if source.starts_with(SHARES) {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            // Opening a file mounts nothing here. If the source does not exist, mounting it fails
            // later.
            let _ = nix::fcntl::open(source, flags, Mode::empty());
        }
    }
}

/// Explains why a directory can't be entered: libcontainer only says that a call failed.
fn explain_cwd(error: libcontainer::error::LibcontainerError, cwd: &Path) -> Error {
    let error = Error::Create(error);
    let text = report::explain(&error);
    let errno = [Errno::ENOENT, Errno::ENOTDIR, Errno::EACCES]
        .into_iter()
        .find(|errno| text.contains(&format!("failed to chdir e={errno:?}")));
    match errno {
        Some(errno) => Error::Process(program::no_dir(cwd, errno)),
        None => error,
    }
}

/// Gives pipes to the process' user, who may open them again as /dev/stdout. `uid` is the number in
/// the guest.
pub fn own_stdio(uid: u32) {
    for fd in 0..3 {
        // SAFETY: `stat` is plain data for which zeros are valid, and the kernel fills it.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` lives through the call; a closed descriptor is an error, and the second
        // call is then skipped.
        unsafe {
            if libc::fstat(fd, &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFIFO {
                // If this fails, the pipe keeps its owner and can still be written to.
                let _ = libc::fchown(fd, uid, libc::gid_t::MAX);
            }
        }
    }
}

/// Makes the process' directory if it does not exist, as runc does. If that fails, entering the
/// directory reports it.
fn make_cwd(spec: &Spec, rootfs: &Path, cwd: &Path) {
    // Finds the mount that holds the directory. A bind mount shows its source; other mounts start
    // empty and are not looked into.
    let mounts = spec.mounts().iter().flatten();
    let mount = mounts
        .filter(|mount| cwd.starts_with(mount.destination()))
        .max_by_key(|mount| mount.destination().as_os_str().len());
    let (base, rest): (PathBuf, &Path) = match mount {
        None => (rootfs.to_path_buf(), cwd),
        Some(mount) => {
            let bind = mount
                .options()
                .iter()
                .flatten()
                .any(|option| matches!(option.as_str(), "bind" | "rbind"))
                || mount.typ().as_deref() == Some("bind");
            match (mount.source(), cwd.strip_prefix(mount.destination())) {
                (Some(source), Ok(rest)) if bind => (source.clone(), rest),
                _ => return,
            }
        }
    };
    if rest.as_os_str().is_empty() || rest == Path::new("/") {
        return;
    }
    let mode = fs::Permissions::from_mode(0o755);
    // Links are resolved inside the root, wherever they point.
    let _ = Root::open(base).and_then(|root| root.mkdir_all(rest, &mode));
}

/// Listens on a console socket in the bundle, whose path may be too long for a socket's address.
fn listen(bundle: &Path) -> Result<UnixListener> {
    let path = bundle.join(CONSOLE_SOCKET);
    nix::unistd::chdir(bundle).map_err(Error::file("enter", bundle))?;
    let listener = UnixListener::bind(CONSOLE_SOCKET).map_err(Error::file("listen on", path));
    nix::unistd::chdir("/").map_err(Error::file("enter", "/"))?;
    listener
}

/// Returns the master of the terminal, which the container's init has sent by now.
fn accept(listener: UnixListener) -> Result<OwnedFd> {
    let what = "receive the terminal";
    let (connection, _) = listener.accept().map_err(Error::system(what))?;
    let mut name = [0; 64];
    let mut parts = [IoSliceMut::new(&mut name)];
    let mut space = cmsg_space!([RawFd; 1]);
    let message = recvmsg::<UnixAddr>(
        connection.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .map_err(Error::system(what))?;
    for part in message.cmsgs().map_err(Error::system(what))? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            if let Some(fd) = fds.first() {
                // SAFETY: recvmsg(2) just returned this descriptor, and nothing else owns it.
                return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
            }
        }
    }
    Err(Error::system(what)(std::io::Error::from(
        std::io::ErrorKind::UnexpectedEof,
    )))
}

//! Runs the daemon `vhost-device-vsock`, for hosts without `/dev/vhost-vsock`.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{chown, DirBuilderExt, FileTypeExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::UnixListener,
    time::{sleep, Instant},
};

use super::{address, ports::READY_PORT, seccomp};
use crate::{
    driver::{
        jail::Jail,
        limits::Limits,
        process::Child,
        spawn::{Confinement, Program},
    },
    Credentials, Error, Result, VmSpec,
};

/// The time limit for the daemon to make its sockets.
const START_LIMIT: Duration = Duration::from_secs(10);
/// The name of the daemon's vhost-user socket, in its directory.
const VHOST_SOCKET: &str = "vhost";
/// The name of the daemon's socket for connections to the guest, in its directory.
pub(super) const HOST_SOCKET: &str = "host";

/// The daemon, and how it is reached.
pub(super) struct Started {
    pub child: Child,
    /// Its directory, in which [`open_host_socket`] finds it.
    pub dir: Arc<OwnedFd>,
    /// Our end of its vhost-user connection.
    pub vhost: OwnedFd,
    /// Takes the guest's connections to [`READY_PORT`].
    pub listener: UnixListener,
}

/// Starts the daemon in a directory of its own below `vm_dir`.
pub(super) async fn start(daemon: &Path, spec: &VmSpec) -> Result<Started> {
    let (vm_dir, credentials) = (&spec.dir, spec.credentials);
    let dir = vm_dir.join("vsock");
    let failed = |what: &'static str| {
        let path = dir.clone();
        move |source| Error::File { what, path, source }
    };
    let mut builder = std::fs::DirBuilder::new();
    builder
        .mode(0o700)
        .create(&dir)
        .and_then(|()| chown(&dir, Some(credentials.uid), Some(credentials.gid)))
        .map_err(failed("make"))?;
    let opened = File::open(&dir).map_err(failed("open"))?;
    let prepare = || -> io::Result<Program> {
        let mut jail = Jail::new(vm_dir, credentials)?;
        let path = jail.program(daemon)?;
        jail.work_in(&dir, Path::new("run"))?;
        jail.seccomp(seccomp::filter().map_err(io::Error::other)?);
        let cid = address::draw()?;
        Ok(Program {
            role: "vsock".to_owned(),
            path,
            // Fixed relative names, because the daemon's option parser interprets commas and equals
            // signs, and a socket's path has at most 107 bytes.
            arguments: vec![
                "--vm".to_owned(),
                format!("guest-cid={cid},socket={VHOST_SOCKET},uds-path={HOST_SOCKET}"),
            ],
            descriptors: Vec::new(),
            confinement: Confinement::Jail(jail),
            placement: spec.placement.clone(),
            limits: Limits::vsock(),
        })
    };
    let program = prepare().map_err(|source| Error::File {
        what: "confine",
        path: daemon.to_owned(),
        source,
    })?;
    let listener = listen_ready(&opened, credentials).map_err(failed("listen in"))?;
    let child = Child::start(program).await?;
    let dir = Arc::new(OwnedFd::from(opened));
    let vhost = child.unless_it_ends(open_vhost_socket(&dir)).await?;
    Ok(Started {
        child,
        dir,
        vhost,
        listener,
    })
}

/// Listens on the socket to which the daemon carries connections to [`READY_PORT`].
fn listen_ready(dir: &File, credentials: Credentials) -> io::Result<UnixListener> {
    let path = format!(
        "/proc/self/fd/{}/{HOST_SOCKET}_{READY_PORT}",
        dir.as_raw_fd()
    );
    let listener = UnixListener::bind(&path)?;
    chown(&path, Some(credentials.uid), Some(credentials.gid))?;
    Ok(listener)
}

async fn open_vhost_socket(dir: &OwnedFd) -> Result<OwnedFd> {
    let end = Instant::now() + START_LIMIT;
    loop {
        match open_socket(dir, VHOST_SOCKET) {
            Ok(stream) => return Ok(stream.into()),
            Err(_) if Instant::now() < end => sleep(Duration::from_millis(1)).await,
            Err(e) => return Err(Error::Io("connect to the vsock daemon", e)),
        }
    }
}

/// Connects to the daemon's socket for connections to the guest.
pub(super) fn open_host_socket(dir: &OwnedFd) -> io::Result<UnixStream> {
    let stream = open_socket(dir, HOST_SOCKET)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Connects to a socket in the daemon's directory. The daemon owns the directory and may be
/// controlled by the guest by now, so no symbolic link is followed.
fn open_socket(dir: &OwnedFd, name: &str) -> io::Result<UnixStream> {
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    let socket = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    if !socket.metadata()?.file_type().is_socket() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()))
}

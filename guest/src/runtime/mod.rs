//! The agent re-executed: a single-threaded process that makes one container or one process in a
//! container.
//!
//! libcontainer clones, changes directory and drops rights, which a process with threads must not
//! do. So the agent ([`crate::launch`]) starts `/proc/self/exe runtime <verb>` for each such task.
//! Descriptor 0 of this process is a socket. It receives one [`Request`] with the container's
//! stdin, stdout and stderr, and sends one [`Answer`], with the master of the terminal if there is
//! one. The processes that it makes become children of PID 1 when it ends.

mod create;
pub mod descriptors;
mod device_filter;
mod disks;
mod exec;
mod executor;
pub mod nodes;
mod program;
mod report;
mod spec;
mod update;
mod users;
pub mod wire;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
};

use nix::{
    fcntl::{fcntl, FcntlArg},
    sys::signal::{signal, SigHandler, SigSet, SigmaskHow, Signal},
};
use serde::{Deserialize, Serialize};

/// The name of a bundle's spec as the host sent it. libcontainer gets the changed spec under the
/// name `config.json`.
pub const SPEC_FILE: &str = "spec.json";

/// The task.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Makes a container from [`SPEC_FILE`] in `bundle`, up to the point before its program is
    /// executed.
    Create {
        id: String,
        bundle: PathBuf,
        /// libcontainer keeps its state in `state/id`.
        state: PathBuf,
        cgroup: PathBuf,
        /// The process in the pod's own pid and user namespaces, if the container is to join one of
        /// them.
        pod: Option<i32>,
        disks: Vec<nodes::DiskNode>,
        /// Whether the container gets all device nodes of the guest.
        guest_devices: bool,
        descriptors: Vec<descriptors::Descriptor>,
    },
    /// Makes a pid namespace with [`crate::pause`] as its init. It is in a user namespace of its
    /// own if there are users.
    Pause { users: Option<crate::pause::Users> },
    /// Starts a process in the container with this bundle and init.
    Exec {
        bundle: PathBuf,
        /// The file with the OCI `process` object.
        process: PathBuf,
        init: i32,
        /// The directory of the container's cgroup.
        cgroup: PathBuf,
        descriptors: Vec<descriptors::Descriptor>,
    },
    /// Applies limits from a file with the OCI `linux.resources` object.
    Update { cgroup: PathBuf, resources: PathBuf },
    /// Shows a disk, which is mounted in the guest, at a path of an existing container, or hides it
    /// again.
    Disk {
        init: i32,
        disk: PathBuf,
        target: PathBuf,
        shown: bool,
    },
    /// For tests on the host: mounts a directory, as the process `from` sees it, at `to`.
    Graft {
        from: i32,
        source: PathBuf,
        to: PathBuf,
        read_only: bool,
    },
}

impl Request {
    /// Returns the word on the command line, which helps people who look at processes.
    pub fn verb(&self) -> &'static str {
        match self {
            Request::Create { .. } => "create",
            Request::Pause { .. } => "pause",
            Request::Exec { .. } => "exec",
            Request::Update { .. } => "update",
            Request::Disk { .. } => "disk",
            Request::Graft { .. } => "graft",
        }
    }
}

/// The result of a task.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The task is done. `pid` is that of the new process, if there is one.
    Done { pid: Option<i32> },
    /// The task failed. The message has all causes.
    Failed { message: String },
}

/// A failed task. Its text goes to the host.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not valid")]
    Parse {
        path: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("config.json: {field} is missing")]
    Missing { field: &'static str },
    #[error("open secret {origin}")]
    Descriptor {
        origin: String,
        #[source]
        source: io::Error,
    },
    #[error("disk {serial} is not there")]
    Disk { serial: String },
    #[error("create container")]
    Create(#[source] libcontainer::error::LibcontainerError),
    #[error("cgroup {}: {message}", path.display())]
    Cgroup { path: PathBuf, message: String },
    #[error("{call}")]
    System {
        call: &'static str,
        #[source]
        source: io::Error,
    },
    /// A failure that the new process itself reports, in the words of runc.
    #[error("{0}")]
    Process(String),
}

type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Error {
        let path = path.into();
        move |source| Error::File {
            action,
            path,
            source: source.into(),
        }
    }

    fn system<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::System {
            call,
            source: source.into(),
        }
    }
}

/// Runs the program `caisson-agent runtime <verb>`.
pub fn run() -> ExitCode {
    // Without a socket, the program was called by hand.
    let Ok((socket, request, stdio)) = take_over() else {
        eprintln!("caisson-agent runtime is for the agent only");
        return ExitCode::from(2);
    };
    report::start();
    let done = match request {
        Request::Create {
            id,
            bundle,
            state,
            cgroup,
            pod,
            disks,
            guest_devices,
            descriptors,
        } => stdio_from(stdio).and_then(|()| {
            let wanted = create::Wanted {
                pod,
                disks: &disks,
                guest_devices,
                descriptors: &descriptors,
            };
            create::run(&id, &bundle, &state, &cgroup, &wanted)
        }),
        Request::Pause { users } => stdio_from(stdio).and_then(|()| {
            let pid = crate::pause::start(users.as_ref())
                .map_err(Error::system("make the pod's namespaces"))?;
            Ok(Made {
                pid: Some(pid),
                terminal: None,
            })
        }),
        Request::Exec {
            bundle,
            process,
            init,
            cgroup,
            descriptors,
        } => stdio_from(stdio)
            .and_then(|()| exec::run(&bundle, &process, init, &cgroup, &descriptors)),
        Request::Update { cgroup, resources } => update::run(&cgroup, &resources),
        Request::Disk {
            init,
            disk,
            target,
            shown: true,
        } => disks::show(init, &disk, &target),
        Request::Disk {
            init, disk, target, ..
        } => disks::hide(init, &disk, &target),
        Request::Graft {
            from,
            source,
            to,
            read_only,
        } => update::graft(from, &source, &to, read_only),
    };
    let (answer, terminal) = match done {
        Ok(Made { pid, terminal }) => (Answer::Done { pid }, terminal),
        Err(error) => (
            Answer::Failed {
                message: report::explain(&error),
            },
            None,
        ),
    };
    let sent = serde_json::to_vec(&answer)
        .map_err(io::Error::other)
        .and_then(|text| wire::send(socket.as_fd(), &text, terminal.iter().map(|fd| fd.as_fd())));
    match sent {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A new process and its terminal.
struct Made {
    pid: Option<i32>,
    terminal: Option<OwnedFd>,
}

fn take_over() -> io::Result<(OwnedFd, Request, Vec<OwnedFd>)> {
    let socket = fcntl(io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(descriptors::OWN))?;
    // SAFETY: fcntl(2) just returned this descriptor, and nothing else owns it.
    let socket = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(socket) };
    let (text, stdio) = wire::receive(socket.as_fd())?;
    let request = serde_json::from_slice(&text)?;
    // Containers must not inherit that Rust ignores SIGPIPE, nor the signal mask and the groups of
    // this process.
    // SAFETY: SIG_DFL is no handler.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    nix::unistd::setgroups(&[])?;
    Ok((socket, request, stdio))
}

/// Makes three descriptors 0 to 2. If there are fewer than three, the rest are /dev/null.
fn stdio_from(stdio: Vec<OwnedFd>) -> Result<()> {
    let failed = || Error::system("set up stdio");
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(Error::file("open", "/dev/null"))?;
    let null = OwnedFd::from(null);
    for number in 0..3 {
        let fd = stdio.get(number as usize).unwrap_or(&null);
        // SAFETY: both are open or free descriptors of this single-threaded process; 0 to 2 belong
        // to no value here.
        if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
            return Err(failed()(io::Error::last_os_error()));
        }
    }
    Ok(())
}

//! The agent re-executed: a single-threaded process that makes one container or one process in a
//! container.
//!
//! libcontainer clones, changes directory and drops rights, which a process with threads must not
//! do. So the agent ([`crate::launch`]) starts `/proc/self/exe runtime` for each such task.
//! Descriptor 0 of this process is a socket. It receives one [`task::Request`] with the container's
//! stdin, stdout and stderr, and sends one [`task::Answer`], with the master of the terminal if
//! there is one. The processes that it makes become children of PID 1 when it ends.

mod create;
mod descriptors;
mod device_filter;
mod error;
mod exec;
mod executor;
mod nodes;
mod program;
mod report;
mod show;
mod spec;
pub mod task;
mod update;
mod users;
pub mod wire;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::ExitCode,
};

use nix::{
    fcntl::{fcntl, FcntlArg},
    sys::signal::{signal, SigHandler, SigSet, SigmaskHow, Signal},
};

use self::{
    error::{Error, Result},
    task::{Answer, Made, Request},
};

/// Runs the program `caisson-agent runtime`.
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
            pid_namespace,
            user_namespace,
            disks,
            guest_devices,
            descriptors,
        } => stdio_from(stdio).and_then(|()| {
            let known = spec::Known {
                cgroup: &cgroup,
                pid_namespace: pid_namespace.as_deref(),
                user_namespace: user_namespace.as_deref(),
                disks: &disks,
                guest_devices,
            };
            create::run(&id, &bundle, &state, &known, &descriptors)
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
        Request::Show {
            init,
            source,
            target,
            read_only,
            shown: true,
        } => show::show(init, &source, &target, read_only),
        Request::Show {
            init,
            source,
            target,
            ..
        } => show::hide(init, &source, &target),
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

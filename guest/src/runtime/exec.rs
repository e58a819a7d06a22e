//! Starts a process in a running container.
//!
//! libcontainer's `exec` is not used, since it leaves out the container's seccomp filter. The order
//! of the steps is that of libcontainer's init (and of runc's): namespaces, session, terminal,
//! limits, user, capabilities, filter, program. The cgroup comes last, so that the container does
//! not pay for the steps before: with a small limit of cpu time they would take a minute.
//!
//! ```text
//!   this process: score, namespaces --fork--> the new one: terminal ... cgroup, execve
//!        `---------- pipe: its failure in words, or its end at execve <-----------'
//! ```

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use libcontainer::{
    capabilities,
    seccomp::initialize_seccomp,
    syscall::{syscall::create_syscall, Syscall},
};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sched::{setns, CloneFlags},
    sys::stat::Mode,
    unistd::{pipe2, Gid, Uid},
};
use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, Process, Spec};

use super::{
    create, descriptors,
    error::{Error, Result},
    program, spec,
    task::{Descriptor, Made, SPEC_FILE},
    users, wire,
};

/// Starts the process, and returns when its program runs.
pub fn run(
    bundle: &Path,
    process: &Path,
    init: i32,
    cgroup: &Path,
    descriptors: &[Descriptor],
) -> Result<Made> {
    let open = descriptors::open(descriptors)?;
    let container: Spec = spec::read(&bundle.join(SPEC_FILE), "config.json")?;
    let process: Process = spec::read(process, "process")?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::Missing {
            field: "process.args",
        });
    }
    let own = container.process().as_ref();
    let seccomp = container
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().clone());
    create::own_stdio(users::uid(&container, process.user().uid()));
    spec::oom_score_adj(own.and_then(|own| own.oom_score_adj()))?;
    // Before the execve, other processes of the container must not see the guest's things through
    // this process.
    nix::sys::prctl::set_dumpable(false).map_err(Error::system("become undumpable"))?;
    let cgroups = open_cgroups(cgroup, init)?;
    join_namespaces(&container, init)?;

    let (mut failure, told) = pipe2(OFlag::O_CLOEXEC)
        .map(|(read, write)| (File::from(read), File::from(write)))
        .map_err(Error::system("make a pipe"))?;
    let (near, far) = wire::pair().map_err(Error::system("make a socket pair"))?;
    // SAFETY: this process has one thread.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(Error::system("fork")(std::io::Error::last_os_error())),
        0 => {
            drop((failure, near));
            let message = match enter(&process, seccomp.as_ref(), &cgroups, far, open) {
                Ok(never) => match never {},
                Err(message) => message,
            };
            // If the message is lost, the parent takes the end of the pipe for a start, and the
            // exit status tells of the failure.
            let _ = (&told).write_all(message.as_bytes());
            // SAFETY: ends this process at once, without the parent's exit handlers.
            unsafe { libc::_exit(255) }
        }
        pid => pid,
    };
    drop((told, far, cgroups));
    let mut message = String::new();
    let read = failure.read_to_string(&mut message);
    read.map_err(Error::system("wait for the process"))?;
    if !message.is_empty() {
        return Err(Error::Process(message));
    }
    let terminal = match process.terminal() {
        Some(true) => wire::receive(near.as_fd())
            .map_err(Error::system("receive the terminal"))?
            .1
            .pop(),
        _ => None,
    };
    Ok(Made {
        pid: Some(pid),
        terminal,
    })
}

/// Opens the files by which a process joins the container's cgroup or, if the container has divided
/// its own further, that of its init.
fn open_cgroups(cgroup: &Path, init: i32) -> Result<Vec<File>> {
    let path = format!("/proc/{init}/cgroup");
    let text = fs::read_to_string(&path).map_err(Error::file("read", path))?;
    let of_init = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let of_init = Path::new(crate::cgroup::MOUNT_POINT).join(of_init.unwrap_or_default());
    let mut folders = vec![cgroup];
    if of_init != cgroup {
        folders.push(&of_init);
    }
    let procs = folders.iter().map(|folder| folder.join("cgroup.procs"));
    procs
        .map(|path| {
            let file = File::options().write(true).open(&path);
            file.map_err(Error::file("open", path))
        })
        .collect()
}

/// Joins the first of the cgroups that takes a process.
fn join_cgroup(cgroups: &[File]) -> std::io::Result<()> {
    for mut cgroup in cgroups {
        match cgroup.write_all(b"0") {
            // A cgroup that is divided further has no processes (kernel, cgroup-v2.rst).
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            joined => return joined,
        }
    }
    Err(std::io::ErrorKind::ResourceBusy.into())
}

/// Whether a process may call write(2) under a filter.
fn allows_write(filter: &LinuxSeccomp) -> bool {
    let allowed = |action| action == LinuxSeccompAction::ScmpActAllow;
    let rules = filter.syscalls().iter().flatten();
    let mut of_write = rules.filter(|rule| rule.names().iter().any(|name| name == "write"));
    match of_write.next() {
        Some(rule) => allowed(rule.action()),
        None => allowed(filter.default_action()),
    }
}

/// Enters those namespaces that the container does not share with the guest. A new pid namespace
/// applies only to processes that are forked afterwards.
fn join_namespaces(container: &Spec, init: i32) -> Result<()> {
    let mut flags = CloneFlags::empty();
    let namespaces = container
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().clone());
    for namespace in namespaces.unwrap_or_default() {
        flags |= match namespace.typ() {
            LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
            LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
            LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
            LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
            LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
            LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
            LinuxNamespaceType::Time => CloneFlags::from_bits_retain(libc::CLONE_NEWTIME),
        };
    }
    // SAFETY: plain numbers; the result is checked.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, init, 0) };
    let pidfd = Errno::result(pidfd).map_err(Error::system("find the container's init"))?;
    // SAFETY: pidfd_open(2) just returned this descriptor, and nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as RawFd) };
    if flags.is_empty() {
        return Ok(());
    }
    let failed = || Error::system("enter the container's namespaces");
    setns(&pidfd, flags).map_err(failed())?;
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        // The outside number of root stands for no user in the new namespace.
        nix::unistd::setresgid(0.into(), 0.into(), 0.into()).map_err(failed())?;
        nix::unistd::setresuid(0.into(), 0.into(), 0.into()).map_err(failed())?;
    }
    Ok(())
}

/// Carries out the steps from the fork to the program. The program gets `open` descriptors beside
/// the first three. Errors are in the words of runc.
fn enter(
    process: &Process,
    seccomp: Option<&LinuxSeccomp>,
    cgroups: &[File],
    console: OwnedFd,
    open: i32,
) -> std::result::Result<std::convert::Infallible, String> {
    let failed =
        |what: &'static str| move |error: Errno| format!("{what}: {}", program::words(error));
    let syscall = create_syscall();
    nix::unistd::setsid().map_err(failed("start a session"))?;
    if process.terminal() == Some(true) {
        open_terminal(process, console).map_err(|error| format!("open a terminal: {error}"))?;
    }
    for rlimit in process.rlimits().iter().flatten() {
        syscall
            .set_rlimit(rlimit)
            .map_err(|error| format!("set {:?}: {error}", rlimit.typ()))?;
    }
    if let Some(umask) = process.user().umask() {
        nix::sys::stat::umask(Mode::from_bits_truncate(umask));
    }
    let no_new_privileges = process.no_new_privileges() == Some(true);
    if no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(failed("set no_new_privs"))?;
    }
    // Tried as root first: the user may not be allowed to enter a directory that the image's author
    // chose.
    let cwd = process.cwd();
    let again = match program::change_dir(cwd) {
        Ok(()) => false,
        Err(Errno::EPERM | Errno::EACCES) => true,
        Err(error) => return Err(program::no_dir(cwd, error)),
    };
    let join =
        || join_cgroup(cgroups).map_err(|error| format!("join the container's cgroup: {error}"));
    let may_write = seccomp.is_none_or(allows_write);
    if !may_write {
        join()?;
    }
    become_user(process, syscall.as_ref())?;
    if let (Some(seccomp), false) = (seccomp, no_new_privileges) {
        // Needs a capability that is dropped next.
        initialize_seccomp(seccomp).map_err(|error| crate::error::chain(&error))?;
    }
    drop_capabilities(process, syscall.as_ref())
        .map_err(|error| format!("drop capabilities: {error}"))?;
    if again {
        program::change_dir(cwd).map_err(|error| program::no_dir(cwd, error))?;
    }
    // Fails for a directory outside the container's root.
    nix::unistd::getcwd().map_err(|error| program::no_dir(cwd, error))?;
    if let (Some(seccomp), true) = (seccomp, no_new_privileges) {
        initialize_seccomp(seccomp).map_err(|error| crate::error::chain(&error))?;
    }
    if may_write {
        join()?;
    }
    syscall
        .close_range(open)
        .map_err(|error| format!("close descriptors: {error}"))?;
    program::execute(process)
}

fn become_user(process: &Process, syscall: &dyn Syscall) -> std::result::Result<(), String> {
    let user = process.user();
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    nix::unistd::setgroups(&groups)
        .map_err(|error| format!("set additional groups: {}", program::words(error)))?;
    let failed = |error| format!("become user {}: {}", user.uid(), program::words(error));
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    // The capabilities are set one by one afterwards.
    nix::sys::prctl::set_keepcaps(true).map_err(failed)?;
    nix::unistd::setresgid(gid, gid, gid).map_err(failed)?;
    nix::unistd::setresuid(uid, uid, uid).map_err(failed)?;
    capabilities::reset_effective(syscall).map_err(|error| format!("keep capabilities: {error}"))
}

fn drop_capabilities(
    process: &Process,
    syscall: &dyn Syscall,
) -> std::result::Result<(), libcontainer::syscall::SyscallError> {
    capabilities::reset_effective(syscall)?;
    match process.capabilities() {
        Some(sets) => capabilities::drop_privileges(sets, syscall),
        None => Ok(()),
    }
}

/// Opens a terminal of the container's devpts, makes it the terminal of this session, and sends its
/// master to the parent process.
fn open_terminal(process: &Process, console: OwnedFd) -> std::io::Result<()> {
    let pair = nix::pty::openpty(None, None)?;
    if let Some(size) = process.console_size() {
        crate::kernel::tty::resize(&pair.master, size.width() as u16, size.height() as u16)?;
    }
    let slave = pair.slave.as_raw_fd();
    std::os::unix::fs::fchown(&pair.slave, Some(process.user().uid()), None)?;
    wire::send(
        console.as_fd(),
        b"terminal",
        [pair.master.as_fd()].into_iter(),
    )?;
    // SAFETY: takes a number; makes this the terminal of the new session.
    Errno::result(unsafe { libc::ioctl(slave, libc::TIOCSCTTY, 0) })?;
    for number in 0..3 {
        // SAFETY: open descriptors of this single-threaded process; 0 to 2 belong to no value.
        Errno::result(unsafe { libc::dup2(slave, number) })?;
    }
    Ok(())
}

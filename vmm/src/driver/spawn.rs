//! Runs the steps from fork to exec: a child becomes a [`Program`], in its place and confined, or
//! reports which step failed.
//!
//! The child of a process with threads can't allocate, so everything is prepared before the fork.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::unix::pipe};

use super::{
    jail::{check, Jail, Step},
    limits::Limits,
    placement::Opened,
};
use crate::{Error, Placement, Result};

/// The number of the first of [`Program::descriptors`] in the child.
pub(crate) const FIRST_DESCRIPTOR: RawFd = 3;
/// From linux/sched.h. libc's constant is an `int`, in which it is 0.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// The time limit from fork to exec. On a busy host, a mount or two may take a while.
const EXEC_LIMIT: Duration = Duration::from_secs(20);

/// A program to run.
#[derive(Debug)]
pub(crate) struct Program {
    /// See [`crate::Vm::pids`].
    pub role: String,
    /// The path that the child sees once it is confined.
    pub path: PathBuf,
    /// The arguments, without the program's name.
    pub arguments: Vec<String>,
    /// These become [`FIRST_DESCRIPTOR`] and up. The child has no other descriptors, except a log
    /// as its stdout and stderr.
    pub descriptors: Vec<OwnedFd>,
    pub confinement: Confinement,
    pub placement: Placement,
    pub limits: Limits,
}

/// The confinement of a child.
#[derive(Debug)]
pub(crate) enum Confinement {
    /// A jail, in which the program can do nothing but compute.
    Jail(Jail),
    /// A program that confines itself, started in a directory as root of a user namespace.
    Itself {
        cwd: OwnedFd,
        user_namespace: Arc<OwnedFd>,
    },
    /// For tests: the program has children of its own, so it gets SIGTERM instead of SIGKILL.
    None,
}

impl Confinement {
    pub(crate) fn end_signal(&self) -> libc::c_int {
        match self {
            Confinement::Jail(_) | Confinement::Itself { .. } => libc::SIGKILL,
            Confinement::None => libc::SIGTERM,
        }
    }

    /// The namespaces that the child is born in. The first process of a pid namespace can't see
    /// others outside, and all of the namespace ends with it. A test's program would not get its
    /// SIGTERM there.
    fn namespaces(&self) -> libc::c_int {
        match self {
            Confinement::Jail(_) | Confinement::Itself { .. } => libc::CLONE_NEWPID,
            Confinement::None => 0,
        }
    }
}

/// The data that the child needs, made before the fork.
struct Prepared {
    path: CString,
    argv: Vec<*const libc::c_char>,
    envp: [*const libc::c_char; 3],
    /// stdin, stdout, stderr, then the program's own, then [`CHILDS_OWN`].
    descriptors: Vec<RawFd>,
    placement: Opened,
}

/// The number of descriptors at the end that the program does not get: a pidfd of the parent and
/// the error pipe.
const CHILDS_OWN: usize = 2;

/// Forks a child that becomes `program`. Only for a thread that lives as long as this process.
pub(crate) fn fork(program: Program, log: OwnedFd) -> Result<Forked> {
    let role = program.role.clone();
    let path = program.path.clone();
    let failed = |step: &str, source| Error::Start {
        role: role.clone(),
        path: path.clone(),
        step: step.to_owned(),
        source,
    };
    let null = File::open("/dev/null").map_err(|e| failed("open /dev/null", e))?;
    let (errors, errors_end) = io::pipe().map_err(|e| failed("pipe", e))?;
    let c_string = |text: &str| CString::new(text).map_err(|e| failed("arguments", e.into()));
    let executable = c_string(&program.path.to_string_lossy())?;
    let arguments = program
        .arguments
        .iter()
        .map(|argument| c_string(argument))
        .collect::<Result<Vec<_>>>()?;
    let mut descriptors = vec![null.as_raw_fd(), log.as_raw_fd(), log.as_raw_fd()];
    descriptors.extend(program.descriptors.iter().map(AsRawFd::as_raw_fd));
    let parent = this_process().map_err(|e| failed("pidfd_open", e))?;
    descriptors.extend([parent.as_raw_fd(), errors_end.as_raw_fd()]);
    let mut prepared = Prepared {
        argv: std::iter::once(&executable)
            .chain(&arguments)
            .map(|text| text.as_ptr())
            .chain([std::ptr::null()])
            .collect(),
        path: executable.clone(),
        envp: [
            c"HOME=/".as_ptr(),
            c"PATH=/usr/bin:/bin".as_ptr(),
            std::ptr::null(),
        ],
        descriptors,
        placement: Opened::open(&program.placement)?,
    };
    let namespaces = program.confinement.namespaces();
    // SAFETY: the child makes system calls on prepared data only, until it executes or exits.
    match unsafe { clone(namespaces, prepared.placement.folder.as_ref()) } {
        Err(error) => Err(failed(
            "clone into a pid namespace and the pod's cgroup",
            error,
        )),
        Ok(None) => run_child(&mut prepared, &program),
        Ok(Some((pid, pidfd))) => Ok(Forked {
            pid,
            pidfd: Some(pidfd),
            errors: Some(errors.into()),
        }),
    }
}

/// Forks as fork(2) does, into further namespaces and a cgroup of version 2. Returns None in the
/// child, which must not allocate; returns the child's pid and pidfd in the parent.
unsafe fn clone(
    namespaces: libc::c_int,
    cgroup: Option<&File>,
) -> io::Result<Option<(u32, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: plain data, in which 0 means unset.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (namespaces | libc::CLONE_PIDFD) as u64;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and a stack it returns twice, as fork does; the kernel writes a
    // descriptor.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        // SAFETY: clone gave us this descriptor.
        _ => Ok(Some((pid as u32, unsafe { OwnedFd::from_raw_fd(pidfd) }))),
    }
}

fn this_process() -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes numbers only.
    match unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: pidfd_open gave us this descriptor.
        pidfd => Ok(unsafe { OwnedFd::from_raw_fd(pidfd as RawFd) }),
    }
}

/// A child that may not have executed its program yet. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Forked {
    pid: u32,
    pidfd: Option<OwnedFd>,
    /// Closes when the program is executed. Data before that is an error.
    errors: Option<OwnedFd>,
}

impl Forked {
    /// Waits until the child has executed its program.
    pub(crate) async fn executed(&mut self, role: &str, path: &Path) -> Result<()> {
        let failed = |step: &str, source| Error::Start {
            role: role.to_owned(),
            path: path.to_owned(),
            step: step.to_owned(),
            source,
        };
        let mut report = Vec::new();
        let read = async {
            match self.errors.take() {
                Some(errors) => {
                    let mut errors = pipe::Receiver::from_owned_fd(errors)?;
                    errors.read_to_end(&mut report).await
                }
                None => Ok(0),
            }
        };
        match tokio::time::timeout(EXEC_LIMIT, read).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(failed("read the child's report", error)),
            Err(elapsed) => return Err(failed("exec", elapsed.into())),
        }
        match report.split_first_chunk::<4>() {
            None => Ok(()),
            Some((errno, step)) => Err(failed(
                &String::from_utf8_lossy(step),
                io::Error::from_raw_os_error(i32::from_ne_bytes(*errno)),
            )),
        }
    }

    pub(crate) fn into_parts(mut self) -> (u32, Arc<OwnedFd>) {
        match self.pidfd.take() {
            Some(pidfd) => (self.pid, Arc::new(pidfd)),
            None => unreachable!("taken here alone"),
        }
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            signal(pidfd, libc::SIGKILL);
            exit_text(pidfd);
        }
    }
}

/// Sends a signal. It can't hit another process that got the same pid.
pub(crate) fn signal(pidfd: &OwnedFd, signal: libc::c_int) {
    // SAFETY: a pidfd that we own; no siginfo.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0, 0) };
}

/// Reaps a child and says how it ended. Waits for the end.
pub(crate) fn exit_text(pidfd: &OwnedFd) -> String {
    // SAFETY: siginfo_t is plain data, filled by waitid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: a pidfd that we own and a siginfo_t to write to.
    let waited = unsafe {
        libc::waitid(
            libc::P_PIDFD,
            pidfd.as_raw_fd() as libc::id_t,
            &mut info,
            libc::WEXITED,
        )
    };
    if waited != 0 {
        return format!("not known how ({})", io::Error::last_os_error());
    }
    // SAFETY: waitid has filled the SIGCHLD fields.
    let status = unsafe { info.si_status() };
    match info.si_code {
        libc::CLD_EXITED => format!("exit status {status}"),
        _ => format!("killed by signal {status}"),
    }
}

/// Takes the child from fork to exec. A failed step is reported to the parent through the error
/// pipe.
fn run_child(prepared: &mut Prepared, program: &Program) -> ! {
    let mut errors = prepared.descriptors.last().copied().unwrap_or(-1);
    let Err((step, error)) = try_run_child(prepared, program, &mut errors);
    let errno = error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes();
    // SAFETY: buffers of the given lengths; _exit runs nothing of the parent's.
    unsafe {
        libc::write(errors, errno.as_ptr().cast(), errno.len());
        libc::write(errors, step.as_ptr().cast(), step.len());
        libc::_exit(127)
    }
}

fn try_run_child(
    prepared: &mut Prepared,
    program: &Program,
    errors: &mut RawFd,
) -> std::result::Result<std::convert::Infallible, Step> {
    prepared.placement.enter()?;
    // SAFETY: an empty signal set on the stack. Rust's runtime ignores SIGPIPE, and the child would
    // inherit that.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    match &program.confinement {
        Confinement::Jail(_) | Confinement::None => {}
        Confinement::Itself {
            cwd,
            user_namespace,
        } => {
            // SAFETY: descriptors that the parent owned at the fork.
            check("fchdir", unsafe { libc::fchdir(cwd.as_raw_fd()) })?;
            // SAFETY: as above.
            check("join the user namespace", unsafe {
                libc::setns(user_namespace.as_raw_fd(), libc::CLONE_NEWUSER)
            })?;
            // SAFETY: numbers and an empty list. These are raw system calls because libc's wrappers
            // act on all threads of the parent.
            unsafe {
                check("setgroups", libc::syscall(libc::SYS_setgroups, 0, 0) as i32)?;
                check(
                    "setresgid",
                    libc::syscall(libc::SYS_setresgid, 0, 0, 0) as i32,
                )?;
                check(
                    "setresuid",
                    libc::syscall(libc::SYS_setresuid, 0, 0, 0) as i32,
                )?;
            }
            // SAFETY: prctl with numbers only.
            check("no_new_privs", unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            })?;
        }
    }
    let parent = place_descriptors(&mut prepared.descriptors, errors)?;
    program.limits.enter()?;
    if let Confinement::Jail(jail) = &program.confinement {
        jail.enter()?;
    }
    // This comes after the change of the uid, which would clear it. The signal for a confined child
    // is SIGKILL, which a guest can't hold off.
    // SAFETY: prctl with numbers only.
    check("parent-death signal", unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, program.confinement.end_signal())
    })?;
    // The parent may have died before. Its pid says nothing: in a pid namespace of its own a
    // child's parent is 0.
    let mut death = libc::pollfd {
        fd: parent,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one struct to read from and write to.
    let died = unsafe { libc::poll(&mut death, 1, 0) };
    check("look for the parent", died)?;
    if died > 0 {
        // SAFETY: _exit runs nothing of the parent's.
        unsafe { libc::_exit(127) };
    }
    // SAFETY: NUL-terminated strings in null-terminated arrays, alive in the parent's frame.
    unsafe {
        libc::execve(
            prepared.path.as_ptr(),
            prepared.argv.as_ptr(),
            prepared.envp.as_ptr(),
        )
    };
    Err(("exec", io::Error::last_os_error()))
}

/// Moves the descriptors to 0, 1, 2, 3, …; [`CHILDS_OWN`] and all others close on exec. Returns the
/// pidfd of the parent.
fn place_descriptors(
    descriptors: &mut [RawFd],
    errors: &mut RawFd,
) -> std::result::Result<RawFd, Step> {
    let count = descriptors.len() as RawFd;
    // First moves them out of the way of the numbers that are about to be taken.
    for descriptor in descriptors.iter_mut() {
        // SAFETY: fcntl with numbers only.
        let moved = unsafe { libc::fcntl(*descriptor, libc::F_DUPFD_CLOEXEC, count) };
        check("move a descriptor", moved)?;
        *descriptor = moved;
    }
    for (number, descriptor) in (0..).zip(descriptors.iter()) {
        // SAFETY: as above; dup2 clears close-on-exec.
        check("place a descriptor", unsafe {
            libc::dup2(*descriptor, number)
        })?;
    }
    *errors = count - 1;
    let parent = count - CHILDS_OWN as RawFd;
    // SAFETY: as above.
    check("close descriptors", unsafe {
        libc::syscall(
            libc::SYS_close_range,
            parent as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ) as libc::c_int
    })?;
    Ok(parent)
}

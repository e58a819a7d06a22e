//! Child processes of a VM: each dies with the [`Child`] that stands for it, and with this process.
//!
//! Children are forked by one thread that lives as long as this process, since a parent-death signal comes when
//! the *thread* that forked ends (prctl(2)), and tokio's threads come and go.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::{mpsc, Arc, OnceLock},
    time::Duration,
};

use tokio::{
    io::{unix::AsyncFd, AsyncReadExt},
    net::{unix::pipe, UnixStream},
    sync::{oneshot, watch},
};

use crate::{
    jail::{check, Jail, Step},
    log_lines::{follow, Tail},
    Error, Result,
};

/// The number of the first of [`Program::descriptors`] in the child.
pub(crate) const FIRST_DESCRIPTOR: RawFd = 3;
/// How long a killed process may take to go: it may be in the middle of a large write.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long a child may take from fork to exec: a mount or two may wait for a busy host.
const EXEC_LIMIT: Duration = Duration::from_secs(20);
/// How long the rest of an ended process's log is waited for.
const LOG_LIMIT: Duration = Duration::from_millis(50);

/// A program to run.
#[derive(Debug)]
pub(crate) struct Program {
    /// See [`crate::Vm::pids`].
    pub role: String,
    /// As the child sees it, once confined.
    pub path: PathBuf,
    /// Without the program's name.
    pub arguments: Vec<String>,
    /// These become [`FIRST_DESCRIPTOR`] and up; the child has no others, besides a log as its stdout and stderr.
    pub descriptors: Vec<OwnedFd>,
    pub confinement: Confinement,
}

/// What a child may do.
#[derive(Debug)]
pub(crate) enum Confinement {
    /// Nothing but compute.
    Jail(Jail),
    /// A program that confines itself, started in a directory and, if there is one, as root of a user namespace.
    Itself {
        cwd: OwnedFd,
        user_namespace: Option<Arc<OwnedFd>>,
    },
    /// A test's: it has children of its own, so it gets SIGTERM where others are killed.
    None,
}

impl Confinement {
    fn end_signal(&self) -> libc::c_int {
        match self {
            Confinement::Jail(_) | Confinement::Itself { .. } => libc::SIGKILL,
            Confinement::None => libc::SIGTERM,
        }
    }
}

/// A running child. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Child {
    role: String,
    pid: u32,
    pidfd: Arc<OwnedFd>,
    end_signal: libc::c_int,
    log: Tail,
    ended: watch::Receiver<Option<String>>,
}

impl Child {
    /// Starts a program and returns once it is confined and executed.
    pub(crate) async fn start(program: Program) -> Result<Child> {
        let (log, log_end) = UnixStream::pair().map_err(|e| Error::Io("make a log socket", e))?;
        let log_end = log_end
            .into_std()
            .map_err(|e| Error::Io("make a log socket", e))?;
        log_end
            .set_nonblocking(false)
            .map_err(|e| Error::Io("make a log socket", e))?;
        let role = program.role.clone();
        let end_signal = program.confinement.end_signal();
        let path = program.path.clone();
        let (answer, forked) = oneshot::channel();
        let job = Box::new(move || {
            let _ = answer.send(fork(program, log_end.into()));
        });
        let stopped = || Error::Io("start a process", io::ErrorKind::BrokenPipe.into());
        forker().send(job).map_err(|_| stopped())?;
        let mut forked = forked.await.map_err(|_| stopped())??;
        forked.executed(&role, &path).await?;
        let (pid, pidfd) = forked.into_parts();

        let tail = Tail::default();
        let (end, ended) = watch::channel(None);
        tokio::spawn(reap(pidfd.clone(), role.clone(), log, tail.clone(), end));
        Ok(Child {
            role,
            pid,
            pidfd,
            end_signal,
            log: tail,
            ended,
        })
    }

    pub(crate) fn role(&self) -> &str {
        &self.role
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Resolves when the process has ended, with how. Does not borrow the child.
    pub(crate) fn ended(&self) -> impl std::future::Future<Output = String> + Send + 'static {
        let mut ended = self.ended.clone();
        let log = self.log.clone();
        async move {
            let how = match ended.wait_for(Option::is_some).await {
                Ok(how) => how.clone().unwrap_or_default(),
                Err(_) => "its runtime has ended".to_owned(),
            };
            match log.text() {
                text if text.is_empty() => how,
                text => format!("{how}: {text}"),
            }
        }
    }

    /// Fails as soon as the process ends, else gives what `work` gives.
    pub(crate) async fn unless_it_ends<T>(
        &self,
        work: impl std::future::Future<Output = Result<T>>,
    ) -> Result<T> {
        let ended = self.ended();
        tokio::select! {
            result = work => match result {
                // The connection breaks a moment before the process is reaped, which says more.
                Err(error @ (Error::QmpConnection(_) | Error::Io(..))) => {
                    match tokio::time::timeout(Duration::from_millis(200), self.ended()).await {
                        Ok(how) => Err(self.died(how)),
                        Err(_) => Err(error),
                    }
                }
                result => result,
            },
            how = ended => Err(self.died(how)),
        }
    }

    fn died(&self, how: String) -> Error {
        Error::ProcessDied {
            role: self.role.clone(),
            how,
        }
    }

    /// Kills the process. Idempotent.
    pub(crate) fn kill(&self) {
        signal(&self.pidfd, self.end_signal);
    }

    /// Kills the process and waits until it is gone.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.kill();
        match tokio::time::timeout(KILL_LIMIT, self.ended()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::TimedOut {
                what: format!("end of {}", self.role),
                limit: KILL_LIMIT,
            }),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads a child's log until it ends, then reaps it.
async fn reap(
    pidfd: Arc<OwnedFd>,
    role: String,
    log: UnixStream,
    tail: Tail,
    end: watch::Sender<Option<String>>,
) {
    let log_end = tokio::spawn(async move {
        let log_line = |line: &str| log::warn!(target: "vmm", role = role.as_str(); "{line}");
        follow(log, tail, log_line).await;
    });
    // SAFETY: the descriptor is open as long as the value that owns it, which is moved in.
    let exit = match unsafe { AsyncFd::register(pidfd.clone()) } {
        Ok(readable) => readable.readable().await.map(|_| ()),
        Err(error) => Err(error.into()),
    };
    // What it wrote last is in the socket, which a grandchild may keep open.
    let _ = tokio::time::timeout(LOG_LIMIT, log_end).await;
    let how = match exit {
        Ok(()) => exit_text(&pidfd),
        Err(error) => format!("its pidfd failed: {error}"),
    };
    let _ = end.send(Some(how));
}

fn exit_text(pidfd: &OwnedFd) -> String {
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

type Job = Box<dyn FnOnce() + Send>;

/// The thread that forks all children.
fn forker() -> &'static mpsc::Sender<Job> {
    static FORKER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    FORKER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("vmm-fork".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || jobs.into_iter().for_each(|job| job()));
        if let Err(error) = thread {
            // Sending a job fails then, which is an error of the start.
            log::error!(error = error.to_string().as_str(); "no thread to start processes from");
        }
        sender
    })
}

/// What the child needs, made before the fork since a child of a process with threads can't allocate.
struct Prepared {
    path: CString,
    argv: Vec<*const libc::c_char>,
    envp: [*const libc::c_char; 3],
    /// stdin, stdout, stderr, then the program's own, then the error pipe.
    descriptors: Vec<RawFd>,
    parent: libc::pid_t,
}

fn fork(program: Program, log: OwnedFd) -> Result<Forked> {
    let role = program.role.clone();
    let path = program.path.clone();
    let failed = |step: &str, source| Error::Start {
        role: role.clone(),
        path: path.clone(),
        step: step.to_owned(),
        source,
    };
    let null = std::fs::File::open("/dev/null").map_err(|e| failed("open /dev/null", e))?;
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
    descriptors.push(errors_end.as_raw_fd());
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
        parent: std::process::id() as libc::pid_t,
    };
    // SAFETY: the child makes system calls on prepared data only, until it executes or exits.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => return Err(failed("fork", io::Error::last_os_error())),
        0 => run_child(&mut prepared, &program.confinement),
        _ => drop(errors_end),
    }
    // SAFETY: the pid of a child of ours that nobody else waits for.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if pidfd < 0 {
        let error = io::Error::last_os_error();
        // SAFETY: as above.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
        return Err(failed("pidfd_open", error));
    }
    Ok(Forked {
        pid: pid as u32,
        // SAFETY: pidfd_open gave us this descriptor.
        pidfd: Some(unsafe { OwnedFd::from_raw_fd(pidfd as RawFd) }),
        errors: Some(errors.into()),
    })
}

/// A child that may not have executed its program yet. Dropping it kills and reaps it.
#[derive(Debug)]
struct Forked {
    pid: u32,
    pidfd: Option<OwnedFd>,
    /// Closes when the program is executed; what comes before is an error.
    errors: Option<OwnedFd>,
}

impl Forked {
    /// Waits until the child has executed its program.
    async fn executed(&mut self, role: &str, path: &Path) -> Result<()> {
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

    fn into_parts(mut self) -> (u32, Arc<OwnedFd>) {
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
fn signal(pidfd: &OwnedFd, signal: libc::c_int) {
    // SAFETY: a pidfd that we own; no siginfo.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0, 0) };
}

/// The child's way from fork to exec. A failed step goes to the parent through the error pipe.
fn run_child(prepared: &mut Prepared, confinement: &Confinement) -> ! {
    let mut errors = prepared.descriptors.last().copied().unwrap_or(-1);
    let Err((step, error)) = try_run_child(prepared, confinement, &mut errors);
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
    confinement: &Confinement,
    errors: &mut RawFd,
) -> std::result::Result<std::convert::Infallible, Step> {
    // SAFETY: an empty signal set on the stack; SIGPIPE is ignored by Rust's runtime, and that would be inherited.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let no_core = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::setrlimit(libc::RLIMIT_CORE, &no_core);
    }
    match confinement {
        Confinement::Jail(_) | Confinement::None => {}
        Confinement::Itself {
            cwd,
            user_namespace,
        } => {
            // SAFETY: descriptors that the parent owned at the fork.
            check("fchdir", unsafe { libc::fchdir(cwd.as_raw_fd()) })?;
            if let Some(namespace) = user_namespace {
                // SAFETY: as above.
                check("join the user namespace", unsafe {
                    libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER)
                })?;
                // SAFETY: numbers and an empty list. Raw system calls, as libc's wrappers are for all threads of the parent.
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
            }
            // SAFETY: prctl with numbers only.
            check("no_new_privs", unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            })?;
        }
    }
    place_descriptors(&mut prepared.descriptors, errors)?;
    if let Confinement::Jail(jail) = confinement {
        jail.enter()?;
    }
    // After the uid has changed, which would clear it. SIGKILL: a guest can't hold it off.
    // SAFETY: prctl and getppid take no pointer.
    unsafe {
        check(
            "parent-death signal",
            libc::prctl(libc::PR_SET_PDEATHSIG, confinement.end_signal()),
        )?;
        if libc::getppid() != prepared.parent {
            libc::_exit(127);
        }
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

/// Moves the descriptors to 0, 1, 2, 3, …; the last one (for errors) and all others close on exec.
fn place_descriptors(
    descriptors: &mut [RawFd],
    errors: &mut RawFd,
) -> std::result::Result<(), Step> {
    let count = descriptors.len() as RawFd;
    // First out of the way of the numbers that are about to be taken.
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
    // SAFETY: as above.
    check("close descriptors", unsafe {
        libc::syscall(
            libc::SYS_close_range,
            *errors as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ) as libc::c_int
    })
}

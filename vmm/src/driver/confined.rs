//! Runs a program on a file that a guest may have tampered with, such as a file system's checker.
//! The program runs to its end within a time limit, confined as the VMM is.
//!
//! It sees a root with the host's `/usr`, the file at [`FILE`] and nothing else of the host. It has
//! no capability, no network and few system calls, and it runs in the pod's cgroup. Its memory, its
//! processor time and the size of what it writes are limited.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use super::{filter::allow, jail::Jail, log_lines::one_line};
use crate::Credentials;

/// The file's path, as the program sees it.
pub const FILE: &str = "/file";
/// The number of bytes of the program's output that are kept.
const MAX_OUTPUT: u64 = 1024;
/// The limit of its address space, in bytes. e2fsck's tables of a file system of 1 TiB take some
/// 100 MiB.
const MAX_MEMORY: u64 = 2 << 30;
/// The stack size of its threads, of which there is one for each of the host's cpus.
const STACK: u64 = 1 << 20;
/// The number of files that it may have open.
const MAX_FILES: u64 = 64;
/// How long a killed program may take to go: it may be in the middle of a large write.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A program and the file that it works on.
#[derive(Debug)]
pub struct Program<'a> {
    /// The program's path on the host.
    pub path: &'a Path,
    /// The arguments, without the program's name.
    pub arguments: &'a [&'a str],
    /// The program can read and write this file, but not enlarge it. The file needs a name
    /// somewhere, since one without a name can't be mounted.
    pub file: &'a File,
    /// Further files that it may read, at the same paths. Each is directly in a top-level folder.
    pub readable: &'a [&'a Path],
    /// The user that it runs as. The file belongs to that user while the program runs, and
    /// afterwards to this process's user.
    pub credentials: Credentials,
    /// The `cgroup.procs` files of the cgroups that it joins.
    pub cgroup: &'a [File],
    /// The time limit of the run.
    pub limit: Duration,
    /// An existing directory over which its root is mounted. Nobody else sees that mount.
    pub mount_point: &'a Path,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal, which may come from a limit: 25 from that of the file's size,
    /// 24 from that of processor time.
    Signal(i32),
    /// It exceeded its time limit and was killed.
    TimedOut,
}

/// Runs a program. Returns how it ended and the beginning of what it wrote, as one line without
/// control characters. Blocks.
pub fn run(program: &Program<'_>) -> io::Result<(End, String)> {
    let mut jail = Jail::new(program.mount_point, program.credentials)?;
    let path = jail.program(program.path)?;
    for file in program.readable.iter().filter(|file| file.exists()) {
        jail.bind(file, file.strip_prefix("/").unwrap_or(file))?;
    }
    jail.file(detached(program.file)?, FILE)?;
    jail.seccomp(allow(ALLOWED, &[]).map_err(io::Error::other)?);
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(path);
    command
        .args(program.arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin")
        // Reserves address space for one heap, not for one heap per thread.
        .env("MALLOC_ARENA_MAX", "1")
        // The program sees no mounts.
        .env("EXT2FS_NO_MTAB_OK", "1")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let cgroup: Vec<_> = program.cgroup.iter().map(AsRawFd::as_raw_fd).collect();
    let size = program.file.metadata()?.len();
    let limits = [
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_FSIZE, size),
        (libc::RLIMIT_AS, MAX_MEMORY),
        (libc::RLIMIT_STACK, STACK),
        (libc::RLIMIT_CPU, program.limit.as_secs() + 1),
    ];
    let parent = std::process::id();
    // SAFETY: between fork and exec it makes system calls on data that was prepared before.
    unsafe {
        command.pre_exec(move || {
            for procs in &cgroup {
                check(libc::write(*procs, c"0".as_ptr().cast(), 1) as i32)?;
            }
            for (resource, most) in limits {
                limit(resource, most)?;
            }
            let flags = libc::CLOSE_RANGE_CLOEXEC;
            check(libc::syscall(libc::SYS_close_range, 3, u32::MAX, flags) as i32)?;
            jail.enter().map_err(|(_, error)| error)?;
            // Set only now: the files that this process has open until the exec must not count.
            limit(libc::RLIMIT_NOFILE, MAX_FILES)?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            match libc::getppid() as u32 == parent {
                true => Ok(()),
                false => Err(io::ErrorKind::BrokenPipe.into()),
            }
        });
    }
    let _owned = Owned::by(program.file, program.credentials)?;
    let child = command.spawn()?;
    // From here on only the child has the writing ends, so they close when it ends.
    drop(command);
    let output = std::thread::spawn(move || head(reader));
    let end = wait(child, program.limit)?;
    let text = match end {
        // A process that survived SIGKILL has the pipe too.
        End::TimedOut => String::new(),
        _ => output.join().unwrap_or_default(),
    };
    Ok((end, text))
}

/// A file that belongs to another user for a time.
struct Owned<'a>(&'a File);

impl<'a> Owned<'a> {
    fn by(file: &'a File, credentials: Credentials) -> io::Result<Self> {
        let Credentials { uid, gid } = credentials;
        std::os::unix::fs::fchown(file, Some(uid), Some(gid))?;
        Ok(Self(file))
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        if let Err(error) =
            std::os::unix::fs::fchown(self.0, Some(uid.as_raw()), Some(gid.as_raw()))
        {
            log::warn!("a file stays a pod's user's: {error}");
        }
    }
}

/// Returns a mount of the file that is not attached anywhere yet. No path is walked.
fn detached(file: &File) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    // SAFETY: an open descriptor and an empty, NUL-terminated path.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, file.as_raw_fd(), c"".as_ptr(), flags) };
    check(tree as i32)?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(tree as i32) })
}

/// Returns the beginning of the output as one line for an error message. Reads and discards the
/// rest, so that the writer goes on.
fn head(reader: impl Read) -> String {
    let mut kept = Vec::new();
    let mut reader = reader.take(MAX_OUTPUT);
    // The part read before a failure is better than nothing.
    let _ = reader.read_to_end(&mut kept);
    let _ = io::copy(&mut reader.into_inner(), &mut io::sink());
    let text = one_line(&String::from_utf8_lossy(&kept));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn wait(mut child: Child, limit: Duration) -> io::Result<End> {
    // SAFETY: the pid of a child of ours that nobody else waits for.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    if let Err(error) = check(pidfd as i32) {
        child.kill()?;
        child.wait()?;
        return Err(error);
    }
    // SAFETY: pidfd_open gave us this descriptor.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as i32) };
    let in_time = ends_within(&pidfd, limit)?;
    if !in_time {
        child.kill()?;
        if !ends_within(&pidfd, KILL_LIMIT)? {
            std::thread::spawn(move || child.wait());
            return Ok(End::TimedOut);
        }
    }
    let status = child.wait()?;
    Ok(match in_time {
        true => end(status),
        false => End::TimedOut,
    })
}

fn end(status: ExitStatus) -> End {
    use std::os::unix::process::ExitStatusExt;
    match status.code() {
        Some(code) => End::Code(code),
        None => End::Signal(status.signal().unwrap_or_default()),
    }
}

fn ends_within(pidfd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd {
            fd: pidfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one structure, which lives through the call.
        match check(unsafe { libc::poll(&mut poll, 1, left) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(poll.revents != 0),
        }
    }
}

fn limit(resource: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: a structure that the call reads.
    check(unsafe { libc::setrlimit(resource, &limit) })
}

fn check(result: i32) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The system calls that e2fsprogs make, on files and memory alone, and those that other versions
/// of glibc make in their place. `execve` is for the program's own start; `prctl` and `getppid` are
/// for the remaining steps before it.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_lstat,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setrlimit,
    libc::SYS_sigaltstack,
    libc::SYS_stat,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_times,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const USER: Credentials = Credentials {
        uid: 1_878_982_656,
        gid: 1_878_982_656,
    };

    fn run_over(file: &File, program: &str, arguments: &[&str], limit: Duration) -> (End, String) {
        let dir = tempfile::tempdir().unwrap();
        run(&Program {
            path: Path::new(program),
            arguments,
            file,
            readable: &[Path::new("/etc/mke2fs.conf")],
            credentials: USER,
            cgroup: &[],
            limit,
            mount_point: dir.path(),
        })
        .unwrap()
    }

    fn run_program(program: &str, arguments: &[&str]) -> (End, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        run_over(file.as_file(), program, arguments, Duration::from_secs(20))
    }

    #[test]
    fn program_is_nobody_and_sees_its_file_alone() {
        let (end, text) = run_program("/usr/bin/id", &["-u"]);
        assert_eq!((end, text), (End::Code(0), USER.uid.to_string()));
        let (_, text) = run_program("/bin/ls", &["/", "/etc", "/dev"]);
        let names: Vec<_> = text.split(' ').collect();
        for name in [
            "proc", "sys", "root", "home", "var", "run", "tmp", "passwd", "kvm",
        ] {
            assert!(!names.contains(&name), "{text}");
        }
        assert!(names.contains(&"file"), "{text}");
    }

    #[test]
    fn program_writes_its_file_and_nothing_else() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"before").unwrap();
        let to = format!("of={FILE}");
        let copy = ["if=/usr/bin/id", "bs=6", "count=1", "conv=notrunc", &to];
        let (end, text) = run_over(file.as_file(), "/bin/dd", &copy, Duration::from_secs(20));
        assert_eq!(end, End::Code(0), "{text}");
        let mut now = [0; 6];
        std::os::unix::fs::FileExt::read_exact_at(file.as_file(), &mut now, 0).unwrap();
        assert_eq!(&now[..4], b"\x7fELF");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(file.as_file().metadata().unwrap().uid(), 0);
        // The file does not get larger.
        let more = ["if=/dev/urandom", "bs=1M", "count=1", &to];
        let (end, _) = run_over(file.as_file(), "/bin/dd", &more, Duration::from_secs(20));
        assert_ne!(end, End::Code(0));
        let other = ["if=/dev/urandom", "of=/usr/other", "count=1"];
        let (end, _) = run_over(file.as_file(), "/bin/dd", &other, Duration::from_secs(20));
        assert_ne!(end, End::Code(0));
    }

    #[test]
    fn program_that_does_not_end_is_killed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let started = Instant::now();
        let limit = Duration::from_millis(300);
        let (end, _) = run_over(file.as_file(), "/bin/sleep", &["100"], limit);
        assert_eq!(end, End::TimedOut);
        let spin = ["-c", "while :; do :; done"];
        let (end, _) = run_over(file.as_file(), "/bin/sh", &spin, limit);
        assert_eq!(end, End::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn program_starts_no_other_and_has_no_network() {
        let (end, text) = run_program("/bin/sh", &["-c", "/usr/bin/id; echo $?"]);
        assert!(end != End::Code(0) || !text.contains("uid="), "{text}");
        let script = "import socket; socket.socket()";
        if Path::new("/usr/bin/python3").exists() {
            let (end, text) = run_program("/usr/bin/python3", &["-c", script]);
            assert_ne!(end, End::Code(0), "{text}");
        }
    }

    #[test]
    fn output_is_bounded_and_has_no_control_characters() {
        let endless = ["-c", "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxx; done"];
        let file = tempfile::NamedTempFile::new().unwrap();
        let limit = Duration::from_millis(300);
        let (end, _) = run_over(file.as_file(), "/bin/sh", &endless, limit);
        assert_eq!(end, End::TimedOut);
        let long = "i=0; while [ $i -lt 9999 ]; do echo xxxx; i=$((i+1)); done";
        let (end, text) = run_program("/bin/sh", &["-c", long]);
        assert_eq!(end, End::Code(0));
        assert!(text.len() as u64 <= MAX_OUTPUT, "{}", text.len());
        let rude = "printf '\\033[31mred\\007\\n\\r two'";
        let (_, text) = run_program("/bin/sh", &["-c", rude]);
        assert_eq!(text, "[31mred two");
    }
}

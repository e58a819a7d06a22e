//! The system calls that QEMU may make. QEMU's own filter (`-sandbox`) denies some and allows the
//! rest. This filter is below it, from before QEMU executes.

use seccompiler::{BackendError, BpfProgram, SeccompCmpOp};

use crate::driver::filter::{allow, Rule};

/// The allowed system calls.
///
/// They are those that QEMU made under strace, emulating: boot, each device plugged in and out,
/// cpus and memory resized, the end. In addition, there are those that its source makes with KVM
/// and with vhost (eventfds, signals to vCPUs, memory that is given back), and those that other
/// versions of glibc and musl make in their place. `execve` is for QEMU's own start; QEMU's own
/// filter takes it away. `io_uring` is left out, since many kernel vulnerabilities were in it; QEMU
/// polls instead.
const ALLOWED: &[libc::c_long] = &[
    // Files: those of its root, and those that it gets over QMP. It makes none, see `filter`.
    libc::SYS_access,
    libc::SYS_close,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_execve,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_lstat,
    libc::SYS_memfd_create,
    libc::SYS_newfstatat,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_sendfile,
    libc::SYS_stat,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_umask,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    // Events and connections. QEMU opens no connections itself: it is given those of the monitor,
    // the console and the daemons.
    libc::SYS_accept4,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_select,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Threads and signals.
    libc::SYS_arch_prctl,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_prctl,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_tgkill,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // The identity of the process and its machine.
    libc::SYS_get_mempolicy,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpgrp,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_uname,
];

/// The byte of an ioctl's number that says which driver it belongs to (kernel,
/// userspace-api/ioctl/ioctl-number.rst).
const KIND: u64 = 0xff00;
const KVM: u64 = 0xae00;
const VHOST: u64 = 0xaf00;

/// The other allowed ioctls: those that any process makes, and those of taps (linux/if_tun.h) and
/// block devices (linux/fs.h) that QEMU makes on what it is given.
const IOCTLS: [u64; 26] = [
    0x5401,      // TCGETS, by which glibc recognises a terminal
    0x541b,      // FIONREAD
    0x5421,      // FIONBIO
    0x5450,      // FIONCLEX
    0x5451,      // FIOCLEX
    0x8004_54cf, // TUNGETFEATURES
    0x4004_54d0, // TUNSETOFFLOAD
    0x8004_54d2, // TUNGETIFF
    0x8004_54d3, // TUNGETSNDBUF
    0x4004_54d4, // TUNSETSNDBUF
    0x8004_54d7, // TUNGETVNETHDRSZ
    0x4004_54d8, // TUNSETVNETHDRSZ
    0x4004_54d9, // TUNSETQUEUE
    0x4004_54dc, // TUNSETVNETLE
    0x8004_54dd, // TUNGETVNETLE
    0x4004_54de, // TUNSETVNETBE
    0x8004_54df, // TUNGETVNETBE
    0x8004_54e0, // TUNSETSTEERINGEBPF
    0x8008_1272, // BLKGETSIZE64
    0x125e,      // BLKROGET, by which QEMU sees that a device can be written
    0x1260,      // BLKGETSIZE
    0x1267,      // BLKSECTGET
    0x1268,      // BLKSSZGET
    0x127b,      // BLKPBSZGET
    0x1277,      // BLKDISCARD
    0x127f,      // BLKZEROOUT
];

/// Makes the filter.
pub(super) fn filter() -> Result<BpfProgram, BackendError> {
    // O_TMPFILE contains O_DIRECTORY, which need not be denied.
    let new_file = (libc::O_CREAT | libc::O_TMPFILE) & !libc::O_DIRECTORY;
    let no_new_file = SeccompCmpOp::MaskedEq(new_file as u64);
    let mut rules: Vec<Rule> = vec![
        (libc::SYS_open, 1, no_new_file.clone(), 0),
        (libc::SYS_openat, 2, no_new_file, 0),
        // A vhost-user daemon's return channel, made with the device.
        (
            libc::SYS_socketpair,
            0,
            SeccompCmpOp::Eq,
            libc::AF_UNIX as u64,
        ),
        (libc::SYS_ioctl, 1, SeccompCmpOp::MaskedEq(KIND), KVM),
        (libc::SYS_ioctl, 1, SeccompCmpOp::MaskedEq(KIND), VHOST),
    ];
    rules.extend(IOCTLS.map(|number| (libc::SYS_ioctl, 1, SeccompCmpOp::Eq, number)));
    allow(ALLOWED, &rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_that_is_not_listed_fails_and_kills_nobody() {
        let filter = filter().unwrap();
        let is_refused = |result: libc::c_long| {
            let errno = std::io::Error::last_os_error().raw_os_error();
            result == -1 && errno == Some(libc::ENOSYS)
        };
        // SAFETY: the child makes system calls only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: numbers and NUL-terminated paths.
            unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                let mut wrong = i32::from(seccompiler::apply_filter(&filter).is_err());
                let path = c"/dev/null".as_ptr();
                wrong |= i32::from(libc::open(path, libc::O_RDONLY) < 0) << 1;
                let create = libc::O_WRONLY | libc::O_CREAT;
                let refused = [
                    is_refused(libc::open(path, create, 0o600).into()),
                    is_refused(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0).into()),
                    is_refused(libc::ioctl(0, libc::TIOCSTI, path).into()),
                    is_refused(libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)),
                    is_refused(libc::unshare(libc::CLONE_NEWUSER).into()),
                    is_refused(libc::syscall(libc::SYS_io_uring_setup, 1, 0)),
                ];
                for (number, refused) in refused.into_iter().enumerate() {
                    wrong |= i32::from(!refused) << (number + 2);
                }
                libc::_exit(wrong)
            }
        }
        let mut status = 0;
        // SAFETY: our child.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!(status, 0, "bits of what went wrong: {:#b}", status >> 8);
    }
}

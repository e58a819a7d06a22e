//! The resource limits of a VM's processes (setrlimit(2)): soft and hard, set between fork and
//! exec.
//!
//! Memory, cpu and I/O are the pod's cgroup's to limit. These bound what it does not, by process:
//!
//! | limit | QEMU | vsock daemon | virtiofsd |
//! |---|---|---|---|
//! | `CORE` | 0 | 0 | 0 |
//! | `NOFILE` | 16,384 | 16,384 | [`crate::max_inodes`] |
//! | `NPROC` | 512 | 512 | 512 |
//! | `FSIZE` | – | 0 | – |
//! | `MEMLOCK`, `MSGQUEUE`, `RTPRIO`, `NICE` | 0 | 0 | 0 |
//!
//! - `CORE`: a core file has the guest's memory in it, secrets too.
//! - `NOFILE`: QEMU has two eventfds a virtqueue, a queue for each of at most 288 cpus, 32 ports; the
//!   daemon one descriptor a stream; virtiofsd one a file that the guest knows.
//! - `NPROC` counts the threads of the VM's user, all its processes together: 288 vCPUs, 64 workers
//!   of QEMU's pool, the daemons' few. The kernel does not count those of root, as whom the virtiofsd
//!   of the share runs.
//! - `FSIZE`: the daemon writes to sockets only. QEMU's memory is a file of the guest's size, and
//!   virtiofsd writes the guest's files.
//! - The rest: nobody locks memory, uses POSIX queues or goes before the host's own processes.
//!
//! A limit that is already lower here stays: raising one takes CAP_SYS_RESOURCE.

use crate::jail::{check, Step};

const OPEN_FILES: libc::rlim_t = 16_384;
const THREADS: libc::rlim_t = 512;

/// What every process of a VM has.
const COMMON: [(libc::__rlimit_resource_t, libc::rlim_t); 6] = [
    (libc::RLIMIT_CORE, 0),
    (libc::RLIMIT_NPROC, THREADS),
    (libc::RLIMIT_MEMLOCK, 0),
    (libc::RLIMIT_MSGQUEUE, 0),
    (libc::RLIMIT_RTPRIO, 0),
    (libc::RLIMIT_NICE, 0),
];

/// The limits of one process. By default none.
#[derive(Debug, Default)]
pub(crate) struct Limits(Vec<(libc::__rlimit_resource_t, libc::rlim_t)>);

impl Limits {
    pub(crate) fn qemu() -> Limits {
        Limits::of(&[(libc::RLIMIT_NOFILE, OPEN_FILES)])
    }

    pub(crate) fn vsock() -> Limits {
        Limits::of(&[(libc::RLIMIT_NOFILE, OPEN_FILES), (libc::RLIMIT_FSIZE, 0)])
    }

    pub(crate) fn virtiofsd(max_inodes: u64) -> Limits {
        Limits::of(&[(libc::RLIMIT_NOFILE, max_inodes)])
    }

    fn of(own: &[(libc::__rlimit_resource_t, libc::rlim_t)]) -> Limits {
        Limits([&COMMON, own].concat())
    }

    /// Sets them for the calling process. Only for a child between fork and exec.
    pub(crate) fn enter(&self) -> Result<(), Step> {
        for &(resource, limit) in &self.0 {
            let mut now = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: a struct to write to.
            check("getrlimit", unsafe { libc::getrlimit(resource, &mut now) })?;
            let limit = limit.min(now.rlim_max);
            let new = libc::rlimit {
                rlim_cur: limit,
                rlim_max: limit,
            };
            // SAFETY: a struct to read from.
            check("setrlimit", unsafe { libc::setrlimit(resource, &new) })?;
        }
        Ok(())
    }
}

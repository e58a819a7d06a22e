//! The resource limits of a VM's processes (setrlimit(2)): soft and hard, set between fork and
//! exec.
//!
//! The pod's cgroup limits memory, cpu and I/O. The limits here bound the rest for each process:
//!
//! | limit | QEMU | vsock daemon | virtiofsd |
//! |---|---|---|---|
//! | `CORE` | 0 | 0 | 0 |
//! | `NOFILE` | 16,384 | 16,384 | [`crate::max_open_files`] |
//! | `NPROC` | 512 | 512 | 512 |
//! | `FSIZE` | – | 0 | – |
//! | `MEMLOCK`, `MSGQUEUE`, `RTPRIO`, `NICE` | 0 | 0 | 0 |
//!
//! - `CORE`: a core file contains the guest's memory, including secrets.
//! - `NOFILE`: QEMU has two eventfds for each virtqueue, a queue for each of at most 288 cpus, and
//!   32 ports. The vsock daemon has one descriptor for each stream, and virtiofsd one for each file
//!   that the guest knows.
//! - `NPROC` counts the threads of the VM's user over all its processes: 288 vCPUs, 64 workers of
//!   QEMU's pool, and a few of the daemons. The kernel does not count the threads of root, and the
//!   virtiofsd of the share runs as root.
//! - `FSIZE`: the vsock daemon writes to sockets only. QEMU's memory is a file of the guest's size,
//!   and virtiofsd writes the guest's files.
//! - The rest: no process locks memory, uses POSIX queues or takes priority over the host's own
//!   processes.
//!
//! A limit that is already lower here stays: raising one takes CAP_SYS_RESOURCE.

use super::jail::{check, Step};

const OPEN_FILES: libc::rlim_t = 16_384;
const THREADS: libc::rlim_t = 512;

/// The limits of every process of a VM.
const COMMON: [(libc::__rlimit_resource_t, libc::rlim_t); 6] = [
    (libc::RLIMIT_CORE, 0),
    (libc::RLIMIT_NPROC, THREADS),
    (libc::RLIMIT_MEMLOCK, 0),
    (libc::RLIMIT_MSGQUEUE, 0),
    (libc::RLIMIT_RTPRIO, 0),
    (libc::RLIMIT_NICE, 0),
];

/// The limits of one process. By default there are none.
#[derive(Debug, Default)]
pub(crate) struct Limits(Vec<(libc::__rlimit_resource_t, libc::rlim_t)>);

impl Limits {
    pub(crate) fn vmm() -> Limits {
        Limits::of(&[(libc::RLIMIT_NOFILE, OPEN_FILES)])
    }

    pub(crate) fn vsock() -> Limits {
        Limits::of(&[(libc::RLIMIT_NOFILE, OPEN_FILES), (libc::RLIMIT_FSIZE, 0)])
    }

    pub(crate) fn virtiofsd(max_open_files: u64) -> Limits {
        Limits::of(&[(libc::RLIMIT_NOFILE, max_open_files)])
    }

    fn of(own: &[(libc::__rlimit_resource_t, libc::rlim_t)]) -> Limits {
        Limits([&COMMON, own].concat())
    }

    /// Sets the limits for the calling process. Only for a child between fork and exec.
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

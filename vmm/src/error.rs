//! The errors of VM operations.

use std::{io, path::PathBuf, time::Duration};

use crate::EndReason;

/// A failed operation on a VM, with the path or device that it failed on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that the VM needs can't be used.
    #[error("{what} {}", path.display())]
    File {
        /// e.g. `open kernel`
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A process of the VM could not be started or confined. An unconfined program is never run.
    #[error("start {role} ({}): {step}", path.display())]
    Start {
        role: String,
        path: PathBuf,
        /// What failed between fork and exec, e.g. `exec` or `pivot_root`.
        step: String,
        #[source]
        source: io::Error,
    },
    /// The host allows no user namespace. Without one, virtiofsd would have capabilities over the
    /// host's files.
    #[error("make a user namespace for virtiofsd, which must not have rights over the host's files: allow some by `sysctl user.max_user_namespaces` (on a kernel with CONFIG_USER_NS)")]
    UserNamespace(#[source] io::Error),
    /// A process of the VM ended while it was needed. A VMM ends this way if there is not enough
    /// memory for the VM.
    #[error("{role} ended: {how}")]
    ProcessDied {
        role: String,
        /// Exit status or signal, and the last lines of its log.
        how: String,
    },
    /// The VM has ended, so nothing can be done with it.
    #[error("the VM has ended: {0:?}")]
    Ended(EndReason),
    /// The VM's state does not allow the operation.
    #[error("can't {operation} a VM that is {state}")]
    State {
        operation: &'static str,
        /// `running` or `paused`
        state: &'static str,
    },
    /// This hypervisor has no such ability.
    #[error("{what} is not possible with this hypervisor")]
    NotPossible { what: &'static str },
    /// The connection to a process of the VM broke, mostly because the process has ended.
    #[error("connection to {to}")]
    Connection {
        /// e.g. `QEMU's monitor`
        to: &'static str,
        #[source]
        source: io::Error,
    },
    /// The hypervisor refused something or answered nonsense. The error is its driver's own.
    #[error(transparent)]
    Driver(Box<dyn std::error::Error + Send + Sync>),
    /// Something exceeded its time limit.
    #[error("{what} took longer than {limit:?}")]
    TimedOut { what: String, limit: Duration },
    /// A device can't be made as described.
    #[error("device {id}: {rule}")]
    InvalidDevice { id: String, rule: &'static str },
    /// The VM has no such device.
    #[error("no device {0} in this VM")]
    UnknownDevice(String),
    /// Every hot-plug port has a device.
    #[error("all {ports} hot-plug ports are taken, none is left for device {id}")]
    NoFreePort { id: String, ports: usize },
    /// The VM can't be sized like that.
    #[error("VM of {wanted} {unit}: {rule}")]
    Size {
        wanted: u64,
        /// `cpus` or `bytes of memory`
        unit: &'static str,
        rule: String,
    },
    /// An operation on a socket, pipe or descriptor of the host failed.
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
}

/// The result of an operation on a VM.
pub type Result<T> = std::result::Result<T, Error>;

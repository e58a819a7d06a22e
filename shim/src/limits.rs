//! Defines how long the guest may take: one row with a reason for each kind of call to its agent,
//! and further limits for what else the shim waits for.
//!
//! A row's limit holds for an emulated guest. [`Patience`] shortens it if KVM runs the guest, or as
//! the operator configures.
//!
//! A guest that is emulated on a busy host is slow, not broken. Where the agent has a limit of its
//! own, the shim's is a little longer, so that the agent's own message arrives. The calls `wait`
//! and `next event` have no limit: the [heartbeat](PING) detects an agent that dies in the
//! meantime.

use std::time::Duration;

use caisson_oci::config;
use caisson_vmm::Accelerator;

/// A kind of call: its name in error messages and its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub name: &'static str,
    pub limit: Duration,
}

/// The longest time that any answer of one guest may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience(Duration);

impl Patience {
    /// With KVM, a process starts in milliseconds. The caller learns within ten seconds that a
    /// guest is silent.
    const KVM: Duration = Duration::from_secs(8);
    /// Under emulation, a process of a container with 10m of CPU takes 40 s to start.
    const EMULATED: Duration = Duration::from_secs(65);

    /// Takes the limit that `[vm]` configures, or else the accelerator's default.
    pub fn new(config: &config::Vm, accelerator: Accelerator) -> Self {
        let configured = config.answer_timeout_secs.map(Duration::from_secs);
        Self(configured.unwrap_or(match accelerator {
            Accelerator::Kvm => Self::KVM,
            Accelerator::Tcg => Self::EMULATED,
        }))
    }

    /// Returns how long the answer to this call may take.
    pub fn limit(self, call: Call) -> Duration {
        match call.limit {
            Duration::MAX => Duration::MAX,
            limit => limit.min(self.0),
        }
    }
}

const fn call(name: &'static str, seconds: u64) -> Call {
    Call {
        name,
        limit: Duration::from_secs(seconds),
    }
}

const fn without_limit(name: &'static str) -> Call {
    Call {
        name,
        limit: Duration::MAX,
    }
}

/// The first call: the guest has just booted, possibly beside others that boot.
pub const CONFIGURE: Call = call("configure", 30);
/// A few writes to /proc, some of which make the kernel allocate memory.
pub const SET_SYSCTLS: Call = call("set sysctls", 20);
/// The guest's kernel has to find the device and load its driver. It also replays the journal of a
/// home, and brings memory online block by block.
pub const ATTACH: Call = call("attach", 60);
/// An unmount of a read-only disk, or of a share whose writes reach the host.
pub const DETACH: Call = call("detach", 20);
/// A helper does this, to which the agent gives 60 s (guest/src/launch.rs).
pub const SHOW: Call = call("show", 65);
/// A helper does this, as above. It reads the container's files for the first time, through the
/// share.
pub const CREATE: Call = call("create", 65);
/// The agent gives a waiting init 10 s (guest/src/containers/mod.rs).
pub const START: Call = call("start", 15);
/// A helper does this, as above.
pub const EXEC: Call = call("exec", 65);
/// One system call. For SIGKILL, [`KILLED`] applies as well.
pub const KILL: Call = call("kill", 5);
/// One system call.
pub const RESIZE: Call = call("resize", 5);
/// Reads one file of the kernel.
pub const LIST_PROCESSES: Call = call("list processes", 10);
/// Each process has to reach a point where it can be frozen. A process that waits for a disk has
/// not reached it yet.
pub const PAUSE: Call = call("pause", 15);
/// As for [`PAUSE`].
pub const RESUME: Call = call("resume", 15);
/// A helper does this, as above.
pub const UPDATE: Call = call("update", 65);
/// Takes as long as there are files to forget, which may be a million.
pub const FORGET_FILES: Call = call("forget files", 65);
/// The agent unmounts what has ended and removes its files, while the kubelet waits. A slower guest
/// keeps the rest until it ends.
pub const DELETE: Call = call("delete", 8);
/// The guest writes everything out, to disks that may be slow. What has not been written by then is
/// lost, as after a power cut.
pub const SHUTDOWN: Call = call("shutdown", 3);
/// A running agent answers at once, or later if it is emulated beside others that boot. An agent
/// that does not answer for [`PINGS_MISSED`] times this long is dead.
pub const PING: Call = call("ping", 10);
/// Stays open until there is an event.
pub const NEXT_EVENT: Call = without_limit("next event");
/// Stays open until the process ends.
pub const WAIT: Call = without_limit("wait");
/// One call at a time for each container. A request for stats does not wait for the end of the
/// call, see [`STATS_WAIT`].
pub const STATS: Call = without_limit("stats");

/// The most overdue calls that a guest may have. A guest with more of them is broken even if it
/// answers pings: each open call takes memory of the shim.
pub const MOST_OVERDUE: usize = 64;

/// The pause between an answer and the next ping. A dead agent is found within a minute, and an
/// idle guest stays idle.
pub const PING_EVERY: Duration = Duration::from_secs(5);
/// The number of missed pings in a row after which an agent counts as dead. A host that stood still
/// may have caused a single one.
pub const PINGS_MISSED: u32 = 3;

/// How long a process may take from SIGKILL to its end; after that its VM is stopped. The kernel
/// needs milliseconds, or a second if it is emulated on a busy host. The limit includes
/// [`crate::streams::READ_LIMIT`]. containerd and the kubelet wait longer.
pub const KILLED: Duration = Duration::from_secs(6);

/// The same as [`KILLED`], for a container that has not started and whose guest has an overdue
/// call: that guest has had its time already.
pub const KILLED_UNSTARTED: Duration = Duration::from_secs(1);

/// How long the guest may take to pass on what the pipes of an ended container hold, and to end its
/// output. The kernel has ended all of the container's processes by then.
pub const REST_OF_OUTPUT: Duration = Duration::from_secs(5);

/// How long a request for stats waits for fresh ones. Those of a node are requested for one
/// container after the other.
pub const STATS_WAIT: Duration = Duration::from_millis(800);

/// How often the shim looks whether the pod's egress has dropped something.
pub const LOOK_AT_DENIED: Duration = Duration::from_secs(5);

/// How long a guest that has broken off may take to end by itself, since its own end explains more.
pub const LAST_WORDS: Duration = Duration::from_secs(2);

/// The pause between two events of the guest, so that a guest that sends events without end does
/// not keep the shim busy.
pub const EVENT_PAUSE: Duration = Duration::from_millis(5);

/// The shortest time between two reports that the same container is out of memory.
pub const OOM_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_of_a_guest_with_kvm_is_answered_within_ten_seconds_or_without_a_limit() {
        let patience = Patience::new(&config::Vm::default(), Accelerator::Kvm);
        for call in [CONFIGURE, ATTACH, SHOW, CREATE, START, EXEC, UPDATE] {
            assert!(patience.limit(call) < Duration::from_secs(10), "{call:?}");
        }
        assert_eq!(patience.limit(KILL), KILL.limit);
        assert_eq!(patience.limit(WAIT), Duration::MAX);
    }

    #[test]
    fn configured_patience_holds_under_each_accelerator() {
        let config = config::Vm {
            answer_timeout_secs: Some(20),
            ..Default::default()
        };
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let patience = Patience::new(&config, accelerator);
            assert_eq!(patience.limit(EXEC), Duration::from_secs(20));
        }
    }

    #[test]
    fn pod_of_a_dead_guest_can_be_removed_within_ten_seconds() {
        let most = Duration::from_secs(10);
        assert!(KILLED + LAST_WORDS < most);
        assert!(DELETE.limit < most && KILL.limit < KILLED);
        assert!(SHUTDOWN.limit + LAST_WORDS < most);
    }
}

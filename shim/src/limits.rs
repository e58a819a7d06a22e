//! How long the guest may take: one row for each kind of call to its agent, with the reason, and what is waited for besides.
//!
//! A row's limit holds for an emulated guest. [`Patience`] shortens it where KVM runs the guest, or as the operator says.
//!
//! A guest that is emulated on a busy host is slow, not broken. What the agent itself has a limit for gets a little more here, so that
//! the agent's own words arrive. `wait` and `next event` have none: the [heartbeat](PING) finds an agent that died meanwhile.

use std::time::Duration;

use caisson_oci::config;
use caisson_vmm::Accelerator;

/// A kind of call: its name in errors, and its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub name: &'static str,
    pub limit: Duration,
}

/// The most that any answer of one guest may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience(Duration);

impl Patience {
    /// With KVM a process starts in milliseconds, so who asks hears of a guest that is silent within ten seconds.
    const KVM: Duration = Duration::from_secs(8);
    /// Emulated, a process of a container that has 10m of cpu takes 40 s to start.
    const EMULATED: Duration = Duration::from_secs(65);

    /// As `[vm]` says, or by the accelerator.
    pub fn new(config: &config::Vm, accelerator: Accelerator) -> Self {
        let configured = config.answer_timeout_secs.map(Duration::from_secs);
        Self(configured.unwrap_or(match accelerator {
            Accelerator::Kvm => Self::KVM,
            Accelerator::Tcg => Self::EMULATED,
        }))
    }

    /// How long the answer to this call may take.
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

/// The first call: the guest has just booted, beside others that boot.
pub const CONFIGURE: Call = call("configure", 30);
/// A few writes to /proc; some make the kernel allocate.
pub const SET_SYSCTLS: Call = call("set sysctls", 20);
/// The guest's kernel has to find the device and load its driver, and replays the journal of a home; memory goes online block by block.
pub const ATTACH: Call = call("attach", 60);
/// An unmount of a read-only disk.
pub const DETACH: Call = call("detach", 20);
/// Done by a helper, to which the agent gives 60 s (guest/src/launch.rs).
pub const SHOW_DISK: Call = call("show disk", 65);
/// As above: the helper reads the container's files for the first time, through the share.
pub const CREATE: Call = call("create", 65);
/// The agent gives a waiting init 10 s (guest/src/containers.rs).
pub const START: Call = call("start", 15);
/// By a helper, as above.
pub const EXEC: Call = call("exec", 65);
/// One system call. For SIGKILL, [`KILLED`] counts as well.
pub const KILL: Call = call("kill", 5);
/// One system call.
pub const RESIZE: Call = call("resize", 5);
/// Reads one file of the kernel's.
pub const LIST_PROCESSES: Call = call("list processes", 10);
/// Each process has to reach a place where it can be frozen; one that waits for a disk does not yet.
pub const PAUSE: Call = call("pause", 15);
/// As above.
pub const RESUME: Call = call("resume", 15);
/// By a helper, as above.
pub const UPDATE: Call = call("update", 65);
/// What has ended is unmounted and its files are removed; the kubelet waits for it. A guest that is slower keeps the rest to its end.
pub const DELETE: Call = call("delete", 8);
/// Everything is written out, to disks that may be slow; what is not by then is lost, as after a power cut.
pub const SHUTDOWN: Call = call("shutdown", 3);
/// Answered at once by an agent that runs at all, and later by one that is emulated beside others that boot. One that does not
/// get to it for [`PINGS_MISSED`] times this long is dead.
pub const PING: Call = call("ping", 10);
/// Open until there is an event.
pub const NEXT_EVENT: Call = without_limit("next event");
/// Open until the process ends.
pub const WAIT: Call = without_limit("wait");
/// One at a time for each container; who asks does not wait for it, see [`STATS_WAIT`].
pub const STATS: Call = without_limit("stats");

/// So many calls without an answer that should have one make a guest broken, which answers pings only: each takes memory of the shim.
pub const MOST_OVERDUE: usize = 64;

/// Between an answer and the next ping: a dead agent is found within a minute, and an idle guest stays idle.
pub const PING_EVERY: Duration = Duration::from_secs(5);
/// So many in a row make an agent dead: one may be lost to a host that stood still.
pub const PINGS_MISSED: u32 = 3;

/// How long a process may take from SIGKILL to its end; then its VM is stopped. The kernel needs milliseconds, and one that is emulated on a
/// busy host a second; [`crate::streams::READ_LIMIT`] is in it. containerd's and the kubelet's patience is more.
pub const KILLED: Duration = Duration::from_secs(6);

/// As [`KILLED`], for a container that has not started and whose guest has left a call unanswered: it has had its time.
pub const KILLED_UNSTARTED: Duration = Duration::from_secs(1);

/// How long the guest may take to pass on what the pipes of an ended container hold, and to end its output. The kernel has ended all its
/// processes by then.
pub const REST_OF_OUTPUT: Duration = Duration::from_secs(5);

/// How long who asks for stats waits for fresh ones: a node's are asked for one container after the other.
pub const STATS_WAIT: Duration = Duration::from_millis(800);

/// How long a guest that has broken off may take to end by itself, which says more about why.
pub const LAST_WORDS: Duration = Duration::from_secs(2);

/// Between two events of the guest, so that one that has nothing but events to tell does not keep the shim busy.
pub const EVENT_PAUSE: Duration = Duration::from_millis(5);

/// A container is told to be out of memory at most once in this time.
pub const OOM_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_of_a_guest_with_kvm_is_answered_within_ten_seconds_or_without_a_limit() {
        let patience = Patience::new(&config::Vm::default(), Accelerator::Kvm);
        for call in [CONFIGURE, ATTACH, SHOW_DISK, CREATE, START, EXEC, UPDATE] {
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

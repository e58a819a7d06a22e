//! The states of a pod, of its machine and of its processes, and which may follow which.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// What a pod is doing.
///
/// ```text
///   Starting --its first container, or its sandbox--> Running --its VM's end--> Ended
///       `----------------------- the start fails ------------------------------^
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    Starting,
    Running,
    Ended,
}

/// What a pod's machine is doing.
///
/// ```text
///   Booting --the VMM runs--> Running <--pause, resume--> Paused
///      `------------------------ its end -------------------'--> Ended
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    Booting,
    Running,
    Paused,
    /// With the reason.
    Ended(String),
}

/// What a process in the guest is doing: a container's init or an exec.
///
/// ```text
///   Created --start--> Starting --> Running <--pause/resume--> Paused
///      |                  |            |                          |
///      `------------------+------------+------ its end -----------'
///                                      v
///                                   Stopped
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessState {
    Created,
    Starting,
    Running,
    Paused,
    Stopped(Exit),
}

/// How and when a process ended. The time is the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0-255.
    pub status: u32,
    pub at: SystemTime,
}

impl PodState {
    /// Returns the state's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Ended => "ended",
        }
    }

    /// Whether the diagram above has an arrow from `self` to `next`.
    pub fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Starting, Self::Running | Self::Ended) | (Self::Running, Self::Ended)
        )
    }
}

impl MachineState {
    /// Whether the diagram above has an arrow from `self` to `next`.
    pub fn may_become(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Ended(_), _) => false,
            (_, Self::Ended(_)) => true,
            (Self::Booting, Self::Running) => true,
            (Self::Running, Self::Paused) | (Self::Paused, Self::Running) => true,
            _ => false,
        }
    }
}

impl ProcessState {
    /// Returns the state's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped(_) => "stopped",
        }
    }

    /// Whether the diagram above has an arrow from `self` to `next`.
    pub fn may_become(self, next: Self) -> bool {
        use ProcessState::{Created, Paused, Running, Starting, Stopped};
        match (self, next) {
            (Stopped(_), _) => false,
            (_, Stopped(_)) => true,
            (Created, Starting) | (Starting, Running | Created) => true,
            (Running, Paused) | (Paused, Running) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_that_has_ended_stays_ended() {
        for next in [PodState::Starting, PodState::Running, PodState::Ended] {
            assert!(!PodState::Ended.may_become(next));
        }
    }

    #[test]
    fn pod_starts_once() {
        assert!(PodState::Starting.may_become(PodState::Running));
        assert!(!PodState::Running.may_become(PodState::Running));
        assert!(!PodState::Running.may_become(PodState::Starting));
    }

    #[test]
    fn machine_that_boots_is_not_paused() {
        assert!(!MachineState::Booting.may_become(&MachineState::Paused));
        assert!(MachineState::Running.may_become(&MachineState::Paused));
        assert!(MachineState::Paused.may_become(&MachineState::Running));
    }

    #[test]
    fn machine_that_has_ended_keeps_its_reason() {
        let ended = MachineState::Ended("it was stopped".to_owned());
        let later = MachineState::Ended("qemu died".to_owned());
        assert!(!ended.may_become(&later));
        assert!(MachineState::Booting.may_become(&later));
    }
}

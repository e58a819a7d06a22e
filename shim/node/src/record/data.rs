//! What a pod's record has.

use std::{collections::BTreeMap, path::PathBuf};

use caisson_oci::VmSize;
use serde::{Deserialize, Serialize};

use super::states::{MachineState, PodState, ProcessState};

/// The version of the format. A program refuses a record of another version.
pub const VERSION: u32 = 1;

/// What a pod is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    /// containerd's id of the pod's sandbox, or of the container that has a VM to itself.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The preset of the configuration that the pod has. None in a record from before there were
    /// any.
    #[serde(default)]
    pub preset: Option<String>,
    /// In what the pod is worse off than the node's settings want.
    #[serde(default)]
    pub degraded: Vec<Degraded>,
    /// How many frames of the guest the pod's egress has dropped. None if the egress is open.
    #[serde(default)]
    pub denied: Option<u64>,
    pub state: PodState,
    /// None before the pod has a machine.
    pub machine: Option<Machine>,
    /// The containers by id, the sandbox among them.
    pub containers: BTreeMap<String, Container>,
    /// The skills that were attached to containers that already existed.
    pub late_skills: Vec<LateSkill>,
    /// What the pod was claimed with. None in a record from before there were claims.
    #[serde(default)]
    pub claim: Option<Claim>,
}

/// In what a pod is worse off than the node's settings want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Degraded {
    /// The VM booted, where it was to start from a template.
    Cold,
    /// The guest's instructions are emulated, since KVM does not work on the node.
    Emulated,
}

/// The VM of a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub state: MachineState,
    /// The size that it was last given.
    pub cpus: u32,
    pub memory_mib: u64,
    /// What is plugged in: the VMM's name of each device and the port that it is plugged into. A
    /// device that needs no port has none.
    pub devices: BTreeMap<String, Option<String>>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// The name in the pod, if CRI gives one.
    pub name: Option<String>,
    pub bundle: PathBuf,
    /// The pid on the host that containerd was told.
    pub pid: u32,
    /// The init's pid in the guest. None for the sandbox, which has no process there.
    pub guest_pid: Option<u32>,
    pub state: ProcessState,
    /// Thousandths of a cpu; none is no limit.
    pub cpu_milli: Option<u64>,
    /// Bytes; none is no limit.
    pub memory: Option<u64>,
    /// The skills that it was created with: mount point and path in the guest.
    pub skills: Vec<(PathBuf, PathBuf)>,
    /// The execs by id.
    pub execs: BTreeMap<String, ProcessState>,
}

/// A skill that was attached late.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LateSkill {
    /// The sha256 of its file in hex.
    pub digest: String,
    /// The mount point in the containers.
    pub target: PathBuf,
    /// The ids of the containers that have it.
    pub containers: Vec<String>,
}

/// What a pod was claimed with, without the values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// The skills, as they were asked for.
    pub skills: Vec<String>,
    /// `ephemeral` or `persistent/NAME`.
    pub home: Option<String>,
    /// The names of the variables.
    pub variables: Vec<String>,
    /// The names of the secrets, of those by descriptor too.
    pub secrets: Vec<String>,
}

impl Record {
    /// Returns the record of a pod that has nothing yet.
    pub fn new(id: &str, namespace: &str) -> Self {
        Self {
            version: VERSION,
            id: id.to_owned(),
            namespace: namespace.to_owned(),
            preset: None,
            degraded: Vec::new(),
            denied: None,
            state: PodState::Starting,
            machine: None,
            containers: BTreeMap::new(),
            late_skills: Vec::new(),
            claim: None,
        }
    }

    /// Moves the pod on. Returns whether its state allows that.
    pub fn pod_becomes(&mut self, next: PodState) -> bool {
        let allowed = self.state.may_become(next);
        if allowed {
            self.state = next;
        }
        allowed
    }

    /// Adds the machine, which is about to boot.
    pub fn boot(&mut self, size: VmSize) {
        self.machine = Some(Machine {
            state: MachineState::Booting,
            cpus: size.cpus,
            memory_mib: size.memory_mib,
            devices: BTreeMap::new(),
        });
    }

    /// Moves the machine on. Returns whether there is one whose state allows that.
    pub fn machine_becomes(&mut self, next: MachineState) -> bool {
        match &mut self.machine {
            Some(machine) if machine.state.may_become(&next) => {
                machine.state = next;
                true
            }
            _ => false,
        }
    }

    /// Returns how many containers have a process that runs or may run, and how many have ended.
    pub fn count(&self) -> (usize, usize) {
        let containers = self.containers.values();
        let processes = containers.filter(|container| container.guest_pid.is_some());
        let (ended, live): (Vec<_>, Vec<_>) =
            processes.partition(|c| matches!(c.state, ProcessState::Stopped(_)));
        (live.len(), ended.len())
    }
}

//! What the counters tell apart. Each is a closed list, whose names are values of labels: none
//! comes from a guest or from the name of a pod.

use serde::{Deserialize, Serialize};

/// Defines an enum with a list of all its values and a name for each.
macro_rules! labels {
    ($(#[$of_all:meta])* $label:ident { $($(#[$of_one:meta])* $value:ident = $name:literal,)* }) => {
        $(#[$of_all])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $label {
            $($(#[$of_one])* #[serde(rename = $name)] $value,)*
        }

        impl $label {
            /// All values.
            pub const ALL: &'static [Self] = &[$(Self::$value,)*];

            /// Returns the name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $name,)*
                }
            }
        }
    };
}

labels! {
    /// Where the VM of a pod came from.
    Origin {
        /// It booted.
        Boot = "boot",
        /// It started from the node's template.
        Template = "template",
        /// It waited in the node's pool.
        Pool = "pool",
    }
}

labels! {
    /// What was to start.
    Task {
        /// A pod: its VM, and the container if that has a VM to itself.
        Pod = "pod",
        /// A container in a pod that runs.
        Container = "container",
    }
}

labels! {
    /// Why something did not start.
    Reason {
        /// The request or the policy does not allow it.
        Refused = "refused",
        /// The node's configuration can't be used.
        Configuration = "configuration",
        /// The node has no room for it.
        Resources = "resources",
        /// The VMM or one of its daemons failed.
        Vm = "vm",
        /// The agent in the guest failed or did not answer.
        Guest = "guest",
        /// The pod's network could not be set up.
        Network = "network",
        /// A skill could not be provided.
        Skill = "skill",
        /// The home could not be provided.
        Home = "home",
        /// A hook of the spec failed.
        Hook = "hook",
        /// An operation on a file, a mount or a stream of the host failed.
        Host = "host",
    }
}

labels! {
    /// A stage of a start, as `caisson trace` names it.
    Stage {
        Turn = "turn",
        Prepare = "prepare",
        Vmm = "vmm",
        AgentAnswers = "agent_answers",
        Guest = "guest",
        Sandbox = "sandbox",
        Attached = "attached",
        Created = "created",
        Streams = "streams",
    }
}

labels! {
    /// How a VM ended that nobody had stopped.
    VmFailure {
        /// The guest powered off or its kernel panicked.
        Guest = "guest_ended",
        /// The VMM or one of its daemons died.
        Process = "process_died",
        /// The pod's cgroup ran out of memory.
        Memory = "out_of_memory",
        /// The guest's agent stopped answering, or lied: the shim stopped the VM.
        BrokenOff = "broken_off",
    }
}

labels! {
    /// What came of a request for a skill.
    SkillRequest {
        /// The node's store had it.
        Hit = "hit",
        /// It was fetched from a source.
        Fetched = "fetched",
        /// It could not be had, or not by this namespace.
        Failed = "failed",
    }
}

impl Stage {
    /// Returns the stage with this name in the log. The others are parts of these.
    pub fn of(name: &str) -> Option<Self> {
        let label = name.replace(' ', "_");
        let mut all = Self::ALL.iter().copied();
        all.find(|stage| stage.name() == label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_is_found_by_its_name_in_the_log() {
        assert_eq!(Stage::of("agent answers"), Some(Stage::AgentAnswers));
        assert_eq!(Stage::of("vmm"), Some(Stage::Vmm));
        for part in ["qemu answers", "attach disk-7", ""] {
            assert_eq!(Stage::of(part), None, "{part}");
        }
    }
}

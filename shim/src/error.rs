//! The shim's error, and how it maps to the status codes that containerd understands.
//!
//! Each feature has an error of its own, which this one contains. Whatever uses several features
//! fails with this one.

use caisson_node::{
    accelerator::AcceleratorError,
    cgroup::CgroupError,
    config::ConfigError,
    counters::Reason,
    homes::HomeError,
    host::{chain::chain, error::FileError},
    skills::SkillError,
    state::StateError,
    templates::TemplateError,
};
use containerd_shim::protos::ttrpc::{self, Code};

use crate::{
    agent::AgentError, hooks::HookError, network::NetworkError, share::ShareError,
    streams::StreamError, vm::VmError,
};

/// A failed request. Its text reaches the user through containerd, in `ctr`'s output or in that of
/// `kubectl describe pod`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container's description was refused.
    #[error(transparent)]
    Refused(#[from] caisson_oci::Error),
    /// The node's configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No accelerator for the VM was found.
    #[error(transparent)]
    Accelerator(#[from] AcceleratorError),
    /// The VM failed, or ended during an operation on it.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The VM did not start, and it has more memory than the node.
    #[error(
        "the pod's VM of {vm_mib} MiB did not start on a node with {node_mib} MiB: lower the containers' memory limits, by which it is sized"
    )]
    TooLarge {
        vm_mib: u64,
        node_mib: u64,
        #[source]
        source: caisson_vmm::Error,
    },
    /// A call of the agent in the guest failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// There is no container, exec or task with that id.
    #[error("{what} {id:?}: not found")]
    NotFound { what: &'static str, id: String },
    /// The id is in use.
    #[error("{what} {id:?} already exists")]
    Exists { what: &'static str, id: String },
    /// The process is in a state that does not allow the operation.
    #[error("cannot {operation} {id:?}: it is {state}")]
    State {
        operation: &'static str,
        id: String,
        state: &'static str,
    },
    /// An operation on a file or folder of the host failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The pod's state folder can't be made or removed.
    #[error(transparent)]
    StateFolder(#[from] StateError),
    /// The template of the node's VMs can't be made.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A container's root or volumes can't be shared with the guest.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The shim's serving process could not be started.
    #[error("start the shim")]
    Spawn(#[source] Box<containerd_shim::Error>),
    /// A request contains something that can't be read.
    #[error("request: {field}: {reason}")]
    Request { field: &'static str, reason: String },
    /// A skill that an annotation asks for can't be provided.
    #[error("annotation caisson.dev/skills: {0}")]
    Skill(#[from] SkillError),
    /// A skill can't be attached to a running pod.
    #[error("attach the skill")]
    LateSkill(#[source] SkillError),
    /// The home that an annotation asks for can't be provided.
    #[error("annotation caisson.dev/home: {0}")]
    Home(#[from] HomeError),
    /// The home of a claim can't be provided.
    #[error("mount the home")]
    LateHome(#[source] HomeError),
    /// The pod's network can't be set up.
    #[error("the pod's network")]
    Network(#[from] NetworkError),
    /// A hook that the spec asks for failed.
    #[error("hooks")]
    Hook(#[from] HookError),
    /// The pod has a preset of the node's configuration.
    #[error("with the preset {preset}")]
    Preset {
        preset: String,
        #[source]
        source: Box<Error>,
    },
    /// A stream of a process can't be opened or connected.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// The result of a request.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns the error with its causes, in one line.
    pub fn chain(&self) -> String {
        chain(self)
    }

    /// Returns the error with the name of the preset that the pod has, if it has one.
    pub fn of_preset(self, preset: Option<&str>) -> Self {
        match preset {
            Some(preset) => Self::Preset {
                preset: preset.to_owned(),
                source: Box::new(self),
            },
            None => self,
        }
    }
}

/// Returns what a failed start is counted as. No `match` here has a wildcard, as for the codes.
pub fn reason(error: &Error) -> Reason {
    match error {
        Error::Refused(_)
        | Error::Request { .. }
        | Error::NotFound { .. }
        | Error::Exists { .. }
        | Error::State { .. } => Reason::Refused,
        Error::Config(_) => Reason::Configuration,
        Error::TooLarge { .. } => Reason::Resources,
        Error::Accelerator(_) | Error::Vm(_) | Error::Template(_) => Reason::Vm,
        Error::Agent(_) => Reason::Guest,
        Error::Network(_) => Reason::Network,
        Error::Skill(_) | Error::LateSkill(_) => Reason::Skill,
        Error::Home(_) | Error::LateHome(_) => Reason::Home,
        Error::Hook(_) => Reason::Hook,
        Error::StateFolder(StateError::NoFreeUser(_)) => Reason::Resources,
        Error::StateFolder(_)
        | Error::Share(_)
        | Error::File(_)
        | Error::Spawn(_)
        | Error::Stream(_) => Reason::Host,
        Error::Preset { source, .. } => reason(source),
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(code(&error), error.chain()))
    }
}

/// Returns the code that containerd gets for an error. No `match` here has a wildcard, so that a
/// new error gets a code of its own.
fn code(error: &Error) -> Code {
    match error {
        Error::Refused(_) | Error::Request { .. } => Code::INVALID_ARGUMENT,
        // What was attached by an annotation or an operator is named by the request, whatever is
        // wrong with it.
        Error::Skill(_) | Error::LateSkill(_) => Code::INVALID_ARGUMENT,
        Error::NotFound { .. } => Code::NOT_FOUND,
        Error::Exists { .. } => Code::ALREADY_EXISTS,
        Error::State { .. } => Code::FAILED_PRECONDITION,
        Error::Config(error) => match error {
            ConfigError::Refused(_) => Code::INVALID_ARGUMENT,
            ConfigError::File(_) => Code::UNKNOWN,
        },
        Error::Accelerator(error) => match error {
            AcceleratorError::State(error) => of_state(error),
            AcceleratorError::NoKvm(_) => Code::FAILED_PRECONDITION,
            AcceleratorError::Vm(_) | AcceleratorError::File(_) => Code::UNKNOWN,
        },
        Error::Vm(error) => of_vm(error),
        Error::Agent(error) => match error {
            AgentError::Refused { code, .. } => *code,
            AgentError::Silent { .. } => Code::DEADLINE_EXCEEDED,
            AgentError::Request { .. } => Code::INVALID_ARGUMENT,
            AgentError::File(_) => Code::UNKNOWN,
        },
        Error::StateFolder(error) => of_state(error),
        Error::Template(error) => match error {
            TemplateError::State(error) => of_state(error),
            TemplateError::Vm(_) | TemplateError::File(_) | TemplateError::Missing(_) => {
                Code::UNKNOWN
            }
        },
        Error::Share(error) => match error {
            ShareError::Mount { .. } | ShareError::File(_) => Code::UNKNOWN,
        },
        Error::Home(error) | Error::LateHome(error) => match error {
            HomeError::InUse { .. } => Code::FAILED_PRECONDITION,
            HomeError::OverBudget { .. } => Code::RESOURCE_EXHAUSTED,
            HomeError::TooLarge { .. }
            | HomeError::Missing(_)
            | HomeError::Other { .. }
            | HomeError::Namespace(_)
            | HomeError::NoHome(_)
            | HomeError::Place { .. } => Code::INVALID_ARGUMENT,
            HomeError::Tool { .. } | HomeError::File(_) => Code::UNKNOWN,
        },
        Error::Network(error) => match error {
            NetworkError::HostNamespace(_) | NetworkError::Unsupported { .. } => {
                Code::INVALID_ARGUMENT
            }
            NetworkError::Namespace { .. }
            | NetworkError::Read { .. }
            | NetworkError::Card { .. }
            | NetworkError::Egress { .. }
            | NetworkError::Resolver { .. }
            | NetworkError::Forward { .. } => Code::UNKNOWN,
        },
        Error::Preset { source, .. } => code(source),
        Error::Hook(error) => match error {
            HookError::Run { .. } | HookError::Failed { .. } | HookError::File(_) => Code::UNKNOWN,
            HookError::Timeout { .. } => Code::DEADLINE_EXCEEDED,
        },
        Error::Stream(error) => match error {
            StreamError::Uri { .. } => Code::INVALID_ARGUMENT,
            StreamError::Vm(error) => of_vm(error),
            StreamError::Silent(_) => Code::DEADLINE_EXCEEDED,
            StreamError::Open { .. } | StreamError::File(_) => Code::UNKNOWN,
        },
        Error::TooLarge { .. } | Error::Spawn(_) | Error::File(_) => Code::UNKNOWN,
    }
}

fn of_vm(error: &VmError) -> Code {
    match error {
        VmError::Failed(_) => Code::UNKNOWN,
        VmError::Ended(_) => Code::UNAVAILABLE,
    }
}

fn of_state(error: &StateError) -> Code {
    match error {
        StateError::Refused(_) => Code::INVALID_ARGUMENT,
        StateError::Exists(_) => Code::ALREADY_EXISTS,
        StateError::NoFreeUser(_) => Code::RESOURCE_EXHAUSTED,
        StateError::Cgroup(CgroupError::Path(_)) => Code::INVALID_ARGUMENT,
        StateError::Cgroup(CgroupError::Failed { .. })
        | StateError::Record(_)
        | StateError::File(_) => Code::UNKNOWN,
    }
}

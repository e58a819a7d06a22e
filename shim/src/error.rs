//! The shim's errors, and how they map to the status codes that containerd understands.

use std::{io, path::PathBuf};

use containerd_shim::protos::ttrpc;

use crate::{homes::HomeError, network::NetworkError};

/// A failed request. Its text reaches the user through containerd, in `ctr`'s output or in that of
/// `kubectl describe pod`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container's description or the node's configuration was refused.
    #[error(transparent)]
    Refused(#[from] caisson_oci::Error),
    /// The VM or one of its devices failed.
    #[error("the pod's VM")]
    Vm(#[from] caisson_vmm::Error),
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
    /// The VM ended during an operation on it.
    #[error("the pod's VM has ended: {0}")]
    VmEnded(String),
    /// The agent in the guest refused a request; its own text says why.
    #[error("OCI runtime {operation} failed: {message}")]
    Agent {
        /// `create`, `start`, `exec` …
        operation: &'static str,
        code: ttrpc::Code,
        /// Shortened, since a guest may send anything.
        message: String,
    },
    /// The agent did not answer in time, or the connection broke.
    #[error("the agent in the guest did not answer {operation}: {message}")]
    AgentSilent {
        operation: &'static str,
        message: String,
    },
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
    #[error("{operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The shim's serving process could not be started.
    #[error("start the shim")]
    Spawn(#[source] Box<containerd_shim::Error>),
    /// An operation on the pod's cgroup on the host failed.
    #[error("{operation} the pod's cgroup {}", path.display())]
    Cgroup {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: cgroups_rs::fs::error::Error,
    },
    /// A mount on the host failed.
    #[error("mount {} for the guest", target.display())]
    Mount {
        target: PathBuf,
        #[source]
        source: Box<containerd_shim::Error>,
    },
    /// A request contains something that can't be read.
    #[error("request: {field}: {reason}")]
    Request { field: &'static str, reason: String },
    /// A skill that an annotation asks for can't be provided.
    #[error("annotation caisson.dev/skills: {0}")]
    Skill(#[from] crate::skills::SkillError),
    /// A skill can't be attached to a running pod.
    #[error("attach the skill")]
    LateSkill(#[source] crate::skills::SkillError),
    /// The home that an annotation asks for can't be provided.
    #[error("annotation caisson.dev/home: {0}")]
    Home(#[from] crate::homes::HomeError),
    /// The pod's network can't be set up.
    #[error("the pod's network")]
    Network(#[from] crate::network::NetworkError),
    /// A stream of a process can't be opened.
    #[error("{stream} of the process")]
    Stream {
        /// e.g. `stdin fifo /run/…`
        stream: String,
        #[source]
        source: io::Error,
    },
    /// All users in the range of `hypervisor.uid_count` ids from `hypervisor.uid_base` are in use.
    #[error("no free user for the pod's VM: all {0} of hypervisor.uid_count are in use; raise it or run `caisson gc`")]
    NoFreeUser(u32),
}

/// The result of a request.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns a function for `map_err` after an operation on a path.
    pub fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }

    /// Returns the error with its causes, in one line.
    pub fn chain(&self) -> String {
        chain(self)
    }

    fn code(&self) -> ttrpc::Code {
        match self {
            Self::Refused(_) | Self::Request { .. } | Self::Skill(_) | Self::LateSkill(_) => {
                ttrpc::Code::INVALID_ARGUMENT
            }
            Self::Home(error) => match error {
                HomeError::InUse { .. } => ttrpc::Code::FAILED_PRECONDITION,
                HomeError::TooLarge { .. } => ttrpc::Code::INVALID_ARGUMENT,
                HomeError::OverBudget { .. } => ttrpc::Code::RESOURCE_EXHAUSTED,
                HomeError::Missing(_)
                | HomeError::Other { .. }
                | HomeError::Namespace(_)
                | HomeError::NoHome(_)
                | HomeError::Place { .. } => ttrpc::Code::INVALID_ARGUMENT,
                HomeError::Tool { .. } | HomeError::File { .. } => ttrpc::Code::UNKNOWN,
            },
            Self::Network(error) => match error {
                NetworkError::HostNamespace(_) | NetworkError::Unsupported { .. } => {
                    ttrpc::Code::INVALID_ARGUMENT
                }
                NetworkError::Namespace { .. }
                | NetworkError::Read { .. }
                | NetworkError::Card { .. }
                | NetworkError::Forward { .. } => ttrpc::Code::UNKNOWN,
            },
            Self::NotFound { .. } => ttrpc::Code::NOT_FOUND,
            Self::Exists { .. } => ttrpc::Code::ALREADY_EXISTS,
            Self::State { .. } => ttrpc::Code::FAILED_PRECONDITION,
            Self::Agent { code, .. } => *code,
            Self::AgentSilent { .. } => ttrpc::Code::DEADLINE_EXCEEDED,
            Self::NoFreeUser(_) => ttrpc::Code::RESOURCE_EXHAUSTED,
            Self::VmEnded(_) => ttrpc::Code::UNAVAILABLE,
            Self::Vm(_)
            | Self::TooLarge { .. }
            | Self::Spawn(_)
            | Self::File { .. }
            | Self::Cgroup { .. }
            | Self::Mount { .. }
            | Self::Stream { .. } => ttrpc::Code::UNKNOWN,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.chain()))
    }
}

/// Joins `error` and its causes with colons. Omits a cause that repeats the end of the text before
/// it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

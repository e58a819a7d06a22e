//! The contract between the shim and the agent in the guest.
//!
//! - [`agent`] and [`agent_ttrpc`]: the ttrpc service, generated from `proto/agent.proto`;
//! - [`port`]: where the agent listens;
//! - [`secret`]: what each connection to it begins with;
//! - [`stream`]: how the bytes of stdin, stdout and stderr travel;
//! - [`forward`]: how connections reach servers in the guest;
//! - [`path`]: where the agent puts what is attached, which specs made on the host refer to.

#![allow(clippy::unwrap_used)] // in the generated code

include!(concat!(env!("OUT_DIR"), "/mod.rs"));

pub mod forward;
pub mod secret;
pub mod stream;

/// vsock ports: on the first the host listens, on the others the agent.
pub mod port {
    /// The agent connects here once it listens, to say that it does, and closes.
    pub const READY: u32 = 1023;
    /// The `Agent` service, ttrpc.
    pub const AGENT: u32 = 1024;
    /// Byte streams of processes, see [`crate::stream`].
    pub const STREAMS: u32 = 1025;
    /// TCP connections to servers in the guest, see [`crate::forward`].
    pub const FORWARD: u32 = 1026;
}

/// Places in the guest that both sides name.
pub mod path {
    /// A share with tag `t` is mounted at `SHARES/t`.
    pub const SHARES: &str = "/run/caisson/shares";
    /// A disk with serial `s` is mounted at `DISKS/s`.
    pub const DISKS: &str = "/run/caisson/disks";
    /// The pod's memory with name `n` is mounted at `MEMORY/n`.
    pub const MEMORY: &str = "/run/caisson/memory";
    /// A pid namespace with this path is the pod's own, of all containers that name it. Its init is the agent's; no file.
    pub const POD_PID_NAMESPACE: &str = "/run/caisson/pid-namespace";
    /// A user namespace with this path is the pod's own, of all containers that name it, with the mappings of their specs; no file.
    pub const POD_USER_NAMESPACE: &str = "/run/caisson/user-namespace";
    /// Serial of the disk with the kernel's further modules, a squashfs whose root is `/lib/modules`.
    pub const MODULES_SERIAL: &str = "modules";
}

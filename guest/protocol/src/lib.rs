//! The contract between the shim and the agent in the guest.
//!
//! - [`agent`] and [`agent_ttrpc`]: the ttrpc service, generated from `proto/agent.proto`;
//! - [`port`]: the ports on which the agent and the host listen;
//! - [`secret`]: the secret with which each connection to the agent begins;
//! - [`stream`]: how the bytes of stdin, stdout and stderr travel;
//! - [`forward`]: how connections reach servers in the guest;
//! - [`path`]: where the agent mounts what is attached; specs made on the host refer to these
//!   paths.

#![allow(clippy::unwrap_used)] // in the generated code

include!(concat!(env!("OUT_DIR"), "/mod.rs"));

pub mod forward;
pub mod secret;
pub mod stream;

/// The vsock ports. The host listens on the first one, the agent on the others.
pub mod port {
    /// The agent connects here to say that it listens, and closes the connection at once.
    pub const READY: u32 = 1023;
    /// The `Agent` service, ttrpc.
    pub const AGENT: u32 = 1024;
    /// Byte streams of processes, see [`crate::stream`].
    pub const STREAMS: u32 = 1025;
    /// TCP connections to servers in the guest, see [`crate::forward`].
    pub const FORWARD: u32 = 1026;
}

/// Paths in the guest that both sides use.
pub mod path {
    /// A share with tag `t` is mounted at `SHARES/t`.
    pub const SHARES: &str = "/run/caisson/shares";
    /// A disk with serial `s` is mounted at `DISKS/s`.
    pub const DISKS: &str = "/run/caisson/disks";
    /// The pod's memory with name `n` is mounted at `MEMORY/n`.
    pub const MEMORY: &str = "/run/caisson/memory";
    /// The part of a volume with name `n` is mounted at `PARTS/n`.
    pub const PARTS: &str = "/run/caisson/parts";
    /// The serial of the disk with further kernel modules, a squashfs whose root is `/lib/modules`.
    pub const MODULES_SERIAL: &str = "modules";
}

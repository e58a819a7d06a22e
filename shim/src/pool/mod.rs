//! Keeps VMs ready for the pods to come, as many as `pool.size` says.
//!
//! A member of the pool is a whole shim with a VM that runs and has its shared folder
//! (`member.rs`), and in which a container has been made once ([`crate::rehearsal`]). When
//! containerd asks for the shim of a new pod, the process that it starts hands the pod over to a
//! member (`claim.rs`), which takes the pod's id, cgroup and bundle and serves it from then on.
//! After the pod's start, its shim has the next member born (`birth.rs`). Without a member, the
//! pod's shim makes the VM itself, by the same code.

mod birth;
mod claim;
mod member;

pub use birth::{fill, leave, ACTION};
pub use claim::{claim, TTRPC_ADDRESS};
pub use member::member;

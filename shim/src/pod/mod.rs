//! A pod: one VM and the containers in it. This is what the task service does, without containerd's
//! messages.
//!
//! `base.rs` has the pod. The other files give it its abilities: `create.rs` creates containers,
//! `processes.rs` starts, signals and removes their processes, `sandbox.rs` boots the VM, also as a
//! task of its own, `size.rs` fits its size, `usage.rs` tells what is used, `late.rs` attaches
//! skills to existing containers, `claim.rs` gives them what a claim has, and `watch.rs` follows
//! the ends of processes and of the guest.

mod base;
mod claim;
mod create;
mod late;
mod late_skill;
mod operator;
mod processes;
mod request;
mod sandbox;
mod size;
mod usage;
mod watch;

pub use base::Pod;
pub use request::{CreateRequest, SandboxRequest};

//! What a driver of any hypervisor needs: the host's side of a VM.
//!
//! - `state`, `size`: what a VM allows while it runs or is paused, and how large it may be;
//! - `end`: how a VM's end is noticed, and told once with its reason;
//! - `devices`: the table of attached devices and their daemons;
//! - `process`, `spawn`: helper processes, from the fork to their end;
//! - `jail`, `filter`, `limits`, `placement`, `user_namespace`: their confinement and their place;
//! - `virtiofsd`, `vsock`: the daemons of shared directories and of the control channel;
//! - `log_lines`, `stage`: what they and the guest's console write, and how long a start takes;
//! - `confined`: a program that runs once on a file of a guest.

pub mod confined;
pub(crate) mod devices;
pub(crate) mod end;
pub(crate) mod filter;
pub(crate) mod jail;
pub(crate) mod limits;
pub mod log_lines;
pub(crate) mod placement;
pub(crate) mod process;
pub(crate) mod size;
pub(crate) mod spawn;
pub(crate) mod stage;
pub(crate) mod state;
pub mod user_namespace;
pub mod virtiofsd;
pub mod vsock;

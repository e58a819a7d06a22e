//! Traffic control of the host's kernel: redirects packets from one interface to another, and drops
//! the frames that a guest may not send. Those are frames from others' addresses (`guard.rs`), and
//! to what its pod's egress does not have (`egress/`).

pub mod bpf;
mod ebpf;
pub mod egress;
pub mod guard;
pub mod netlink;
pub mod tc;
mod trial;

pub use trial::{try_anti_spoofing, try_egress};

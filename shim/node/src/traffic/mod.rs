//! Traffic control of the host's kernel: redirects packets from one interface to another, and drops
//! the frames that a guest may not send.

pub mod bpf;
pub mod guard;
pub mod netlink;
pub mod tc;
mod trial;

pub use trial::try_anti_spoofing;

//! Copies stdin, stdout and stderr of a process between the host (FIFOs, files and logging
//! programs) and stream connections to the guest.
//!
//! Each stream is one task that copies one frame at a time. Memory is therefore bounded, and a
//! reader that does not read stops the writer in the guest.

mod log_uri;
mod pumps;
mod sink;
mod tokens;

pub use pumps::{HostEnds, Pumps, Stdio, READ_LIMIT};
pub use sink::StreamError;
pub use tokens::Tokens;

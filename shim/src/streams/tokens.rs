//! The tokens by which the guest recognises the streams of a process.

use caisson_node::host::{error::FileError, random};

/// The tokens that connect the streams of a process; 0 means that there is no such stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tokens {
    pub stdin: u64,
    pub stdout: u64,
    pub stderr: u64,
}

/// Returns a fresh random token for a stream, never 0.
pub fn new_token() -> Result<u64, FileError> {
    let mut bytes = [0; 8];
    random::fill(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

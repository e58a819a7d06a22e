//! The state of a VM that has not ended, and what it allows.

use crate::{Error, Result};

/// Whether a VM's guest runs.
///
/// ```text
///   boot --> Running --pause--> Paused <-- restore
///               ^                 | `--save--> Paused
///               `-----resume------'
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    Paused,
}

impl State {
    /// Refuses an operation that is possible in the state `needed` only.
    pub(crate) fn allows(self, operation: &'static str, needed: State) -> Result<()> {
        if self == needed {
            return Ok(());
        }
        let state = match self {
            State::Running => "running",
            State::Paused => "paused",
        };
        Err(Error::State { operation, state })
    }
}

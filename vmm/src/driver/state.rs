//! The state of a VM that has not ended, and what it allows.

use tokio::sync::watch;

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

/// The state of one VM, which others can follow.
#[derive(Debug)]
pub(crate) struct States(watch::Sender<State>);

impl States {
    pub(crate) fn new(state: State) -> States {
        States(watch::Sender::new(state))
    }

    pub(crate) fn set(&self, state: State) {
        self.0.send_replace(state);
    }

    pub(crate) fn follow(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }

    /// Refuses an operation that is possible in the state `needed` only.
    pub(crate) fn allow(&self, operation: &'static str, needed: State) -> Result<()> {
        let state = match *self.0.borrow() {
            state if state == needed => return Ok(()),
            State::Running => "running",
            State::Paused => "paused",
        };
        Err(Error::State { operation, state })
    }
}

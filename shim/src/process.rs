//! One process in the guest, as containerd knows it: a container's init or an exec. Its states are
//! drawn at [`State`].

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use caisson_node::record::{Exit, ProcessState as State};
use caisson_oci::exec::Exec;
use tokio::sync::watch;

use crate::{
    agent::ProcessId,
    error::{Error, Result},
    limits,
    streams::{Pumps, Stdio, READ_LIMIT},
};

/// A process and its streams.
pub struct Process {
    pub id: ProcessId,
    pub stdio: Stdio,
    /// What an exec runs. None for a container's init.
    pub exec: Option<Exec>,
    state: watch::Sender<State>,
    streams: Mutex<Streams>,
    is_killed: watch::Sender<bool>,
}

/// The connected streams of a process.
#[derive(Default)]
struct Streams {
    pumps: Option<Pumps>,
    /// Kept here because containerd may close stdin before a start has connected the streams.
    stdin_closed: bool,
}

impl Process {
    /// Creates a process that is not running yet.
    pub fn new(id: ProcessId, stdio: Stdio) -> Self {
        Self {
            id,
            stdio,
            exec: None,
            state: watch::Sender::new(State::Created),
            streams: Mutex::default(),
            is_killed: watch::Sender::new(false),
        }
    }

    /// Creates an exec that is not running yet.
    pub fn of_exec(id: ProcessId, stdio: Stdio, exec: Exec) -> Self {
        Self {
            exec: Some(exec),
            ..Self::new(id, stdio)
        }
    }

    /// Records that the process was killed. Returns whether this is the first time.
    pub fn kill(&self) -> bool {
        !self.is_killed.send_replace(true)
    }

    /// Resolves when [`Process::kill`] has been called.
    pub async fn killed(&self) {
        let mut is_killed = self.is_killed.subscribe();
        // The sender lives as long as `self`.
        drop(is_killed.wait_for(|is_killed| *is_killed).await);
    }

    /// Returns the process' name in errors and logs.
    pub fn name(&self) -> &str {
        match self.id.exec.as_str() {
            "" => &self.id.container,
            exec => exec,
        }
    }

    /// Returns the current state.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Moves on to `next`. If the current state does not allow that, returns an error that names
    /// `operation`.
    pub fn transition(&self, operation: &'static str, next: State) -> Result<()> {
        let mut refused = None;
        self.state.send_if_modified(|state| {
            let allowed = state.may_become(next);
            if allowed {
                *state = next;
            } else {
                refused = Some(*state);
            }
            allowed
        });
        match refused {
            None => Ok(()),
            Some(state) => Err(Error::State {
                operation,
                id: self.name().to_owned(),
                state: state.name(),
            }),
        }
    }

    /// Resolves when the process has ended.
    pub async fn exited(&self) -> Exit {
        let mut states = self.state.subscribe();
        loop {
            if let State::Stopped(exit) = *states.borrow_and_update() {
                return exit;
            }
            if states.changed().await.is_err() {
                // Never reached: the sender lives as long as `self`.
                futures::future::pending::<()>().await;
            }
        }
    }

    /// Resolves when a start that is under way has been announced or has failed.
    pub async fn settled(&self) {
        let mut states = self.state.subscribe();
        // The sender lives as long as `self`.
        drop(states.wait_for(|state| *state != State::Starting).await);
    }

    /// Takes over the running copies of the streams.
    pub fn set_pumps(&self, mut pumps: Pumps) {
        let mut streams = self.streams();
        if streams.stdin_closed {
            pumps.close_stdin();
        }
        streams.pumps = Some(pumps);
    }

    /// Closes stdin, see [`Pumps::close_stdin`].
    pub fn close_stdin(&self) {
        let mut streams = self.streams();
        streams.stdin_closed = true;
        if let Some(pumps) = &mut streams.pumps {
            pumps.close_stdin();
        }
    }

    /// Waits until all output has been read, at most for [`READ_LIMIT`].
    pub async fn output_read(&self) {
        let open = self.streams().pumps.as_ref().map(Pumps::output_open);
        if let Some(open) = open {
            // A child of the process may hold the output open and write to it for ever.
            let _ = tokio::time::timeout(READ_LIMIT, open.closed()).await;
        }
    }

    /// Limits how long the guest keeps the output of an ended process open. What the process had
    /// written still arrives, however slowly it is read. Its readers wait for its end.
    pub async fn end_output(&self) {
        const LOOK: Duration = Duration::from_millis(100);
        loop {
            let counted = |pumps: &mut Pumps| pumps.count(LOOK, limits::REST_OF_OUTPUT);
            if !self.streams().pumps.as_mut().is_some_and(counted) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the output has arrived, at most for `within`, and cuts what is left.
    pub async fn drain(&self, within: Duration) {
        let pumps = self.streams().pumps.take();
        if let Some(mut pumps) = pumps {
            pumps.drain(within).await;
        }
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn process() -> Process {
        let id = ProcessId {
            container: "web".to_owned(),
            exec: String::new(),
        };
        Process::new(id, Stdio::default())
    }

    fn stopped() -> State {
        State::Stopped(Exit {
            status: 0,
            at: SystemTime::UNIX_EPOCH,
        })
    }

    #[test]
    fn process_goes_through_its_life_once() {
        let process = process();
        for next in [
            State::Starting,
            State::Running,
            State::Paused,
            State::Running,
            stopped(),
        ] {
            process.transition("test", next).unwrap();
        }
        for next in [State::Starting, State::Running, State::Paused, stopped()] {
            process.transition("test", next).unwrap_err();
        }
    }

    #[test]
    fn process_is_not_started_twice() {
        let process = process();
        process.transition("start", State::Starting).unwrap();
        let error = process.transition("start", State::Starting).unwrap_err();
        assert_eq!(error.to_string(), "cannot start \"web\": it is starting");
    }
}

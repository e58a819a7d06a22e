//! Finds out why a VM has ended.
//!
//! ```text
//!   a stop, the end of a process of the VM, or a VMM that gives its machine up
//!     -> the cause: daemons end when the VMM does, and the VMM when its guest does
//!     -> EndReason, told once to everybody who waits
//! ```

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{log_lines::Tail, process::Child};
use crate::{EndReason, Ended, Error, Result};

/// How long to wait for the cause of a process's end.
const CAUSE_LIMIT: Duration = Duration::from_millis(300);

/// What a VMM says about the end of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// The guest has ended, and the VMM's process is about to. The text is the VMM's reason.
    GuestEnded(String),
    /// The VMM does not run the machine any more, but its process stays.
    GivenUp(&'static str),
}

impl Said {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Said::GuestEnded(reason) => reason,
            Said::GivenUp(reason) => reason,
        }
    }
}

/// The role of a process of the VM that has ended, and how it ended.
type Death = (String, String);

/// The end of a VM.
#[derive(Debug)]
pub(crate) struct End {
    deaths: mpsc::UnboundedSender<Death>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<Option<EndReason>>,
}

impl End {
    /// Watches for the end of a VM that `vmm` runs. The sender of `said` must be gone when the VMM
    /// can't say more. The end of a guest is told with the last lines of its `console`.
    pub(crate) fn watch(vmm: &Child, said: watch::Receiver<Option<Said>>, console: Tail) -> End {
        let (deaths, died) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let (sender, ended) = watch::channel(None);
        let role = vmm.role().to_owned();
        tokio::spawn(async move {
            let reason = reason(&role, said, died, stopped, console).await;
            let _ = sender.send(Some(reason));
        });
        let end = End {
            deaths,
            stop,
            ended,
        };
        end.comes_with(vmm);
        end
    }

    /// Makes the end of a process the VM's end, until the returned task is aborted.
    pub(crate) fn comes_with(&self, child: &Child) -> JoinHandle<()> {
        let role = child.role().to_owned();
        let ended = child.ended();
        let deaths = self.deaths.clone();
        tokio::spawn(async move {
            let how = ended.await;
            let _ = deaths.send((role, how));
        })
    }

    /// The VM is being stopped. Idempotent.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// See [`crate::Vm::wait`].
    pub(crate) fn wait(&self) -> Ended {
        let mut ended = self.ended.clone();
        Box::pin(async move {
            match ended.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or(EndReason::Stopped),
                Err(_) => EndReason::Stopped,
            }
        })
    }

    /// Fails once the VM has ended.
    pub(crate) fn not_yet(&self) -> Result<()> {
        match &*self.ended.borrow() {
            Some(reason) => Err(Error::Ended(reason.clone())),
            None if *self.stop.borrow() => Err(Error::Ended(EndReason::Stopped)),
            None => Ok(()),
        }
    }
}

/// Waits for the VM's end and returns its reason. `vmm` is the role of the VMM.
async fn reason(
    vmm: &str,
    mut said: watch::Receiver<Option<Said>>,
    mut died: mpsc::UnboundedReceiver<Death>,
    mut stopped: watch::Receiver<bool>,
    console: Tail,
) -> EndReason {
    let mut given_up = said.clone();
    let given_up = given_up.wait_for(|said| matches!(said, Some(Said::GivenUp(_))));
    let first = tokio::select! {
        biased;
        // An error means that the VM was dropped.
        _ = stopped.wait_for(|stopped| *stopped) => return EndReason::Stopped,
        Some(first) = died.recv() => first,
        Ok(said) = given_up => {
            let reason = said.as_ref().map_or("", Said::reason);
            (vmm.to_owned(), reason.to_owned())
        }
    };
    let (role, how) = cause(vmm, first, &mut died).await;
    if role == vmm {
        if let Some(said) = last_words(&mut said).await {
            let text = match console.text() {
                console if console.is_empty() => said,
                console => format!("{said}: {console}"),
            };
            return EndReason::GuestEnded(text);
        }
    }
    EndReason::ProcessDied { role, how }
}

/// Returns the cause of a VM's end, given the first process whose end was seen. Daemons end when
/// the VMM does, and their ends may be seen earlier; then the VMM's end is the cause.
async fn cause(vmm: &str, first: Death, died: &mut mpsc::UnboundedReceiver<Death>) -> Death {
    if first.0 == vmm {
        return first;
    }
    let vmm_died = async {
        loop {
            match died.recv().await {
                Some(death) if death.0 == vmm => return Some(death),
                Some(_) => {}
                None => return None,
            }
        }
    };
    timeout(CAUSE_LIMIT, vmm_died)
        .await
        .ok()
        .flatten()
        .unwrap_or(first)
}

/// What the VMM said about the end before it ended.
async fn last_words(said: &mut watch::Receiver<Option<Said>>) -> Option<String> {
    let said = timeout(CAUSE_LIMIT, said.wait_for(Option::is_some)).await;
    let said = said.ok()?.ok()?;
    said.as_ref().map(|said| said.reason().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of a VM with these deaths, in this order, whose VMM is `vmm` and said this.
    async fn end_of(deaths: &[&str], said: Option<Said>) -> EndReason {
        let (sender, died) = mpsc::unbounded_channel();
        for role in deaths {
            sender
                .send(((*role).to_owned(), "gone".to_owned()))
                .unwrap();
        }
        let (stop, stopped) = watch::channel(false);
        let (_, said) = watch::channel(said);
        let reason = reason("vmm", said, died, stopped, Tail::default()).await;
        drop(stop);
        reason
    }

    fn died(role: &str) -> EndReason {
        EndReason::ProcessDied {
            role: role.to_owned(),
            how: "gone".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn daemon_that_dies_alone_is_the_reason() {
        assert_eq!(end_of(&["vsock"], None).await, died("vsock"));
    }

    #[tokio::test(start_paused = true)]
    async fn daemon_that_dies_with_the_vmm_is_not_the_reason() {
        assert_eq!(end_of(&["vsock", "share", "vmm"], None).await, died("vmm"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_vmm_said_is_the_reason_of_its_end() {
        let panicked = Said::GuestEnded("guest-panic".to_owned());
        let ended = EndReason::GuestEnded("guest-panic".to_owned());
        assert_eq!(end_of(&["vsock", "vmm"], Some(panicked)).await, ended);
    }

    #[tokio::test(start_paused = true)]
    async fn vmm_that_gives_its_machine_up_has_not_to_die_for_the_end() {
        let ended = EndReason::GuestEnded("broken".to_owned());
        assert_eq!(end_of(&[], Some(Said::GivenUp("broken"))).await, ended);
    }
}

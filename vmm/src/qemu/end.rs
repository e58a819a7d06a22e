//! Finds out why a VM of QEMU has ended.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::qmp::Event;
use crate::{driver::log_lines::Tail, EndReason};

/// How long to wait for the cause of a process's end.
const CAUSE_LIMIT: Duration = Duration::from_millis(300);

/// The reason if KVM can't run a machine: QEMU keeps the machine, but does not run it any more.
const INTERNAL_ERROR: &str = "internal error of the accelerator";

/// The maximum length of QEMU's own reason, in characters.
const MAX_REASON: usize = 64;

/// The role of a process of the VM that has ended, and how it ended.
pub(crate) type Death = (String, String);

/// Records the first reason that QEMU gives for the machine's end.
pub(crate) fn note(end: &watch::Sender<Option<String>>, event: &Event) {
    let reason = match event.name.as_str() {
        "SHUTDOWN" => event.data["reason"].as_str().unwrap_or("shutdown"),
        "GUEST_PANICKED" => "guest-panic",
        // Nothing else stops a running machine.
        "STOP" => INTERNAL_ERROR,
        _ => return,
    };
    end.send_if_modified(|end| {
        let first = end.is_none();
        end.get_or_insert_with(|| reason.chars().take(MAX_REASON).collect());
        first
    });
}

/// Sends the reason once the VM has ended: a stop, or the end of the first of its processes.
pub(crate) async fn watch(
    console: Tail,
    mut qemu_end: watch::Receiver<Option<String>>,
    mut died: mpsc::UnboundedReceiver<Death>,
    mut stopped: watch::Receiver<bool>,
    end: watch::Sender<Option<EndReason>>,
) {
    let mut failed = qemu_end.clone();
    let failed = failed.wait_for(|said| said.as_deref() == Some(INTERNAL_ERROR));
    let first = tokio::select! {
        biased;
        _ = stopped.wait_for(|stopped| *stopped) => None,
        first = died.recv() => first,
        Ok(_) = failed => Some(("qemu".to_owned(), INTERNAL_ERROR.to_owned())),
    };
    let reason = match first {
        None => EndReason::Stopped,
        Some(first) => match cause(first, &mut died).await {
            (role, how) if role == "qemu" => match said(&mut qemu_end).await {
                Some(said) => EndReason::GuestEnded(format!("{said}: {}", console.text())),
                None => EndReason::ProcessDied { role, how },
            },
            (role, how) => EndReason::ProcessDied { role, how },
        },
    };
    let _ = end.send(Some(reason));
}

/// Returns the cause of a VM's end, given the first process whose end was seen. Daemons end when
/// QEMU does, and their ends may be seen earlier; then QEMU's end is the cause.
async fn cause(first: Death, died: &mut mpsc::UnboundedReceiver<Death>) -> Death {
    if first.0 == "qemu" {
        return first;
    }
    let qemu = async {
        loop {
            match died.recv().await {
                Some(death) if death.0 == "qemu" => return Some(death),
                Some(_) => {}
                None => return None,
            }
        }
    };
    timeout(CAUSE_LIMIT, qemu)
        .await
        .ok()
        .flatten()
        .unwrap_or(first)
}

/// What QEMU said about its end before it ended.
async fn said(qemu_end: &mut watch::Receiver<Option<String>>) -> Option<String> {
    let said = timeout(CAUSE_LIMIT, qemu_end.wait_for(Option::is_some)).await;
    said.ok()?.ok()?.clone()
}

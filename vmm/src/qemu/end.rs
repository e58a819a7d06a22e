//! Why a VM of QEMU has ended.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::qmp::Event;
use crate::{log_lines::Tail, EndReason};

/// How long the cause of a process's end is waited for.
const CAUSE_LIMIT: Duration = Duration::from_millis(300);

/// QEMU keeps a machine that KVM can't run, but does not run it any more.
const INTERNAL_ERROR: &str = "internal error of the accelerator";

/// The most of QEMU's own word for it, in characters.
const MAX_REASON: usize = 64;

/// A process of the VM that has ended: its role and how.
pub(crate) type Death = (String, String);

/// Keeps the first reason that QEMU gives for the machine's end.
pub(crate) fn note(end: &watch::Sender<Option<String>>, event: &Event) {
    let reason = match event.name.as_str() {
        "SHUTDOWN" => event.data["reason"].as_str().unwrap_or("shutdown"),
        "GUEST_PANICKED" => "guest-panic",
        // Nobody else stops a running machine.
        "STOP" => INTERNAL_ERROR,
        _ => return,
    };
    end.send_if_modified(|end| {
        let first = end.is_none();
        end.get_or_insert_with(|| reason.chars().take(MAX_REASON).collect());
        first
    });
}

/// Sends why the VM has ended, once it has: by a stop, or by the first of its processes that does.
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

/// Daemons end when QEMU does, and may be seen to earlier than it: QEMU's end is the cause then.
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

/// What QEMU, which has ended, had said about it.
async fn said(qemu_end: &mut watch::Receiver<Option<String>>) -> Option<String> {
    let said = timeout(CAUSE_LIMIT, qemu_end.wait_for(Option::is_some)).await;
    said.ok()?.ok()?.clone()
}

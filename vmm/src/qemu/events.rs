//! What QEMU's events say about the end of its machine.

use tokio::sync::watch;

use super::qmp::Event;
use crate::driver::end::Said;

/// The reason if KVM can't run a machine: QEMU keeps the machine, but does not run it any more.
const INTERNAL_ERROR: &str = "internal error of the accelerator";

/// The maximum length of QEMU's own reason, in characters.
const MAX_REASON: usize = 64;

/// Records the first reason that QEMU gives for the machine's end.
pub(super) fn note(end: &watch::Sender<Option<Said>>, event: &Event) {
    let ended = |reason: &str| Said::GuestEnded(reason.chars().take(MAX_REASON).collect());
    let said = match event.name.as_str() {
        "SHUTDOWN" => ended(event.data["reason"].as_str().unwrap_or("shutdown")),
        "GUEST_PANICKED" => ended("guest-panic"),
        // Nothing else stops a running machine.
        "STOP" => Said::GivenUp(INTERNAL_ERROR),
        _ => return,
    };
    end.send_if_modified(|end| {
        let first = end.is_none();
        end.get_or_insert(said);
        first
    });
}

//! What QEMU's events say about the end of its machine.

use std::sync::{
    atomic::{AtomicBool, Ordering},
    Arc,
};

use tokio::sync::watch;

use super::qmp::Event;
use crate::driver::end::Said;

/// The reason if KVM can't run a machine: QEMU keeps the machine, but does not run it any more.
pub(super) const INTERNAL_ERROR: &str = "internal error of the accelerator";

/// The maximum length of QEMU's own reason, in characters.
const MAX_REASON: usize = 64;

/// Whether the machine is paused on purpose. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Pause(Arc<AtomicBool>);

impl Pause {
    /// To be called before `stop` and before `cont`.
    pub(super) fn set(&self, paused: bool) {
        self.0.store(paused, Ordering::SeqCst);
    }
}

/// Records the first reason that QEMU gives for the machine's end.
pub(super) fn note(end: &watch::Sender<Option<Said>>, pause: &Pause, event: &Event) {
    let ended = |reason: &str| Said::GuestEnded(reason.chars().take(MAX_REASON).collect());
    let said = match event.name.as_str() {
        "SHUTDOWN" => ended(event.data["reason"].as_str().unwrap_or("shutdown")),
        "GUEST_PANICKED" => ended("guest-panic"),
        // Nothing but a pause stops a running machine otherwise.
        "STOP" if !pause.0.load(Ordering::SeqCst) => Said::GivenUp(INTERNAL_ERROR),
        _ => return,
    };
    end.send_if_modified(|end| {
        let first = end.is_none();
        end.get_or_insert(said);
        first
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn machine_that_stops_by_itself_is_given_up_and_one_that_is_paused_is_not() {
        let (end, said) = watch::channel(None);
        let pause = Pause::default();
        let stop = Event {
            name: "STOP".to_owned(),
            data: json!({}),
        };
        pause.set(true);
        note(&end, &pause, &stop);
        assert_eq!(*said.borrow(), None);
        pause.set(false);
        note(&end, &pause, &stop);
        assert_eq!(*said.borrow(), Some(Said::GivenUp(INTERNAL_ERROR)));
    }

    #[test]
    fn first_reason_counts_and_is_cut() {
        let (end, said) = watch::channel(None);
        for reason in ["x".repeat(1000), "later".to_owned()] {
            let event = Event {
                name: "SHUTDOWN".to_owned(),
                data: json!({ "reason": reason }),
            };
            note(&end, &Pause::default(), &event);
        }
        let first = Said::GuestEnded("x".repeat(MAX_REASON));
        assert_eq!(*said.borrow(), Some(first));
    }
}

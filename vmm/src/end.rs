//! The reasons for a VM's end.

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// [`crate::Vm::stop`] was called.
    Stopped,
    /// The guest powered off or panicked (the text is the last of its console).
    GuestEnded(String),
    /// A process of the VM died.
    ProcessDied {
        /// The role, as in [`crate::Vm::pids`].
        role: String,
        /// Exit status or signal, and the last lines of its log.
        how: String,
    },
}

//! Says what to do when a pinned package is gone.

/// How strictly the pins are applied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pins {
    /// Takes the pinned version, or, if that is gone, the one that Debian has now, with a warning.
    Prefer,
    /// Takes the pinned version only.
    Require,
}

//! Chooses how much time is spent on making the programs small.

/// A cargo profile with which the shim and the agent are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For work on this checkout, its tests and the demo.
    Release,
    /// For nodes and for measurements: link-time optimisation takes minutes.
    Shipped,
}

impl Profile {
    /// Returns its name, which is also its folder's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Shipped => "shipped",
        }
    }
}

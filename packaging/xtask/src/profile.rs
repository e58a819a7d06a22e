//! How much time goes into making the programs small.

/// A profile of cargo's, by which the shim and the agent are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For work on this checkout, its tests and the demo.
    Release,
    /// For nodes, and for whoever measures: link-time optimisation takes minutes.
    Shipped,
}

impl Profile {
    /// Its name, which is its folder's as well.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Shipped => "shipped",
        }
    }
}

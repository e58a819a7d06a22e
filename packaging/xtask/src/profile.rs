//! Chooses how much time is spent on making the programs small and quick.

/// A cargo profile with which the programs of a node and of its guests are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For work on this checkout, its tests and the demo: what compiles in the shortest time.
    Dev,
    /// For nodes and for measurements: link-time optimisation takes minutes.
    Release,
}

impl Profile {
    /// Returns cargo's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }

    /// Returns the folder below cargo's target folder that its programs are in.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

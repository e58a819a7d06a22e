//! The errors of homes.

use crate::host::error::FileError;

/// What can go wrong with a home.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another holder has it. A home has a single writer.
    #[error("home {home} is in use by {by}")]
    InUse { home: String, by: String },
    /// It is not in the store.
    #[error("there is no home {0}")]
    Missing(String),
    /// A container of the pod already has another home.
    #[error("the pod has the home {has}, and can't have {asked} too")]
    Other { has: String, asked: String },
    /// containerd's namespaces can have names that can't be folder names.
    #[error("namespace {0:?} can't name a folder")]
    Namespace(String),
    /// Nothing tells where the home of the user is.
    #[error("the home of user {0} is not known: set HOME or caisson.dev/home-path, or add the user to the image's /etc/passwd")]
    NoHome(u32),
    /// The home can't be mounted at this path.
    #[error("the home of user {uid} is {home:?}; it must be an absolute path other than /, or caisson.dev/home-path must say another")]
    Place { uid: u32, home: String },
    /// It is larger than any home may be.
    #[error(
        "the home {home} of {asked} MiB is larger than a home may be on this node ({largest} MiB, max_size_mib of [homes] in Caisson's configuration): ask for less by caisson.dev/home-size"
    )]
    TooLarge {
        home: String,
        asked: u64,
        largest: u64,
    },
    /// It is larger than what is left of a budget.
    #[error(
        "the home {home} of {asked} MiB is over the budget of {whose} for homes: {used} MiB of {budget} MiB are used ({key} of [homes] in Caisson's configuration): ask for less by caisson.dev/home-size, or remove homes that nobody needs (`caisson home list`, `caisson home remove`)"
    )]
    OverBudget {
        home: String,
        asked: u64,
        whose: String,
        used: u64,
        budget: u64,
        key: String,
    },
    /// One of the ext4 programs failed.
    #[error("{program}: {reason}")]
    Tool { program: String, reason: String },
    /// An operation on a file of the store, the image or the system failed.
    #[error(transparent)]
    File(#[from] FileError),
}

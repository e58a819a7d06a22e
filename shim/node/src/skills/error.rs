//! The errors of skills.

use std::path::PathBuf;

use caisson_oci::policy::Denied;

use crate::host::error::FileError;

/// What can go wrong with a skill.
#[derive(Debug, thiserror::Error)]
pub enum SkillError {
    /// It is not in the store.
    #[error("skill {wanted} is not in {}; add it with `caisson skill add FILE`", store.display())]
    Missing { wanted: String, store: PathBuf },
    /// It is not in the store and can't be fetched.
    #[error("skill {wanted}: {reason}")]
    NotFetched { wanted: String, reason: String },
    /// The node's policy forbids it.
    #[error("skill {wanted} {denied}")]
    NotAllowed { wanted: String, denied: Denied },
    /// It came from a source that the node's policy reserves for others.
    #[error("skill {wanted} came from the source {from}, which {denied}")]
    NotFrom {
        wanted: String,
        from: String,
        denied: Denied,
    },
    /// The file to be added is not a skill.
    #[error("{} is neither a squashfs nor an EROFS file; make one with `caisson skill pack DIR`", .0.display())]
    NotAnImage(PathBuf),
    /// Two skills would be mounted at the same place.
    #[error("two skills want to be at {}; give one another name with NAME=sha256:…", .0.display())]
    SamePlace(PathBuf),
    /// The bytes do not match the digest in the name.
    #[error("{} has the digest sha256:{actual}: remove it with `caisson skill remove`", path.display())]
    Damaged { path: PathBuf, actual: String },
    /// A VM is using it.
    #[error("skill {name} (sha256:{digest}) is in use by a running pod")]
    InUse { name: String, digest: String },
    /// The manifest is not valid.
    #[error("manifest {}", path.display())]
    Manifest {
        path: PathBuf,
        #[source]
        source: ManifestError,
    },
    /// An operation on a file of the store failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("it is the one of sha256:{0}; remove it, and add the skill again")]
    OtherDigest(String),
    #[error("not a skill's manifest")]
    Json(#[from] serde_json::Error),
    #[error("{field} {value:?} {rule}")]
    Field {
        field: &'static str,
        value: String,
        rule: &'static str,
    },
}

//! Decides where what a pod writes is kept: on disks of its VM, or in folders that the host shares
//! with it.
//!
//! Such a place is the root of a container or an emptyDir on the node's disk. A disk is a file
//! system of the guest in a file of the host, which lies in the place's own folder.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The annotation that says where: `disk` or `shared`.
pub const SCRATCH: &str = "caisson.dev/scratch";

/// Where what a pod writes is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scratch {
    /// On disks of the VM.
    Disk,
    /// In folders of the host.
    #[default]
    Shared,
}

impl Scratch {
    /// Parses the value of the annotation.
    pub(crate) fn parse(value: &str) -> Result<Self> {
        match value {
            "disk" => Ok(Self::Disk),
            "shared" => Ok(Self::Shared),
            _ => Err(Error::Annotation {
                key: SCRATCH.to_owned(),
                reason: format!(
                    "{:?} is neither disk nor shared",
                    crate::error::shorten(value)
                ),
            }),
        }
    }
}

/// What the shim has found in a place's folder, as far as a disk is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The place has a disk.
    Made,
    /// There is nothing, so a disk can be made.
    Free,
    /// It can't have one; the text says why, after the name of the place.
    No(&'static str),
}

/// Most sources of mounts are no places for disks.
impl Default for Fit {
    fn default() -> Self {
        Self::No("is no emptyDir on the node's disk")
    }
}

/// What a pod and its node want.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    disk: bool,
    /// Whether the pod said so itself.
    asked: bool,
}

impl Wanted {
    /// The pod's annotation goes before the node's setting.
    pub fn of(annotation: Option<Scratch>, node: Scratch) -> Self {
        Self {
            disk: annotation.unwrap_or(node) == Scratch::Disk,
            asked: annotation.is_some(),
        }
    }

    /// Decides whether a place is on a disk. One that has a disk keeps it, since its files are
    /// there. One that can't have a disk is shared, unless the pod itself asked for a disk: that
    /// is refused. `what` names the place.
    pub fn is_disk(self, fit: Fit, what: &str) -> Result<bool> {
        match (self, fit) {
            (_, Fit::Made) => Ok(true),
            (Self { disk: true, .. }, Fit::Free) => Ok(true),
            (
                Self {
                    disk: true,
                    asked: true,
                },
                Fit::No(why),
            ) => Err(Error::Annotation {
                key: SCRATCH.to_owned(),
                reason: format!(
                    "{what} can't be on a disk: it {why}; say shared, or leave the annotation out"
                ),
            }),
            _ => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: Fit = Fit::No("has files");

    #[test]
    fn place_is_on_a_disk_if_pod_or_node_wants_it() {
        for (annotation, node, disk) in [
            (None, Scratch::Shared, false),
            (None, Scratch::Disk, true),
            (Some(Scratch::Disk), Scratch::Shared, true),
            (Some(Scratch::Shared), Scratch::Disk, false),
        ] {
            let wanted = Wanted::of(annotation, node);
            assert_eq!(wanted.is_disk(Fit::Free, "x").unwrap(), disk);
        }
    }

    #[test]
    fn place_that_has_a_disk_keeps_it() {
        let wanted = Wanted::of(Some(Scratch::Shared), Scratch::Shared);
        assert!(wanted.is_disk(Fit::Made, "x").unwrap());
    }

    #[test]
    fn place_that_fits_no_disk_is_shared_if_only_the_node_wants_one() {
        let wanted = Wanted::of(None, Scratch::Disk);
        assert!(!wanted.is_disk(NO, "x").unwrap());
    }

    #[test]
    fn place_that_fits_no_disk_is_refused_if_the_pod_asked_for_one() {
        let wanted = Wanted::of(Some(Scratch::Disk), Scratch::Shared);
        let error = wanted.is_disk(NO, "the emptyDir /x").unwrap_err();
        let text =
            "annotation caisson.dev/scratch: the emptyDir /x can't be on a disk: it has files";
        assert!(error.to_string().starts_with(text), "{error}");
    }

    #[test]
    fn value_that_is_neither_is_refused() {
        let error = Scratch::parse("ssd").unwrap_err().to_string();
        assert!(
            error.contains("\"ssd\" is neither disk nor shared"),
            "{error}"
        );
    }
}

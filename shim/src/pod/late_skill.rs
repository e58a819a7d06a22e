//! A skill that was attached to a pod whose containers already existed.

use std::{collections::BTreeSet, path::PathBuf};

use caisson_node::{record, skills::Skill};
use caisson_oci::annotations::SkillRef;

use crate::plug::LateDevice;

/// A skill at a mount point where some containers have it.
pub struct LateSkill {
    /// The reference that it was asked for by.
    pub wanted: SkillRef,
    pub skill: Skill,
    pub target: PathBuf,
    /// None if the VM has the disk for another reason.
    pub disk: Option<LateDevice>,
    /// The ids of the containers that have it.
    pub containers: BTreeSet<String>,
}

impl LateSkill {
    /// Returns what the pod's record has of it.
    pub fn recorded(&self) -> record::LateSkill {
        record::LateSkill {
            digest: self.skill.digest.clone(),
            target: self.target.clone(),
            containers: self.containers.iter().cloned().collect(),
        }
    }

    /// Whether this is the skill that a request names.
    pub fn is(&self, wanted: &SkillRef) -> bool {
        self.wanted == *wanted
            || match wanted {
                SkillRef::Digest(digest) => self.skill.digest == *digest,
                SkillRef::Version { name, version } => {
                    self.skill.name == *name && self.skill.version.as_ref() == Some(version)
                }
            }
    }
}

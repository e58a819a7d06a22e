//! Names the disk of a skill: its serial number, and its mount point in the guest.

use std::path::{Path, PathBuf};

use caisson_protocol::path::DISKS;

use super::manifest::Skill;

/// The guest's mount point of the skill.
pub fn place(skill: &Skill) -> PathBuf {
    Path::new(DISKS).join(serial(skill))
}

/// The serial number of a skill's disk: a mark and the first quarter of the digest, which together
/// fit in a serial number.
pub fn serial(skill: &Skill) -> String {
    format!("s-{}", &skill.digest[..16])
}

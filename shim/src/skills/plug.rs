//! Skills as a pod's VM gets them: each a read-only disk of its own.

use std::path::{Path, PathBuf};

use caisson_protocol::{
    agent::{attach_request::Device as GuestDevice, Disk, Verity},
    path::DISKS,
};
use caisson_vmm::Device;

use super::{Skill, SkillError, SkillStore};
use crate::machine::Plug;

/// The two halves of plugging one in.
pub fn plug(store: &SkillStore, skill: &Skill) -> Result<Plug, SkillError> {
    let opened = store.open(skill)?;
    let verity = skill.verity.as_ref().map(|verity| Verity {
        root_hash: verity.root_hash.clone(),
        data_blocks: verity.data_blocks,
        ..Default::default()
    });
    Ok(Plug {
        vm: Device::Disk {
            serial: serial(skill),
            path: store.path(skill),
            read_only: true,
        },
        guest: GuestDevice::Disk(Disk {
            serial: serial(skill),
            fs_type: opened.fs_type.to_owned(),
            read_only: true,
            verity: verity.into(),
            ..Default::default()
        }),
        hold: Some(opened.file),
    })
}

/// Where the guest has it.
pub fn place(skill: &Skill) -> PathBuf {
    Path::new(DISKS).join(serial(skill))
}

/// Half of the digest's first half: as much as a serial number holds with a mark before it.
pub fn serial(skill: &Skill) -> String {
    format!("s-{}", &skill.digest[..16])
}

//! Plugs skills into a pod's VM, each as a read-only disk of its own.

use caisson_node::skills::{serial, Skill, SkillError, SkillStore};
use caisson_protocol::agent::{attach_request::Device as GuestDevice, Disk, Verity};
use caisson_vmm::Device;

use crate::plug::Plug;

/// Makes the host's half and the guest's half of plugging a skill in.
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

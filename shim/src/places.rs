//! Finds what a container's wishes name: the skills, the home, and what is at the sources of its
//! mounts. Returns where the guest will have it, and the devices to be plugged in for it.

use std::path::{Path, PathBuf};

use caisson_node::skills::{self, Asker, SkillError, SkillStore};
use caisson_oci::{NodeConfig, PidNamespace, Places, Volume, Wishes};
use caisson_protocol::path::{DISKS, MEMORY, PARTS, SHARES};

use crate::{
    error::Result,
    home_share::{self, PodsHome},
    plug::Plug,
    scratch,
    share::Share,
    skill_disk, sources,
    tally::Tally,
};

/// The container that is being created.
pub struct Creation<'a> {
    pub id: &'a str,
    /// The container's root, as the host sees it.
    pub root: &'a Path,
    /// The container's root, as the guest sees it.
    pub guest_root: PathBuf,
    pub pid_namespace: PidNamespace,
    /// The volumes that containers of the pod have mounted.
    pub mounted: Vec<Volume>,
    /// How many disks the VM has for roots and volumes, that of the container's root included.
    pub disks: usize,
}

/// Finds everything.
pub async fn find(
    wishes: &Wishes,
    config: &NodeConfig,
    creation: Creation<'_>,
    home: PodsHome<'_>,
    tally: &Tally,
) -> Result<(Places, Vec<Plug>)> {
    let mut plugs = Vec::new();
    let wholes = wishes.empty_dirs().into_iter();
    let mounted = creation.mounted.iter().map(|volume| volume.source.clone());
    let wholes = wholes.chain(mounted).collect();
    let mut found = sources::look(wishes.bind_sources(), wholes).await?;
    scratch::leave_room(&mut found, creation.disks);
    let skills = find_skills(wishes, config, &mut plugs, tally).await?;
    let home = find_home(wishes, config, &creation, home, &mut plugs).await?;
    let places = Places {
        rootfs: creation.guest_root,
        shares: SHARES.into(),
        volumes: Share::guest_volumes(),
        memory: MEMORY.into(),
        disks: DISKS.into(),
        parts: PARTS.into(),
        mounted: creation.mounted,
        found,
        skills,
        home,
        pid_namespace: creation.pid_namespace,
    };
    Ok((places, plugs))
}

async fn find_skills(
    wishes: &Wishes,
    config: &NodeConfig,
    plugs: &mut Vec<Plug>,
    tally: &Tally,
) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut places: Vec<(PathBuf, PathBuf)> = Vec::new();
    let store = SkillStore::new(&config.store_dir);
    let asker = Asker::Namespace(&wishes.namespace);
    let wanted = &wishes.annotations.skills;
    let obtained = skills::obtain(&store, config, wanted, asker, |event| tally.count(event));
    for (name, skill) in obtained.await? {
        let target = skill.target(name.as_deref());
        if places.iter().any(|(taken, _)| *taken == target) {
            return Err(SkillError::SamePlace(target).into());
        }
        places.push((target, skills::place(&skill)));
        plugs.push(skill_disk::plug(&store, &skill)?);
    }
    Ok(places)
}

async fn find_home(
    wishes: &Wishes,
    config: &NodeConfig,
    creation: &Creation<'_>,
    home: PodsHome<'_>,
    plugs: &mut Vec<Plug>,
) -> Result<Option<(PathBuf, PathBuf)>> {
    let Some(wish) = &wishes.annotations.home else {
        return Ok(None);
    };
    let target = home_share::target(wish, wishes, creation.root).await?;
    plugs.push(home.plug(config, wish, wishes, creation.id).await?);
    Ok(Some((target, home_share::place())))
}

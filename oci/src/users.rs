//! Translates user namespaces (`hostUsers: false`), as containerd writes them into specs.
//!
//! The guest uses the host's ids. The host maps what the node's snapshotter has mapped or given
//! away (`uidmap=` of the root's mounts, chowned snapshots) and what the kubelet wants mapped
//! (`mounts.uidMappings`), as for runc, and the virtiofs device passes the ids on. In the guest a
//! container's user namespace has the mappings of its spec. So one table holds on both sides, for
//! volumes of other pods too, and the guest's kernel need not map mounts of virtiofs, which 6.1
//! can't.

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Spec};

use crate::{Error, Result};

/// The most lines that the map file of a user namespace can have (user_namespaces(7)).
const MAX_LINES: usize = 340;

/// Which ids inside stand for which ids outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

/// Refuses a home for a container in a user namespace.
pub(crate) fn check_home(spec: &Spec) -> Result<()> {
    match IdMap::of_namespace(spec) {
        None => Ok(()),
        Some(_) => Err(Error::Field {
            field: "linux.namespaces.user",
            reason: "a home keeps its owners, which a user namespace would not know; leave \
                     hostUsers out of the pod"
                .to_owned(),
        }),
    }
}

impl IdMap {
    /// Returns the map of the user namespace that a spec asks for. `None` if it asks for none, or
    /// has no mappings for both users and groups, which the rules refuse.
    pub fn of_namespace(spec: &Spec) -> Option<Self> {
        let linux = spec.linux().as_ref()?;
        let mut namespaces = linux.namespaces().iter().flatten();
        namespaces.find(|ns| ns.typ() == LinuxNamespaceType::User)?;
        Self::new(linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref())
    }

    /// Returns the map of a mount whose files are to have other owners than at its source.
    pub fn of_mount(mount: &Mount) -> Option<Self> {
        Self::new(mount.uid_mappings().as_ref(), mount.gid_mappings().as_ref())
    }

    fn new(uids: Option<&Vec<LinuxIdMapping>>, gids: Option<&Vec<LinuxIdMapping>>) -> Option<Self> {
        let good = |lines: &&Vec<LinuxIdMapping>| (1..=MAX_LINES).contains(&lines.len());
        Some(Self {
            uids: uids.filter(good)?.clone(),
            gids: gids.filter(good)?.clone(),
        })
    }

    /// Whether the user and the group 0 are mapped.
    pub fn has_root(&self) -> bool {
        let has = |lines: &[LinuxIdMapping]| {
            let is_first = |line: &LinuxIdMapping| line.container_id() == 0 && line.size() > 0;
            lines.iter().any(is_first)
        };
        has(&self.uids) && has(&self.gids)
    }

    /// Returns the text for `/proc/<pid>/uid_map`.
    pub fn uid_map(&self) -> String {
        text(&self.uids)
    }

    /// Returns the text for `/proc/<pid>/gid_map`.
    pub fn gid_map(&self) -> String {
        text(&self.gids)
    }

    /// Returns the owners outside that correspond to these inside; ids that are not mapped stay.
    pub fn outside(&self, uid: u32, gid: u32) -> (u32, u32) {
        (outside(&self.uids, uid), outside(&self.gids, gid))
    }
}

fn text(lines: &[LinuxIdMapping]) -> String {
    let line = |m: &LinuxIdMapping| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size());
    lines.iter().map(line).collect()
}

fn outside(lines: &[LinuxIdMapping], id: u32) -> u32 {
    let found = lines.iter().find_map(|line| {
        let offset = id.checked_sub(line.container_id())?;
        (offset < line.size()).then(|| line.host_id().checked_add(offset))?
    });
    found.unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(lines: serde_json::Value) -> Option<IdMap> {
        let mount = json!({"destination": "/x", "uidMappings": lines, "gidMappings": lines});
        IdMap::of_mount(&serde_json::from_value(mount).unwrap())
    }

    #[test]
    fn id_is_found_in_its_line_and_stays_where_there_is_none() {
        let map = map(json!([
            {"containerID": 0, "hostID": 100_000, "size": 10},
            {"containerID": 20, "hostID": u32::MAX, "size": 10},
        ]))
        .unwrap();
        assert_eq!(map.outside(0, 9), (100_000, 100_009));
        assert_eq!(map.outside(10, 21), (10, 21));
        assert_eq!(map.uid_map(), "0 100000 10\n20 4294967295 10\n");
    }

    #[test]
    fn map_without_lines_is_none() {
        assert_eq!(map(json!([])), None);
    }
}

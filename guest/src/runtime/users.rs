//! Adapts specs of containers in a user namespace, whose root has no rights over the guest's own
//! namespaces.
//!
//! A pod's network, IPC and UTS namespaces are those that the guest booted with, and belong to the
//! guest's root. So a capability over the network (NET_ADMIN) has no effect in such a container.
//! This differs from runc, where the pod's network belongs to its users.

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Spec};

/// File systems that show a namespace of the pod. Such a namespace belongs to the guest's root, so
/// the container's root may not mount these file systems anew. They are bind-mounted from the guest
/// instead. Volumes and other mounts below them come later in the list.
const GUESTS: &[(&str, &str)] = &[("sysfs", "/sys"), ("mqueue", "/dev/mqueue")];

/// Changes a spec with a user namespace so that its mounts can be made in it.
pub fn adapt(spec: &mut Spec) {
    if !are_own(spec) {
        return;
    }
    // Nodes can't be made in a user namespace, so libcontainer shows the guest's nodes where the
    // guest has them.
    if let Some(devices) = spec
        .linux_mut()
        .as_mut()
        .and_then(|linux| linux.devices_mut().as_mut())
    {
        devices.retain(|device| device.path().exists());
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let place = GUESTS
            .iter()
            .find(|(typ, _)| mount.typ().as_deref() == Some(*typ));
        if let Some((_, place)) = place {
            show(mount, place);
        }
    }
}

fn show(mount: &mut Mount, place: &str) {
    let mut options = mount.options().clone().unwrap_or_default();
    options.push("rbind".to_string());
    mount
        .set_typ(Some("bind".to_string()))
        .set_source(Some(place.into()))
        .set_options(Some(options));
}

/// Returns whether a container has users of its own.
pub fn are_own(spec: &Spec) -> bool {
    mappings(spec).is_some()
}

/// Returns the guest's uid for a uid in the container.
pub fn uid(spec: &Spec, uid: u32) -> u32 {
    let lines = mappings(spec).unwrap_or_default();
    let found = lines.iter().find_map(|line| {
        let offset = uid.checked_sub(line.container_id())?;
        (offset < line.size()).then(|| line.host_id().checked_add(offset))?
    });
    found.unwrap_or(uid)
}

/// Returns the uid mappings of a spec that has a user namespace.
fn mappings(spec: &Spec) -> Option<&[LinuxIdMapping]> {
    let linux = spec.linux().as_ref()?;
    let mut namespaces = linux.namespaces().iter().flatten();
    namespaces.find(|ns| ns.typ() == LinuxNamespaceType::User)?;
    Some(linux.uid_mappings().as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str) -> Spec {
        let text = format!(
            r#"{{"ociVersion":"1.1.0","mounts":[{{"destination":"/sys","type":"sysfs","options":["ro"]}}],"linux":{{
            "namespaces":[{namespaces}],"uidMappings":[{{"containerID":0,"hostID":100000,"size":10}}]}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn sysfs_is_the_guests_in_a_user_namespace_only() {
        let mut mapped = spec(r#"{"type":"user"}"#);
        let mut plain = spec("");
        adapt(&mut mapped);
        adapt(&mut plain);
        let mount = &mapped.mounts().as_ref().unwrap()[0];
        assert_eq!(mount.typ().as_deref(), Some("bind"));
        assert_eq!(mount.options().as_ref().unwrap(), &["ro", "rbind"]);
        assert_eq!(
            plain.mounts().as_ref().unwrap()[0].typ().as_deref(),
            Some("sysfs")
        );
    }

    #[test]
    fn uid_in_the_guest_is_the_mapped_one() {
        let mapped = spec(r#"{"type":"user"}"#);
        assert_eq!((uid(&mapped, 7), uid(&mapped, 10)), (100_007, 10));
        assert_eq!(uid(&spec(""), 7), 7);
    }
}

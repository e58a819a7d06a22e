//! Reads which users a container has of its own.

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};

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
            r#"{{"ociVersion":"1.1.0","linux":{{
            "namespaces":[{namespaces}],"uidMappings":[{{"containerID":0,"hostID":100000,"size":10}}]}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn uid_in_the_guest_is_the_mapped_one() {
        let mapped = spec(r#"{"type":"user"}"#);
        assert_eq!((uid(&mapped, 7), uid(&mapped, 10)), (100_007, 10));
        assert_eq!(uid(&spec(""), 7), 7);
    }
}

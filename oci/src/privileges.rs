//! Finds what a container's process may do beyond what containerd gives to every container.
//!
//! Such privileges affect only the container's VM. [`crate::policy`] decides which namespaces may
//! have them.

use oci_spec::runtime::{Capability, Spec};

use crate::privileged::is_privileged;

/// The capabilities that containerd gives to every container (containerd, pkg/oci/spec.go,
/// `defaultUnixCaps`).
pub const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Returns the field and the value of the first privilege beyond the default, or `None` if there is
/// none.
pub fn beyond_default(spec: &Spec) -> Option<(&'static str, String)> {
    if is_privileged(spec) {
        return Some(("process", "privileged: true".to_owned()));
    }
    let capabilities = spec.process().as_ref()?.capabilities().as_ref()?;
    let sets = [
        capabilities.bounding(),
        capabilities.effective(),
        capabilities.permitted(),
        capabilities.inheritable(),
        capabilities.ambient(),
    ];
    let all = sets.into_iter().flatten().flatten();
    let added = all.filter(|capability| !DEFAULT.contains(capability));
    let first = added.map(ToString::to_string).min()?;
    Some(("process.capabilities", first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(set: &str, capabilities: &[&str]) -> Option<String> {
        let spec = json!({
            "ociVersion": "1.1.0",
            "process": {
                "cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0},
                "capabilities": {set: capabilities},
            },
        });
        let spec = serde_json::from_value(spec).unwrap();
        beyond_default(&spec).map(|(_, value)| value)
    }

    #[test]
    fn capability_beyond_the_default_is_found_in_each_set() {
        for set in [
            "bounding",
            "effective",
            "permitted",
            "inheritable",
            "ambient",
        ] {
            let added = found(set, &["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NET_ADMIN"]);
            assert_eq!(added.as_deref(), Some("NET_ADMIN"), "{set}");
        }
    }

    #[test]
    fn default_capabilities_and_fewer_are_nothing_more() {
        let all = DEFAULT.map(|capability| format!("CAP_{capability}"));
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        assert_eq!(found("bounding", &all), None);
        assert_eq!(found("bounding", &[]), None);
    }
}

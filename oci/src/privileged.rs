//! Recognises privileged containers. No field of a spec marks them, but containerd's
//! `WithPrivileged` (pkg/oci) leaves a pattern.

use oci_spec::runtime::Spec;

/// Returns whether a spec is a privileged container's: nothing of /proc is masked, and /sys is
/// writable.
///
/// Whatever such a container does affects only the VM that it has for itself or shares with its own
/// pod.
pub fn is_privileged(spec: &Spec) -> bool {
    let masked = spec.linux().as_ref().is_some_and(|linux| {
        let any = |paths: &Option<Vec<String>>| paths.as_ref().is_some_and(|p| !p.is_empty());
        any(linux.masked_paths()) || any(linux.readonly_paths()) || linux.seccomp().is_some()
    });
    let writable_sys = spec.mounts().iter().flatten().any(|mount| {
        let read_only = mount.options().iter().flatten().any(|o| o == "ro");
        mount.typ().as_deref() == Some("sysfs") && !read_only
    });
    writable_sys && !masked
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(sys: &[&str], masked: &[&str]) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.1.0",
            "mounts": [{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": sys}],
            "linux": {"maskedPaths": masked},
        }))
        .unwrap()
    }

    #[test]
    fn container_with_writable_sys_and_nothing_masked_is_privileged() {
        assert!(is_privileged(&spec(&["nosuid", "rw"], &[])));
        assert!(!is_privileged(&spec(&["nosuid", "ro"], &[])));
        assert!(!is_privileged(&spec(&["nosuid", "rw"], &["/proc/kcore"])));
    }
}

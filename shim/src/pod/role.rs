//! What a task is to a pod, by the annotations of containerd's CRI plugin (containerd, internal/cri/annotations).

use std::path::Path;

use caisson_oci::spec::Spec;

use crate::{container::Wishes, error::Result};

const TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// What a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A container in a VM of its own.
    Alone,
    /// A pod's pause container: the VM itself.
    Sandbox,
    /// A container of the pod with this sandbox.
    Container { sandbox_id: String },
}

impl Role {
    /// Reads it from a spec's annotations.
    pub fn of(spec: &Spec) -> Result<Self> {
        let annotations = spec.annotations().as_ref();
        let value = |key| annotations.and_then(|all| all.get(key));
        match (value(TYPE).map(String::as_str), value(SANDBOX_ID)) {
            (Some("sandbox"), _) => Ok(Self::Sandbox),
            (Some("container"), Some(id)) => {
                caisson_oci::id::check(id)?;
                Ok(Self::Container {
                    sandbox_id: id.clone(),
                })
            }
            _ => Ok(Self::Alone),
        }
    }

    /// Reads it from a bundle.
    pub fn of_bundle(bundle: &Path) -> Result<Self> {
        Self::of(&Wishes::read(bundle)?.spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(annotations: &str) -> Result<Role> {
        let spec = format!(r#"{{"ociVersion":"1.0.2","annotations":{annotations}}}"#);
        Role::of(&serde_json::from_str(&spec).unwrap())
    }

    #[test]
    fn task_without_annotations_is_alone() {
        assert_eq!(role("{}").unwrap(), Role::Alone);
    }

    #[test]
    fn task_of_a_pod_names_its_sandbox() {
        let container = role(&format!(r#"{{"{TYPE}":"container","{SANDBOX_ID}":"s1"}}"#));
        let expected = Role::Container {
            sandbox_id: "s1".to_owned(),
        };
        assert_eq!(container.unwrap(), expected);
        let sandbox = role(&format!(r#"{{"{TYPE}":"sandbox","{SANDBOX_ID}":"s1"}}"#));
        assert_eq!(sandbox.unwrap(), Role::Sandbox);
    }

    #[test]
    fn sandbox_id_that_is_a_path_is_refused() {
        role(&format!(
            r#"{{"{TYPE}":"container","{SANDBOX_ID}":"../x"}}"#
        ))
        .unwrap_err();
    }
}

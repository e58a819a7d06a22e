//! Reads, from a spec's annotations, which part a task plays in a pod.

use std::collections::HashMap;

use oci_spec::runtime::Spec;

use crate::{error::shorten, id, Error, Result};

/// `sandbox` or `container`.
pub const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// The id of the pod's sandbox, on all of the pod's containers.
pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// The part that a task plays in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A container in a VM of its own, outside of any pod.
    Alone,
    /// A pod's pause container: the VM itself.
    Sandbox,
    /// A container of the pod with this sandbox.
    Container {
        /// The id of the pod's sandbox, checked by [`id::check`].
        sandbox_id: String,
    },
}

impl Role {
    /// Reads the role from a bundle's `config.json`, of which it looks at nothing else.
    pub fn parse(json: &[u8]) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Annotated {
            annotations: Option<HashMap<String, String>>,
        }
        let read: Annotated =
            serde_json::from_slice(json).map_err(|error| Error::Spec(error.into()))?;
        Self::read(read.annotations.as_ref())
    }

    /// Reads the role from a spec's annotations.
    pub fn of(spec: &Spec) -> Result<Self> {
        Self::read(spec.annotations().as_ref())
    }

    fn read(annotations: Option<&HashMap<String, String>>) -> Result<Self> {
        let value = |key| annotations.and_then(|all| all.get(key));
        let refuse = |key: &str, reason: String| {
            Err(Error::Annotation {
                key: key.to_owned(),
                reason,
            })
        };
        match (value(CONTAINER_TYPE).map(String::as_str), value(SANDBOX_ID)) {
            (None, _) => Ok(Self::Alone),
            (Some("sandbox"), _) => Ok(Self::Sandbox),
            (Some("container"), Some(sandbox)) => {
                id::check(sandbox)?;
                Ok(Self::Container {
                    sandbox_id: sandbox.clone(),
                })
            }
            (Some("container"), None) => {
                refuse(SANDBOX_ID, "is missing on a container of a pod".to_owned())
            }
            (Some(other), _) => refuse(
                CONTAINER_TYPE,
                format!("{:?} is neither sandbox nor container", shorten(other)),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(annotations: serde_json::Value) -> Spec {
        serde_json::from_value(json!({ "ociVersion": "1.1.0", "annotations": annotations }))
            .unwrap()
    }

    #[test]
    fn task_without_annotations_is_alone() {
        assert_eq!(Role::of(&spec(json!({}))).unwrap(), Role::Alone);
    }

    #[test]
    fn task_of_a_pod_names_its_sandbox() {
        let container = spec(json!({CONTAINER_TYPE: "container", SANDBOX_ID: "s1"}));
        let sandbox_id = "s1".to_owned();
        assert_eq!(
            Role::of(&container).unwrap(),
            Role::Container { sandbox_id }
        );
        let sandbox = spec(json!({CONTAINER_TYPE: "sandbox", SANDBOX_ID: "s1"}));
        assert_eq!(Role::of(&sandbox).unwrap(), Role::Sandbox);
    }

    #[test]
    fn container_without_a_good_sandbox_id_is_refused() {
        Role::of(&spec(json!({CONTAINER_TYPE: "container"}))).unwrap_err();
        for id in ["", "..", "../x", "a/b"] {
            Role::of(&spec(json!({CONTAINER_TYPE: "container", SANDBOX_ID: id}))).unwrap_err();
        }
    }
}

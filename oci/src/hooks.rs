//! The hooks of a spec that the host runs (OCI runtime spec, config.md, "POSIX-platform Hooks").
//!
//! They belong to the creator of the container, such as nerdctl, which brings CNI by them, or to
//! the node's administrator. A hook that runs inside the container, `startContainer`, goes to the
//! guest with the spec.

use std::collections::HashMap;

use oci_spec::runtime::{Hook, Spec};

use crate::{Error, Result};

/// The hooks of one container that the host runs, each list in its order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hooks {
    /// `prestart` and `createRuntime`, in this order: once the container has its namespaces, and
    /// before anything of it runs. If one fails, the container is not created.
    pub create: Vec<Hook>,
    /// `poststart`: after the container's process has started.
    pub started: Vec<Hook>,
    /// `poststop`: after the container was deleted.
    pub stopped: Vec<Hook>,
    /// The spec's annotations, which hooks are told.
    pub annotations: HashMap<String, String>,
    /// The spec's version, which hooks are told.
    pub version: String,
}

impl Hooks {
    /// Reads the hooks from a bundle's `config.json`.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let spec = serde_json::from_slice(json).map_err(|error| Error::Spec(error.into()))?;
        Ok(Self::of(&spec))
    }

    /// Reads the hooks from a spec.
    pub fn of(spec: &Spec) -> Self {
        let Some(hooks) = spec.hooks() else {
            return Self::default();
        };
        #[allow(deprecated)]
        let prestart = hooks.prestart();
        let create = prestart.iter().chain(hooks.create_runtime());
        Self {
            create: create.flatten().cloned().collect(),
            started: hooks.poststart().clone().unwrap_or_default(),
            stopped: hooks.poststop().clone().unwrap_or_default(),
            annotations: spec.annotations().clone().unwrap_or_default(),
            version: spec.version().clone(),
        }
    }

    /// Whether the host runs none.
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.started.is_empty() && self.stopped.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(hooks: &[Hook]) -> Vec<String> {
        let paths = hooks.iter().map(|hook| hook.path().display().to_string());
        paths.collect()
    }

    #[test]
    fn hooks_of_the_host_are_read_in_their_order() {
        let json = r#"{"ociVersion": "1.1.0", "annotations": {"a": "b"}, "hooks": {
            "createRuntime": [{"path": "/2", "args": ["two"], "timeout": 5}, {"path": "/3"}],
            "prestart": [{"path": "/1"}],
            "startContainer": [{"path": "/in-the-guest"}],
            "poststart": [{"path": "/4"}],
            "poststop": [{"path": "/5"}]}}"#;
        let hooks = Hooks::parse(json.as_bytes()).unwrap();
        assert_eq!(paths(&hooks.create), ["/1", "/2", "/3"]);
        assert_eq!(paths(&hooks.started), ["/4"]);
        assert_eq!(paths(&hooks.stopped), ["/5"]);
        assert_eq!(hooks.version, "1.1.0");
        assert_eq!(hooks.annotations["a"], "b");
        assert!(!hooks.is_empty());
    }

    #[test]
    fn spec_without_hooks_has_none() {
        for hooks in [
            "",
            r#", "hooks": {}"#,
            r#", "hooks": {"startContainer": [{"path": "/x"}]}"#,
        ] {
            let json = format!(r#"{{"ociVersion": "1.1.0"{hooks}}}"#);
            assert!(Hooks::parse(json.as_bytes()).unwrap().is_empty(), "{json}");
        }
    }
}

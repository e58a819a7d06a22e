//! What a bundle asks for: its spec, parsed once, and the annotations in it.
//!
//! The shim looks up on the node what the wishes name (skills, the home, what is at the sources of
//! the mounts). Then [`crate::plan()`] decides what becomes of them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use crate::{
    annotations::{Annotations, CONTAINER_NAME, PREFIX},
    error::shorten,
    guest_devices,
    pod::{self, Sandbox},
    privileges, rules,
    scratch::{Scratch, Wanted},
    volume, Egress, Error, Hooks, Policy, Result, Role,
};

/// What a bundle asks for.
#[derive(Debug)]
pub struct Wishes {
    pub role: Role,
    pub annotations: Annotations,
    /// The pod's namespace, or containerd's for a container outside a pod. Empty if the annotations
    /// ask for nothing.
    pub namespace: String,
    /// The spec, with what the annotations add to it.
    pub(crate) spec: Spec,
}

/// The pid namespace that a container asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidWish {
    /// One of its own.
    Own,
    /// The pod's.
    Pod,
    /// The one of this process on the host. It is the pod's, if the process stands for the sandbox,
    /// or that of another container. An ephemeral container has the latter for its target (CRI,
    /// `NamespaceMode` TARGET).
    Of(u32),
}

impl Wishes {
    /// Parses a bundle's `config.json`, and checks that it has what every container needs. Then as
    /// [`Self::of`].
    pub fn parse(json: &[u8], policy: &Policy, containerd_namespace: &str) -> Result<Self> {
        Self::of(parse(json)?, policy, containerd_namespace)
    }

    /// Checks the annotations and the privileges of a spec, including against the node's policy,
    /// and adds the devices that the annotations ask for to the spec.
    pub fn of(mut spec: Spec, policy: &Policy, containerd_namespace: &str) -> Result<Self> {
        let given = spec.annotations().clone().unwrap_or_default();
        let annotations = Annotations::parse(&given)?;
        let role = Role::of(&spec)?;
        let mut namespace = String::new();
        let asks = given.keys().any(|key| key.starts_with(PREFIX));
        if asks || !policy.is_open() {
            let of_pod = pod::namespace(&spec)?;
            namespace = of_pod.unwrap_or_else(|| containerd_namespace.to_owned());
            policy.check_namespace(&namespace)?;
            policy.check_annotations(&given, &namespace)?;
            // No process runs in a sandbox.
            let privilege = privileges::beyond_default(&spec);
            if let Some(privilege) = privilege.filter(|_| role != Role::Sandbox) {
                policy.check_privileges(privilege, &namespace)?;
            }
        }
        guest_devices::grant(&mut spec, &annotations.devices)?;
        Ok(Self {
            role,
            annotations,
            namespace,
            spec,
        })
    }

    /// Returns the container's name in its pod, if CRI gives one.
    pub fn name(&self) -> Option<String> {
        let annotations = self.spec.annotations().as_ref()?;
        annotations.get(CONTAINER_NAME).cloned()
    }

    /// Returns the Kubernetes namespace and name of the pod, or `None` outside a pod.
    pub fn pod(&self) -> Result<Option<(String, String)>> {
        pod::name(&self.spec)
    }

    /// Returns what the pod asks for, if this is its sandbox' spec.
    pub fn sandbox(&self) -> Result<Sandbox> {
        pod::sandbox(&self.spec)
    }

    /// Mounts the pod's files where the container has nothing: [`pod::add_files`].
    pub fn add_files(&mut self, folder: &Path) -> Result<()> {
        pod::add_files(&mut self.spec, folder)
    }

    /// Returns the process of the container's init.
    pub fn process(&self) -> Result<&Process> {
        self.spec
            .process()
            .as_ref()
            .ok_or(Error::Missing("process"))
    }

    /// Returns the hooks that the host runs.
    pub fn hooks(&self) -> Hooks {
        Hooks::of(&self.spec)
    }

    /// Returns the hostname that the spec names.
    pub fn hostname(&self) -> Option<String> {
        self.spec.hostname().clone()
    }

    /// Returns the folder on the host that `root.path` names (config.md, "Root": relative to the
    /// bundle).
    pub fn root(&self, bundle: &Path) -> PathBuf {
        let path = self.spec.root().as_ref().map(|root| root.path().clone());
        bundle.join(path.unwrap_or_default())
    }

    /// Whether nothing can be written in the container's root.
    pub fn has_read_only_root(&self) -> bool {
        let root = self.spec.root().as_ref();
        root.and_then(|root| root.readonly()) == Some(true)
    }

    /// Returns where the root and the emptyDirs are to be kept, which the node's setting decides if
    /// the annotations do not.
    pub fn scratch(&self, node: Scratch) -> Wanted {
        Wanted::of(self.annotations.scratch, node)
    }

    /// Returns the cgroup on the host that the spec names.
    pub fn cgroups_path(&self) -> Option<PathBuf> {
        let linux = self.spec.linux().as_ref();
        linux.and_then(|linux| linux.cgroups_path().clone())
    }

    /// Returns the network namespace that CNI made for the pod, if the spec names one.
    pub fn network(&self) -> Option<PathBuf> {
        pod::joined(&self.spec, LinuxNamespaceType::Network).map(Path::to_owned)
    }

    /// Returns what the pod may open connections to on a node with this egress.
    ///
    /// # Errors
    /// The annotation asks for more than the node allows.
    pub fn egress(&self, node: &Egress) -> Result<Egress> {
        node.narrow(self.annotations.egress.as_ref())
    }

    /// Whether the spec asks for a network namespace: one that it names, or one of its own.
    pub fn has_network(&self) -> bool {
        pod::namespace_of(&self.spec, LinuxNamespaceType::Network).is_some()
    }

    /// Returns the pid namespace that the container asks for. Without a pod it is its own: another
    /// one is refused.
    pub fn pid_namespace(&self) -> PidWish {
        let path = match self.role {
            Role::Alone => None,
            _ => pod::joined(&self.spec, LinuxNamespaceType::Pid),
        };
        match path.map(pod::pid_of) {
            None => PidWish::Own,
            Some(None) => PidWish::Pod,
            Some(Some(pid)) => PidWish::Of(pid),
        }
    }

    /// Returns the absolute sources of the bind mounts on the host.
    pub fn bind_sources(&self) -> BTreeSet<PathBuf> {
        let mounts = self.spec.mounts().iter().flatten();
        let sources = mounts
            .filter(|mount| rules::is_bind(mount))
            .filter_map(|mount| mount.source().clone());
        sources.filter(|source| source.is_absolute()).collect()
    }

    /// Returns the source on the host of the bind mount at a path in the container.
    pub fn source_of(&self, destination: &Path) -> Option<PathBuf> {
        let mut mounts = self.spec.mounts().iter().flatten();
        let mount = mounts.find(|mount| mount.destination() == destination)?;
        let source = rules::is_bind(mount).then(|| mount.source().clone());
        source.flatten()
    }

    /// Returns the emptyDirs of the pod of which the container may mount a part by itself.
    pub fn empty_dirs(&self) -> BTreeSet<PathBuf> {
        let Some(uid) = pod::uid(&self.spec) else {
            return BTreeSet::new();
        };
        let sources = self.bind_sources().into_iter();
        sources
            .filter_map(|source| volume::empty_dir_of(&source, &uid))
            .collect()
    }
}

fn parse(json: &[u8]) -> Result<Spec> {
    let spec: Spec = serde_json::from_slice(json).map_err(|error| Error::Spec(error.into()))?;
    let process = spec.process().as_ref().ok_or(Error::Missing("process"))?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::Missing("process.args"));
    }
    if !process.cwd().is_absolute() {
        return Err(Error::Field {
            field: "process.cwd",
            reason: format!(
                "{:?} is not absolute",
                shorten(&process.cwd().to_string_lossy())
            ),
        });
    }
    let root = spec.root().as_ref().ok_or(Error::Missing("root"))?;
    if root.path().as_os_str().is_empty() {
        return Err(Error::Missing("root.path"));
    }
    if spec.linux().is_none() {
        return Err(Error::Missing("linux"));
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeConfig;
    use serde_json::{json, Value};

    fn wishes(config: &Value) -> Result<Wishes> {
        Wishes::parse(config.to_string().as_bytes(), &Policy::default(), "default")
    }

    fn config() -> Value {
        json!({
            "ociVersion": "1.1.0",
            "annotations": {
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": "s1",
            },
            "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "pid"}]},
        })
    }

    #[test]
    fn config_that_is_not_json_is_refused() {
        let refused = Wishes::parse(b"{nonsense", &Policy::default(), "default");
        assert!(matches!(refused, Err(Error::Spec(_))));
    }

    #[test]
    fn config_without_process_or_root_is_refused_by_its_name() {
        for field in ["process", "root", "linux"] {
            let mut config = config();
            config.as_object_mut().unwrap().remove(field);
            let message = wishes(&config).unwrap_err().to_string();
            assert!(
                message.contains(&format!("{field} is missing")),
                "{message}"
            );
        }
    }

    #[test]
    fn privileges_beyond_the_default_are_refused_where_the_policy_says_so() {
        let text = "[policy]\nprivileges = ['ci']";
        let node = NodeConfig::parse(&[("c".to_owned(), text.to_owned())]).unwrap();
        let parsed = |capability: &str, namespace: &str| {
            let mut config = config();
            config["annotations"]["io.kubernetes.cri.sandbox-namespace"] = namespace.into();
            config["process"]["capabilities"] = json!({"bounding": [capability]});
            let json = config.to_string();
            Wishes::parse(json.as_bytes(), &node.policy, "default").map(drop)
        };
        parsed("CAP_SYS_ADMIN", "ci").unwrap();
        parsed("CAP_CHOWN", "web").unwrap();
        let error = parsed("CAP_SYS_ADMIN", "web").unwrap_err().to_string();
        assert!(
            error.contains("SYS_ADMIN is not allowed in the namespace web"),
            "{error}"
        );
    }

    #[test]
    fn pid_namespace_is_told_by_its_path() {
        let wish = |path: Value| {
            let mut config = config();
            config["linux"]["namespaces"][0]["path"] = path;
            wishes(&config).unwrap().pid_namespace()
        };
        assert_eq!(wish(Value::Null), PidWish::Own);
        assert_eq!(wish("/proc/17/ns/pid".into()), PidWish::Of(17));
        assert_eq!(wish("/var/run/pod".into()), PidWish::Pod);
    }

    #[test]
    fn sources_are_those_of_bind_mounts() {
        let mut config = config();
        config["mounts"] = json!([
            {"destination": "/proc", "type": "proc", "source": "/proc"},
            {"destination": "/a", "type": "bind", "source": "/srv/a", "options": ["ro"]},
            {"destination": "/b", "type": "none", "source": "/srv/b", "options": ["rbind"]},
            {"destination": "/c", "type": "bind", "source": "srv/c"},
        ]);
        let sources = wishes(&config).unwrap().bind_sources();
        assert_eq!(sources, ["/srv/a", "/srv/b"].map(PathBuf::from).into());
    }
}

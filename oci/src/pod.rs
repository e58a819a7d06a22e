//! Reads, from the annotations and specs of containerd's CRI plugin, which part a task plays in a
//! pod and what a pod's sandbox asks for.
//!
//! The plugin (containerd, internal/cri/annotations and internal/cri/server) marks a pod's pause
//! container as `sandbox`, and the pod's other containers as `container` with the sandbox's id. The
//! Kubernetes pod is the VM, so nothing of the pause container runs: [`sandbox`] takes from its
//! spec what the VM itself is to have.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, MountBuilder, Spec};

pub use crate::role::{Role, CONTAINER_TYPE, SANDBOX_ID};

use crate::{error::shorten, rules, Error, Limits, Result};

/// Kubernetes' uid of the pod, on all of its containers.
pub const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
/// Kubernetes' namespace of the pod, on all of its containers.
pub const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
/// The pod's name, on all of its containers.
pub const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
/// The first of the sums over the pod's containers, which the kubelet gives (since Kubernetes 1.23
/// and containerd 1.7); 0 means none.
pub const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// See [`SANDBOX_CPU_PERIOD`].
pub const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
/// See [`SANDBOX_CPU_PERIOD`].
pub const SANDBOX_CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
/// In bytes. See [`SANDBOX_CPU_PERIOD`].
pub const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// The files that a pod's containers have at these places, unless they mount something else there,
/// and their names in the folder of the pod's sandbox (containerd, `linuxContainerMounts`).
pub const FILES: [(&str, &str); 3] = [
    ("/etc/hostname", "hostname"),
    ("/etc/hosts", "hosts"),
    ("/etc/resolv.conf", "resolv.conf"),
];

/// The most sysctls of a pod.
const MAX_SYSCTLS: usize = 256;

/// Returns the Kubernetes namespace and name of a pod, from the spec of one of its containers, or
/// `None` if the container is in no pod.
pub fn name(spec: &Spec) -> Result<Option<(String, String)>> {
    let Some(namespace) = namespace(spec)? else {
        return Ok(None);
    };
    Ok(Some((namespace, of_pod(spec, SANDBOX_NAME)?)))
}

/// Returns the Kubernetes namespace of a container's pod, or `None` if the container is in no pod.
pub fn namespace(spec: &Spec) -> Result<Option<String>> {
    match Role::of(spec)? {
        Role::Alone => Ok(None),
        _ => of_pod(spec, SANDBOX_NAMESPACE).map(Some),
    }
}

/// Returns Kubernetes' uid of a container's pod, if it has one.
pub fn uid(spec: &Spec) -> Option<String> {
    let uid = spec.annotations().as_ref()?.get(SANDBOX_UID)?;
    (!uid.is_empty()).then(|| uid.clone())
}

fn of_pod(spec: &Spec, key: &str) -> Result<String> {
    let value = spec.annotations().as_ref().and_then(|all| all.get(key));
    value.cloned().ok_or_else(|| Error::Annotation {
        key: key.to_owned(),
        reason: "is missing on a container of a pod".to_owned(),
    })
}

/// Returns the path of the namespace of this type that a container is to join, or `None` if it gets
/// its own or has none.
pub fn joined(spec: &Spec, typ: LinuxNamespaceType) -> Option<&Path> {
    namespace_of(spec, typ)?.path().as_deref()
}

/// Returns the namespace of a type that a spec asks for.
pub fn namespace_of(spec: &Spec, typ: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|ns| ns.typ() == typ)
}

/// Returns the process whose pid namespace a path is, as containerd names it (internal/cri/opts
/// `GetPIDNamespace`).
pub fn pid_of(namespace: &Path) -> Option<u32> {
    let rest = namespace.to_str()?.strip_prefix("/proc/")?;
    rest.strip_suffix("/ns/pid")?.parse().ok()
}

/// What a pod asks for with its sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// `None` means that the pod's hostname is the host's own, as with runc, where a new UTS
    /// namespace begins with it.
    pub hostname: Option<String>,
    /// Sysctls by their names with dots, as in sysctl(8). The VM has a kernel of its own, so all of
    /// them are the pod's.
    pub sysctls: BTreeMap<String, String>,
    /// The network namespace on the host that CNI has filled. `None` means that containerd made
    /// none and the pod has no network.
    pub network: Option<PathBuf>,
    /// The cgroup on the host that the VM's processes belong in.
    pub cgroups_path: Option<PathBuf>,
    /// The sums of what the pod's containers may use. No limits if the kubelet has given none.
    pub limits: Limits,
}

/// Translates a sandbox's spec. It ignores what only the pause container would need (root, mounts,
/// process).
///
/// A pod that wants namespaces of the host, users of its own or hooks is refused here, before
/// anything is started for it.
pub fn sandbox(spec: &Spec) -> Result<Sandbox> {
    rules::check_sandbox(spec)?;
    let linux = spec.linux().as_ref().ok_or(Error::Missing("linux"))?;
    let annotations = spec.annotations().clone().unwrap_or_default();
    Ok(Sandbox {
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
        sysctls: sysctls(linux.sysctl().as_ref())?,
        network: joined(spec, LinuxNamespaceType::Network).map(Path::to_owned),
        cgroups_path: linux.cgroups_path().clone(),
        limits: sums(&annotations)?,
    })
}

/// Mounts the [`FILES`] of a pod into a container that has nothing at their places, as containerd
/// does for a sandbox of its own.
pub fn add_files(spec: &mut Spec, folder: &Path) -> Result<()> {
    let root = spec.root().as_ref();
    let read_only = root.and_then(|root| root.readonly()).unwrap_or_default();
    let access = if read_only { "ro" } else { "rw" };
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (destination, name) in FILES {
        if mounts
            .iter()
            .any(|m| m.destination() == Path::new(destination))
        {
            continue;
        }
        let options = ["rbind", "rprivate", access].map(str::to_owned);
        let mount = MountBuilder::default()
            .destination(destination)
            .typ("bind")
            .source(folder.join(name))
            .options(options);
        mounts.push(mount.build().map_err(|error| Error::Field {
            field: "mounts",
            reason: error.to_string(),
        })?);
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn sysctls(given: Option<&HashMap<String, String>>) -> Result<BTreeMap<String, String>> {
    let refuse = |reason| Error::Field {
        field: "linux.sysctl",
        reason,
    };
    let mut sysctls = BTreeMap::new();
    for (name, value) in given.into_iter().flatten() {
        let allowed =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/' | b'_' | b'-' | b'*');
        let parts = || name.split(['.', '/']);
        if name.len() > 255 || !name.bytes().all(allowed) || parts().any(str::is_empty) {
            return Err(refuse(format!(
                "{:?} is not the name of a kernel parameter",
                shorten(name)
            )));
        }
        sysctls.insert(name.clone(), value.clone());
    }
    if sysctls.len() > MAX_SYSCTLS {
        return Err(refuse(format!(
            "{} parameters, at most {MAX_SYSCTLS} are possible",
            sysctls.len()
        )));
    }
    Ok(sysctls)
}

fn sums(annotations: &HashMap<String, String>) -> Result<Limits> {
    let number = |key: &str| match annotations.get(key) {
        None => Ok(None),
        Some(text) => match text.parse::<i64>() {
            Ok(0) => Ok(None),
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::Annotation {
                key: key.to_owned(),
                reason: format!("{:?} is not a number", shorten(text)),
            }),
        },
    };
    let period = number(SANDBOX_CPU_PERIOD)?.and_then(|period| u64::try_from(period).ok());
    let mut limits = Limits::default();
    if let Some(quota) = number(SANDBOX_CPU_QUOTA)? {
        limits.set_cpu(quota, period);
    }
    if let Some(memory) = number(SANDBOX_MEMORY)? {
        limits.set_memory(memory);
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(annotations: serde_json::Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.1.0",
            "hostname": "web-0",
            "annotations": annotations,
            "linux": {
                "cgroupsPath": "/kubepods/pod1/s1",
                "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                    {"type": "network", "path": "/run/netns/cni-1"},
                ],
            },
        }))
        .unwrap()
    }

    #[test]
    fn pid_is_taken_from_a_namespaces_path_and_from_nothing_else() {
        assert_eq!(pid_of(Path::new("/proc/17/ns/pid")), Some(17));
        for other in [
            "/proc/self/ns/pid",
            "/proc/17/ns/net",
            "/run/17/ns/pid",
            "/proc/-1/ns/pid",
        ] {
            assert_eq!(pid_of(Path::new(other)), None);
        }
    }

    #[test]
    fn sandbox_gives_the_vm_what_is_the_pods() {
        let plan = sandbox(&spec(json!({}))).unwrap();
        assert_eq!(plan.hostname.as_deref(), Some("web-0"));
        assert_eq!(plan.network, Some("/run/netns/cni-1".into()));
        assert_eq!(plan.cgroups_path, Some("/kubepods/pod1/s1".into()));
        assert_eq!(plan.sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(plan.limits, Limits::default());
    }

    #[test]
    fn sums_of_the_kubelet_are_read_and_zero_is_none() {
        let annotations = json!({
            SANDBOX_CPU_QUOTA: "150000", SANDBOX_CPU_PERIOD: "100000", SANDBOX_CPU_SHARES: "2",
            SANDBOX_MEMORY: "0",
        });
        let limits = sandbox(&spec(annotations)).unwrap().limits;
        assert_eq!((limits.cpu_milli, limits.memory), (Some(1500), None));
    }

    #[test]
    fn sums_that_are_no_numbers_are_refused() {
        let error = sandbox(&spec(json!({SANDBOX_MEMORY: "1Gi"}))).unwrap_err();
        assert!(error.to_string().contains(SANDBOX_MEMORY), "{error}");
    }

    #[test]
    fn sandbox_in_a_namespace_of_the_host_is_refused_in_kubernetes_words() {
        let words = [(0, "hostPID"), (1, "hostIPC"), (4, "hostNetwork")];
        for (index, word) in words {
            let mut spec = spec(json!({}));
            let linux = spec.linux_mut().as_mut().unwrap();
            linux.namespaces_mut().as_mut().unwrap().remove(index);
            let error = sandbox(&spec).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn files_of_the_pod_are_mounted_where_the_container_has_none() {
        let mut spec = spec(json!({}));
        let own =
            json!([{"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts"}]);
        spec.set_mounts(serde_json::from_value(own).unwrap());
        spec.set_root(serde_json::from_value(json!({"path": "rootfs", "readonly": true})).unwrap());
        add_files(&mut spec, Path::new("/pod")).unwrap();
        let mounts = spec.mounts().as_ref().unwrap();
        let sources: Vec<_> = mounts.iter().flat_map(|m| m.source()).collect();
        let expected = ["/kubelet/hosts", "/pod/hostname", "/pod/resolv.conf"];
        assert_eq!(sources, expected.map(PathBuf::from).each_ref());
        let options = mounts[1].options().as_ref().unwrap();
        assert!(options.contains(&"ro".to_owned()), "{options:?}");
    }

    #[test]
    fn sysctl_that_leads_elsewhere_is_refused() {
        for name in ["net..x", "../../etc", "/net", "a b", ""] {
            let given = HashMap::from([(name.to_owned(), "1".to_owned())]);
            sysctls(Some(&given)).unwrap_err();
        }
    }
}

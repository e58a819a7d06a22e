//! Converts CRI's PodSandboxConfig to the spec that containerd writes for a pause container
//! (containerd, internal/cri/server/podsandbox/sandbox_run_linux.go), as far as
//! [`caisson_oci::pod::sandbox`] looks at it.

use std::{collections::HashMap, path::Path};

use caisson_oci::{annotations, pod};
use serde_json::{json, Value};

use crate::cri::pod_sandbox_config::{
    IDMapping, NamespaceMode, NamespaceOption, PodSandboxConfig, UserNamespace,
};

/// The sysctls that containerd 2 adds unless a pod says otherwise (its options
/// `enable_unprivileged_ports` and `enable_unprivileged_icmp`).
const DEFAULT_SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// Makes the spec of a sandbox whose network CNI has put into the namespace at `network`; empty
/// means that there is none.
pub fn of(id: &str, config: &PodSandboxConfig, network: &str) -> Value {
    let linux = &config.linux;
    let mut sysctls = linux.sysctls.clone();
    for (name, value) in DEFAULT_SYSCTLS {
        sysctls
            .entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
    }
    let mut spec = json!({
        "ociVersion": "1.1.0",
        "hostname": config.hostname,
        "annotations": annotations(id, config),
        "linux": {
            "namespaces": namespaces(&linux.security_context.namespace_options, network),
            "sysctl": sysctls,
        },
    });
    if let Some(users) = users(&linux.security_context.namespace_options) {
        spec["linux"]["uidMappings"] = mappings(&users.uids);
        spec["linux"]["gidMappings"] = mappings(&users.gids);
    }
    if !linux.cgroup_parent.is_empty() {
        spec["linux"]["cgroupsPath"] = cgroups_path(&linux.cgroup_parent, id).into();
    }
    spec
}

/// Lists the namespaces of the sandbox. One that is not listed is the host's. Where the spec is
/// read, those that are not possible are refused.
fn namespaces(asked: &NamespaceOption, network: &str) -> Vec<Value> {
    let hosts = |mode: protobuf::EnumOrUnknown<NamespaceMode>| mode == NamespaceMode::NODE.into();
    let mut listed = vec![json!({"type": "mount"})];
    if !hosts(asked.network) {
        listed.push(json!({"type": "uts"}));
        listed.push(match network {
            "" => json!({"type": "network"}),
            path => json!({"type": "network", "path": path}),
        });
    }
    if !hosts(asked.pid) {
        listed.push(json!({"type": "pid"}));
    }
    if !hosts(asked.ipc) {
        listed.push(json!({"type": "ipc"}));
    }
    if users(asked).is_some() {
        listed.push(json!({"type": "user"}));
    }
    listed
}

/// The pod's own users; None if it is to have the host's.
fn users(asked: &NamespaceOption) -> Option<&UserNamespace> {
    let users = asked.userns_options.as_ref()?;
    (users.mode != NamespaceMode::NODE.into()).then_some(users)
}

fn mappings(lines: &[IDMapping]) -> Value {
    let lines = lines.iter().map(|line| {
        json!({"containerID": line.container_id, "hostID": line.host_id, "size": line.length})
    });
    lines.collect()
}

/// containerd's own annotations, and those of the pod that are Caisson's. containerd's
/// configuration passes no others on either.
fn annotations(id: &str, config: &PodSandboxConfig) -> HashMap<String, String> {
    let given = config.annotations.iter();
    let ours = given.filter(|(key, _)| key.starts_with(annotations::PREFIX));
    let mut all: HashMap<_, _> = ours.map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut add = |key: &str, value: String| all.insert(key.to_owned(), value);
    add(pod::CONTAINER_TYPE, "sandbox".to_owned());
    add(pod::SANDBOX_ID, id.to_owned());
    add(pod::SANDBOX_UID, config.metadata.uid.clone());
    add(pod::SANDBOX_NAME, config.metadata.name.clone());
    add(pod::SANDBOX_NAMESPACE, config.metadata.namespace.clone());
    if let Some(sums) = config.linux.resources.as_ref() {
        add(pod::SANDBOX_CPU_PERIOD, sums.cpu_period.to_string());
        add(pod::SANDBOX_CPU_QUOTA, sums.cpu_quota.to_string());
        add(pod::SANDBOX_CPU_SHARES, sums.cpu_shares.to_string());
        add(pod::SANDBOX_MEMORY, sums.memory_limit_in_bytes.to_string());
    }
    all
}

/// The path of the sandbox' cgroup in the pod's cgroup (containerd, `getCgroupsPath`). A slice is
/// systemd's.
fn cgroups_path(parent: &str, id: &str) -> String {
    let name = Path::new(parent).file_name().unwrap_or_default();
    match name.to_string_lossy() {
        slice if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        _ => Path::new(parent).join(id).display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::pod_sandbox_config::{LinuxContainerResources, LinuxPodSandboxConfig};
    use caisson_oci::spec::Spec;

    fn config(edit: impl FnOnce(&mut LinuxPodSandboxConfig)) -> PodSandboxConfig {
        let mut config = PodSandboxConfig {
            hostname: "web-0".to_owned(),
            ..Default::default()
        };
        let linux = config.linux.mut_or_insert_default();
        linux.cgroup_parent = "/kubepods/pod1".to_owned();
        edit(linux);
        config
    }

    fn sandbox(config: &PodSandboxConfig) -> caisson_oci::Result<pod::Sandbox> {
        let spec = of("s1", config, "/run/netns/cni-1");
        pod::sandbox(&serde_json::from_value(spec).unwrap())
    }

    fn asked(linux: &mut LinuxPodSandboxConfig) -> &mut NamespaceOption {
        let security = linux.security_context.mut_or_insert_default();
        security.namespace_options.mut_or_insert_default()
    }

    #[test]
    fn sandbox_has_what_the_pod_asks_for() {
        let given = config(|linux| {
            linux.sysctls = HashMap::from([("kernel.shm_rmid_forced".to_owned(), "1".to_owned())]);
            linux.resources = Some(LinuxContainerResources {
                cpu_quota: 150_000,
                cpu_period: 100_000,
                memory_limit_in_bytes: 1 << 30,
                ..Default::default()
            })
            .into();
        });
        let sandbox = sandbox(&given).unwrap();
        assert_eq!(sandbox.hostname.as_deref(), Some("web-0"));
        assert_eq!(sandbox.network, Some("/run/netns/cni-1".into()));
        assert_eq!(sandbox.cgroups_path, Some("/kubepods/pod1/s1".into()));
        assert_eq!(sandbox.sysctls["kernel.shm_rmid_forced"], "1");
        assert_eq!(sandbox.sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(sandbox.limits.memory, Some(1 << 30));
    }

    #[test]
    fn sandbox_is_known_by_its_annotations_and_those_of_others_are_left_out() {
        let mut given = config(|_| {});
        let foreign = (pod::SANDBOX_MEMORY.to_owned(), "1".to_owned());
        let ours = (annotations::HOME.to_owned(), "persistent/a".to_owned());
        given.annotations = HashMap::from([foreign, ours]);
        let spec: Spec = serde_json::from_value(of("s1", &given, "")).unwrap();
        assert_eq!(
            caisson_oci::Role::of(&spec).unwrap(),
            caisson_oci::Role::Sandbox
        );
        let kept = spec.annotations().as_ref().unwrap();
        assert!(kept.contains_key(annotations::HOME) && !kept.contains_key(pod::SANDBOX_MEMORY));
    }

    #[test]
    fn sandbox_in_a_namespace_of_the_host_is_refused_in_kubernetes_words() {
        type Edit = fn(&mut NamespaceOption);
        let words: [(Edit, &str); 4] = [
            (|n| n.network = NamespaceMode::NODE.into(), "hostNetwork"),
            (|n| n.pid = NamespaceMode::NODE.into(), "hostPID"),
            (|n| n.ipc = NamespaceMode::NODE.into(), "hostIPC"),
            (
                |n| n.userns_options = Some(UserNamespace::default()).into(),
                "hostUsers",
            ),
        ];
        for (edit, word) in words {
            let given = config(|linux| edit(asked(linux)));
            let error = sandbox(&given).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn users_of_the_host_are_the_default() {
        let given = config(|linux| {
            let users = UserNamespace {
                mode: NamespaceMode::NODE.into(),
                ..Default::default()
            };
            asked(linux).userns_options = Some(users).into();
        });
        sandbox(&given).unwrap();
    }

    #[test]
    fn users_of_the_pod_are_mapped_as_it_says() {
        let line = IDMapping {
            host_id: 100_000,
            length: 65_536,
            ..Default::default()
        };
        let given = config(|linux| {
            let users = UserNamespace {
                uids: vec![line.clone()],
                gids: vec![line],
                ..Default::default()
            };
            asked(linux).userns_options = Some(users).into();
        });
        let spec: Spec = serde_json::from_value(of("s1", &given, "")).unwrap();
        let map = caisson_oci::IdMap::of_namespace(&spec).unwrap();
        assert_eq!(map.uid_map(), "0 100000 65536\n");
        pod::sandbox(&spec).unwrap();
    }

    #[test]
    fn cgroup_in_a_slice_is_named_for_systemd() {
        let parent = "/kubepods.slice/kubepods-pod1.slice";
        assert_eq!(
            cgroups_path(parent, "s1"),
            "kubepods-pod1.slice:cri-containerd:s1"
        );
    }
}

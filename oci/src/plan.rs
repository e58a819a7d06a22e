//! Decides everything that the VM and the guest do for a container: the limits that the VM must
//! have room for, the directories to share, the disks, and the spec that the guest runs. The guest
//! follows the plan. It adds only what it alone knows: see [`Plan::spec`].

use std::{collections::BTreeMap, path::PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Spec};

use crate::{
    devices::{self, BlockDevice},
    exec::Grants,
    guest_devices::GuestDevice,
    mounts,
    places::{PidNamespace, Places},
    pod, privileged, rules, runtime,
    secrets::Descriptor,
    users,
    volume::{Memory, Part, ScratchDisk},
    Error, IdMap, Limits, Node, Result, Role, Volume, Wishes,
};

/// What to do for a container.
#[derive(Debug)]
pub struct Plan {
    /// The limits that the VM has to have room for.
    pub limits: Limits,
    /// Host directories and files to share with the guest, each at `Places::volumes/<name>`.
    pub volumes: Vec<Volume>,
    /// Memory of the pod that the guest's spec refers to, each at `Places::memory/<name>`.
    pub memory: Vec<Memory>,
    /// Parts of volumes and of memory, each at `Places::parts/<name>`.
    pub parts: Vec<Part>,
    /// Block devices of the host that the VM gets as disks and the container as device nodes.
    pub disks: Vec<BlockDevice>,
    /// Disks of the guest in which emptyDirs are, each at `Places::disks/<serial>`.
    pub scratch: Vec<ScratchDisk>,
    /// Whether the container has all device nodes of the guest.
    pub guest_devices: bool,
    /// The files that every process of the container has open.
    pub descriptors: Vec<Descriptor>,
    /// The variables that the pod was claimed with.
    pub env: BTreeMap<String, String>,
    /// The pid namespace that the container is in.
    pub pid_namespace: PidNamespace,
    /// The users of the pod, if it has users of its own that the container shares.
    pub pod_users: Option<IdMap>,
    /// The places below `Places::shares` that the container's root and mounts come from.
    pub shared: Vec<PathBuf>,
    /// The limit of cpu time, as `cpu.max` of the container's cgroup has it, from the start of its
    /// program on.
    pub cpu_max: Option<String>,
    /// The spec that the guest runs. The guest adds the numbers of the devices in `disks` and
    /// `guest_devices`, the paths of the namespaces in `pid_namespace` and `pod_users`, and the
    /// path of the container's cgroup.
    pub spec: Spec,
    /// What was dropped, for the log.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Whether the container's init has a terminal.
    pub fn terminal(&self) -> bool {
        self.spec
            .process()
            .as_ref()
            .and_then(|process| process.terminal())
            == Some(true)
    }

    /// Returns the spec's `process.oomScoreAdj`, or 0 if it has none.
    pub fn oom_score_adj(&self) -> i32 {
        let process = self.spec.process().as_ref();
        process
            .and_then(|process| process.oom_score_adj())
            .unwrap_or(0)
    }

    /// Returns what every additional process of the container gets, with the guest's `devices` that
    /// its annotations name.
    pub fn grants(&self, devices: Vec<GuestDevice>) -> Grants {
        let process = self.spec.process().as_ref();
        Grants {
            capabilities: process.and_then(|process| process.capabilities().clone()),
            devices,
            descriptors: self.descriptors.clone(),
            env: self.env.clone(),
        }
    }
}

/// Plans a container. If this fails, nothing has been done yet.
pub fn plan(wishes: Wishes, node: Node<'_>, places: &Places) -> Result<Plan> {
    let scratch = wishes.scratch(node.vm.scratch);
    let Wishes {
        role,
        annotations,
        claimed,
        mut spec,
        ..
    } = wishes;
    let privileged = privileged::is_privileged(&spec);
    let mut warnings = rules::apply(&mut spec, &role)?;
    let users = IdMap::of_namespace(&spec);
    if places.home.is_some() {
        users::check_home(&spec)?;
    }
    let pod_users = users.filter(|_| pod::joined(&spec, LinuxNamespaceType::User).is_some());
    let (disks, dropped) = devices::translate(&mut spec, privileged)?;
    warnings.extend(dropped);
    devices::own_dev(&mut spec)?;
    let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    let limits = Limits::of(resources);
    node.room_for([limits])?;

    let (needs, descriptors) = mounts::translate(
        &mut spec,
        &role,
        &annotations,
        claimed.as_ref(),
        scratch,
        places,
    )?;
    let mounts::Needs {
        volumes,
        memory,
        disks: scratch,
        parts,
    } = needs;
    if let Some(root) = spec.root_mut() {
        root.set_path(places.rootfs.clone());
    }
    let shares_mounts = spec.mounts().iter().flatten().any(mounts::is_shared);
    if let Some(linux) = spec.linux_mut() {
        // The guest has a cgroup of its own for each container.
        linux.set_cgroups_path(None);
        // The share follows the host's mounts by itself. A mount in the guest propagates to other
        // containers only if the root's do.
        linux.set_rootfs_propagation(shares_mounts.then(|| "shared".to_owned()));
        if let Some(namespaces) = linux.namespaces_mut() {
            guest_namespaces(namespaces, &role, privileged)?;
        }
    }
    runtime::adapt(&mut spec)?;
    let cpu_max = runtime::take_cpu_limit(&mut spec);
    Ok(Plan {
        limits,
        shared: mounts::shared(&spec, &parts, &places.shares),
        volumes,
        memory,
        parts,
        disks,
        scratch,
        guest_devices: privileged,
        descriptors,
        env: claimed.map(|claimed| claimed.env).unwrap_or_default(),
        pid_namespace: places.pid_namespace.clone(),
        pod_users,
        cpu_max,
        spec,
        warnings,
    })
}

/// Adapts the namespaces of a container to the guest. A pod's network, IPC and UTS namespaces are
/// those that the guest has booted with; a container that lists none has these. The paths of the
/// namespaces that it joins are the guest's affair.
fn guest_namespaces(
    namespaces: &mut Vec<LinuxNamespace>,
    role: &Role,
    privileged: bool,
) -> Result<()> {
    use LinuxNamespaceType::{Cgroup, Ipc, Network, Uts};
    namespaces.retain(|ns| match ns.typ() {
        Network => false,
        Ipc | Uts => ns.path().is_none(),
        _ => true,
    });
    for namespace in namespaces.iter_mut() {
        namespace.set_path(None);
    }
    // Containerd leaves the cgroup namespace out on a host with cgroup v1. The guest has v2, whose
    // tree would show all of the pod's containers.
    let hidden = namespaces.iter().any(|ns| ns.typ() == Cgroup);
    if *role != Role::Alone && !privileged && !hidden {
        let cgroup = LinuxNamespaceBuilder::default().typ(Cgroup).build();
        namespaces.push(cgroup.map_err(|error| Error::Field {
            field: "linux.namespaces",
            reason: error.to_string(),
        })?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, path::Path};

    use serde_json::{json, Value};

    use super::*;
    use crate::{config::Vm, volume::ReadOnly, Policy};

    fn places() -> Places {
        Places {
            rootfs: "/g/shares/rootfs".into(),
            shares: "/g/shares".into(),
            volumes: "/g/shares/volumes".into(),
            memory: "/g/memory".into(),
            disks: "/g/disks".into(),
            parts: "/g/parts".into(),
            mounted: Vec::new(),
            found: HashMap::new(),
            skills: vec![("/opt/skills/pptx".into(), "/g/disk".into())],
            home: Some(("/home/app".into(), "/g/home".into())),
            pid_namespace: PidNamespace::Own,
        }
    }

    fn config() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"]},
            ],
            "linux": {"cgroupsPath": "/default/x", "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
            ]},
        })
    }

    fn plan(config: &Value) -> Result<Plan> {
        let json = config.to_string().into_bytes();
        let wishes = Wishes::parse(&json, &Policy::default(), "default")?;
        super::plan(wishes, Node::small(&Vm::default()), &places())
    }

    fn refusal(field: &str, value: Value) -> String {
        let mut config = config();
        *config.pointer_mut(field).unwrap() = value;
        plan(&config).unwrap_err().to_string()
    }

    #[test]
    fn bind_mount_becomes_a_volume_of_the_share() {
        let plan = plan(&config()).unwrap();
        let [volume] = &plan.volumes[..] else {
            panic!("{:?}", plan.volumes);
        };
        assert_eq!(volume.source, Path::new("/srv/data"));
        assert_eq!(volume.read_only, ReadOnly::Top);
        let mounts = plan.spec.mounts().as_ref().unwrap();
        let place = Path::new("/g/shares/volumes").join(&volume.name);
        assert_eq!(mounts[1].source(), &Some(place));
    }

    #[test]
    fn skills_and_home_are_mounted_after_the_specs_own() {
        let plan = plan(&config()).unwrap();
        let mounts = plan.spec.mounts().as_ref().unwrap();
        let targets: Vec<_> = mounts
            .iter()
            .map(|m| m.destination().to_str().unwrap())
            .collect();
        assert_eq!(targets, ["/proc", "/data", "/opt/skills/pptx", "/home/app"]);
        assert!(mounts[2]
            .options()
            .as_ref()
            .unwrap()
            .contains(&"ro".to_owned()));
    }

    #[test]
    fn guest_spec_names_only_places_of_the_guest() {
        let plan = plan(&config()).unwrap();
        let linux = plan.spec.linux().as_ref().unwrap();
        assert_eq!(
            plan.spec.root().as_ref().unwrap().path(),
            Path::new("/g/shares/rootfs")
        );
        assert_eq!(linux.cgroups_path(), &None);
        let namespaces = linux.namespaces().as_ref().unwrap();
        assert!(namespaces
            .iter()
            .all(|n| n.typ() != LinuxNamespaceType::Network));
    }

    /// Returns the namespaces, as type and path, that a container of a pod has in the guest.
    fn namespaces_in_pod(given: Value) -> Vec<(String, Option<PathBuf>)> {
        let mut config = config();
        config["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "s1",
        });
        config["linux"]["namespaces"] = given;
        let spec = plan(&config).unwrap().spec;
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        let told = |ns: &LinuxNamespace| (ns.typ().to_string(), ns.path().clone());
        namespaces.iter().map(told).collect()
    }

    #[test]
    fn container_of_a_pod_has_the_guests_own_network_ipc_and_hostname() {
        let given = json!([
            {"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/proc/7/ns/net"},
            {"type": "ipc", "path": "/proc/7/ns/ipc"}, {"type": "uts", "path": "/proc/7/ns/uts"},
        ]);
        let own = |name: &str| (name.to_owned(), None);
        let expected = [own("mnt"), own("pid"), own("cgroup")];
        assert_eq!(namespaces_in_pod(given), expected);
    }

    #[test]
    fn namespaces_that_are_joined_have_no_path_of_the_host() {
        let given = json!([
            {"type": "mount"}, {"type": "cgroup"}, {"type": "pid", "path": "/proc/7/ns/pid"},
            {"type": "network", "path": "/proc/7/ns/net"}, {"type": "ipc", "path": "/proc/7/ns/ipc"},
            {"type": "uts", "path": "/proc/7/ns/uts"},
        ]);
        let own = |name: &str| (name.to_owned(), None);
        let expected = [own("mnt"), own("cgroup"), own("pid")];
        assert_eq!(namespaces_in_pod(given), expected);
    }

    #[test]
    fn users_are_the_pods_if_their_namespace_is_joined() {
        let users = |path: Value| {
            let mut config = config();
            config["annotations"] = json!({
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": "s1",
            });
            let line = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
            config["linux"]["uidMappings"] = line.clone();
            config["linux"]["gidMappings"] = line;
            config["linux"]["namespaces"] = json!([
                {"type": "pid"}, {"type": "mount"}, {"type": "user", "path": path},
                {"type": "network", "path": "/proc/7/ns/net"},
                {"type": "ipc", "path": "/proc/7/ns/ipc"},
                {"type": "uts", "path": "/proc/7/ns/uts"},
            ]);
            let wishes = Wishes::parse(config.to_string().as_bytes(), &Policy::default(), "x");
            let mut places = places();
            places.home = None;
            let plan = super::plan(wishes.unwrap(), Node::small(&Vm::default()), &places);
            plan.unwrap().pod_users
        };
        assert!(users("/proc/7/ns/user".into()).is_some());
        assert!(users(Value::Null).is_none());
    }

    #[test]
    fn places_of_the_shares_are_told() {
        let mut config = config();
        config["mounts"][0]["source"] = json!("/g/shares/only-a-word");
        let plan = plan(&config).unwrap();
        let volume = Path::new("/g/shares/volumes").join(&plan.volumes[0].name);
        assert_eq!(plan.shared, ["/g/shares/rootfs".into(), volume]);
    }

    #[test]
    fn mount_of_a_file_system_of_the_host_is_refused() {
        let message = refusal("/mounts/0/type", json!("nfs"));
        assert!(
            message.contains("mounts") && message.contains("nfs"),
            "{message}"
        );
    }

    #[test]
    fn relative_paths_are_refused() {
        assert!(refusal("/mounts/1/source", json!("srv")).contains("not absolute"));
        assert!(refusal("/mounts/1/destination", json!("data")).contains("not absolute"));
        assert!(refusal("/process/cwd", json!("tmp")).contains("process.cwd"));
    }

    #[test]
    fn vm_larger_than_the_node_is_refused() {
        let mut config = config();
        config["linux"]["resources"] = json!({"memory": {"limit": 1u64 << 40}});
        let message = plan(&config).unwrap_err().to_string();
        assert!(
            message.contains("linux.resources.memory.limit"),
            "{message}"
        );
    }
}

//! Translates a container's `config.json` into the size of its VM, the directories to share, and
//! the spec that the guest runs.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, Spec,
};

use crate::{
    config::Vm,
    devices::{self, BlockDevice},
    error::shorten,
    pod, privileged, rules,
    secrets::{self, Descriptor, SecretFd},
    volume::{self, Found, Memory, Source},
    Error, IdMap, Limits, Result, Role, VmSize, Volume,
};

/// Where the guest will find what the shim plugs in for this container.
#[derive(Debug, Clone)]
pub struct GuestPaths {
    /// The container's root.
    pub rootfs: PathBuf,
    /// The folder of the volumes, each at `volumes/<name>`.
    pub volumes: PathBuf,
    /// The folder of the pod's memory, each at `memory/<name>`.
    pub memory: PathBuf,
    /// What the shim found on the host at the sources of the bind mounts.
    pub found: HashMap<PathBuf, Found>,
    /// The skills, in the order of the annotation, each as its mount point in the container and its
    /// place in the guest.
    pub skills: Vec<(PathBuf, PathBuf)>,
    /// The home, as its mount point in the container and its place in the guest.
    pub home: Option<(PathBuf, PathBuf)>,
    /// The keys in the mounted volumes that every process is to have open.
    pub secret_fds: Vec<SecretFd>,
    /// The pid namespace that the containers of a pod share, if they share one.
    pub pid_namespace: PathBuf,
    /// The user namespace of a pod that has one.
    pub user_namespace: PathBuf,
}

/// The node that the container runs on.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// Its `[vm]` configuration.
    pub vm: &'a Vm,
    /// Its cpus.
    pub cpus: u32,
    /// Its memory, in MiB.
    pub memory_mib: u64,
}

/// What to do for a container.
#[derive(Debug)]
pub struct Plan {
    /// The limits that the VM has to have room for.
    pub limits: Limits,
    /// Host directories and files to share with the guest, each at `GuestPaths::volumes/<name>`.
    pub volumes: Vec<Volume>,
    /// Memory of the pod that the guest's spec refers to, each at `GuestPaths::memory/<name>`.
    pub memory: Vec<Memory>,
    /// Block devices of the host that the VM gets as disks and the container as device nodes.
    pub disks: Vec<BlockDevice>,
    /// Whether the container has all device nodes of the guest.
    pub guest_devices: bool,
    /// The files that every process of the container has open.
    pub descriptors: Vec<Descriptor>,
    /// The spec that the guest runs.
    pub guest_spec: Spec,
    /// What was dropped, for the log.
    pub warnings: Vec<String>,
}

/// Reads `config.json` and checks that it has what every container needs.
pub fn parse_spec(json: &[u8]) -> Result<Spec> {
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

/// Translates a spec from [`parse_spec`] for the VM. If this fails, nothing has been done yet.
pub fn translate(mut spec: Spec, id: &str, node: Node<'_>, paths: &GuestPaths) -> Result<Plan> {
    let role = Role::of(&spec)?;
    let privileged = privileged::is_privileged(&spec);
    let mut warnings = rules::apply(&mut spec, &role)?;
    if paths.home.is_some() && IdMap::of_namespace(&spec).is_some() {
        return Err(Error::Field {
            field: "linux.namespaces.user",
            reason: "a home keeps its owners, which a user namespace would not know; leave hostUsers out of the pod".to_owned(),
        });
    }
    let (disks, dropped) = devices::translate(&mut spec, privileged)?;
    warnings.extend(dropped);
    devices::own_dev(&mut spec)?;
    let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    let limits = Limits::of(resources);
    let size = VmSize::of([limits], node.vm, node.cpus);
    if size.memory_mib > node.memory_mib {
        return Err(Error::Field {
            field: "linux.resources.memory.limit",
            reason: format!(
                "the VM would need {} MiB of memory (the limit and vm.memory_overhead_mib), the node has {} MiB; lower the limit",
                size.memory_mib, node.memory_mib
            ),
        });
    }

    let uid = spec
        .annotations()
        .as_ref()
        .and_then(|all| all.get(pod::SANDBOX_UID))
        .cloned();
    let mut sources = Sources {
        pod: volume::Pod {
            role: &role,
            uid: uid.as_deref(),
            found: &paths.found,
        },
        paths,
        volumes: Vec::new(),
        memory: Vec::new(),
    };
    let mut mounts = Vec::new();
    let given = spec.mounts().clone().unwrap_or_default();
    for mount in &given {
        mounts.push(sources.translate(mount.clone())?);
    }
    let descriptors = secrets::find(&paths.secret_fds, &given, &mounts)?;
    if let Some(process) = spec.process_mut() {
        secrets::check_environment(process, &descriptors)?;
        secrets::set_environment(process, &descriptors);
    }
    let Sources {
        volumes, memory, ..
    } = sources;
    for (target, place) in &paths.skills {
        mounts.push(bind(target, place, &["rbind", "ro", "nosuid", "nodev"])?);
    }
    if let Some((target, place)) = &paths.home {
        mounts.push(bind(target, place, &["rbind", "rw", "nosuid", "nodev"])?);
    }
    spec.set_mounts(Some(mounts));

    if let Some(root) = spec.root_mut() {
        root.set_path(paths.rootfs.clone());
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(Some(Path::new("/").join(id)));
        // A mount in the guest propagates nowhere; the share follows the host's mounts by itself.
        linux.set_rootfs_propagation(None);
        if let Some(namespaces) = linux.namespaces_mut() {
            guest_namespaces(namespaces, &role, privileged, paths)?;
        }
    }
    Ok(Plan {
        limits,
        volumes,
        memory,
        disks,
        guest_devices: privileged,
        descriptors,
        guest_spec: spec,
        warnings,
    })
}

/// Adapts the namespaces of a container to the guest. A pod's network, IPC and UTS namespaces are
/// those that the guest has booted with; a container that lists none has these.
fn guest_namespaces(
    namespaces: &mut Vec<LinuxNamespace>,
    role: &Role,
    privileged: bool,
    paths: &GuestPaths,
) -> Result<()> {
    use LinuxNamespaceType::{Cgroup, Ipc, Network, Pid, User, Uts};
    namespaces.retain(|ns| match ns.typ() {
        Network => false,
        Ipc | Uts => ns.path().is_none(),
        _ => true,
    });
    for namespace in namespaces.iter_mut() {
        let shared = match namespace.typ() {
            Pid => &paths.pid_namespace,
            User => &paths.user_namespace,
            _ => continue,
        };
        if namespace.path().is_some() {
            namespace.set_path(Some(shared.clone()));
        }
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

/// File systems that the guest's kernel makes by itself, from nothing of the host.
const GUEST_FILE_SYSTEMS: &[&str] = &[
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs", "devtmpfs",
];

/// The places that the mounts of one container come from.
struct Sources<'a> {
    pod: volume::Pod<'a>,
    paths: &'a GuestPaths,
    volumes: Vec<Volume>,
    memory: Vec<Memory>,
}

impl Sources<'_> {
    fn translate(&mut self, mut mount: Mount) -> Result<Mount> {
        let refuse = |reason| Error::Field {
            field: "mounts",
            reason,
        };
        let destination = shorten(&mount.destination().to_string_lossy());
        if !mount.destination().is_absolute() {
            return Err(refuse(format!(
                "destination {destination:?} is not absolute"
            )));
        }
        let typ = mount.typ().clone().unwrap_or_default();
        if rules::is_bind(&mount) {
            let source = mount.source().clone().ok_or_else(|| {
                refuse(format!("the bind mount at {destination:?} has no source"))
            })?;
            if !source.is_absolute() {
                // The path is relative to the bundle (OCI runtime spec, config.md "Mounts").
                // Containerd never uses that.
                return Err(refuse(format!(
                    "source {:?} of the bind mount at {destination:?} is not absolute",
                    shorten(&source.to_string_lossy())
                )));
            }
            let place = match self.pod.source_of(&mount, &source) {
                Source::Host(volume) => {
                    let place = self.paths.volumes.join(&volume.name);
                    self.volumes.push(volume);
                    place
                }
                Source::Copy(volume, memory) => {
                    self.volumes.push(volume);
                    self.remember(memory)
                }
                Source::Memory(memory) => self.remember(memory),
            };
            mount.set_source(Some(place));
            // The host maps the ids.
            mount.set_uid_mappings(None).set_gid_mappings(None);
            if let Some(options) = mount.options_mut() {
                options.retain(|option| !matches!(option.as_str(), "idmap" | "ridmap"));
            }
            return Ok(mount);
        }
        if !GUEST_FILE_SYSTEMS.contains(&typ.as_str()) {
            return Err(refuse(format!(
                "type {:?} at {destination:?} can't be mounted in the guest; possible are bind and {}",
                shorten(&typ),
                GUEST_FILE_SYSTEMS.join(", ")
            )));
        }
        if let Some(memory) = self.pod.own_shm(&mount) {
            let place = self.remember(memory);
            return bind(mount.destination(), &place, &["rbind", "rw"]);
        }
        Ok(mount)
    }

    fn remember(&mut self, memory: Memory) -> PathBuf {
        let place = self.paths.memory.join(&memory.name);
        if !self.memory.contains(&memory) {
            self.memory.push(memory);
        }
        place
    }
}

fn bind(target: &Path, source: &Path, options: &[&str]) -> Result<Mount> {
    MountBuilder::default()
        .destination(target)
        .typ("bind")
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
        .map_err(|error| Error::Field {
            field: "mounts",
            reason: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::ReadOnly;
    use serde_json::{json, Value};

    fn paths() -> GuestPaths {
        GuestPaths {
            rootfs: "/g/rootfs".into(),
            volumes: "/g/volumes".into(),
            memory: "/g/memory".into(),
            found: HashMap::new(),
            skills: vec![("/opt/skills/pptx".into(), "/g/disk".into())],
            home: Some(("/home/app".into(), "/g/home".into())),
            secret_fds: Vec::new(),
            pid_namespace: "/g/pid-namespace".into(),
            user_namespace: "/g/user-namespace".into(),
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
        let spec = parse_spec(config.to_string().as_bytes())?;
        let vm = Vm::default();
        let node = Node {
            vm: &vm,
            cpus: 4,
            memory_mib: 16_384,
        };
        translate(spec, "web", node, &paths())
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
        let mounts = plan.guest_spec.mounts().as_ref().unwrap();
        let place = Path::new("/g/volumes").join(&volume.name);
        assert_eq!(mounts[1].source(), &Some(place));
    }

    #[test]
    fn skills_and_home_are_mounted_after_the_specs_own() {
        let plan = plan(&config()).unwrap();
        let mounts = plan.guest_spec.mounts().as_ref().unwrap();
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
        let linux = plan.guest_spec.linux().as_ref().unwrap();
        assert_eq!(
            plan.guest_spec.root().as_ref().unwrap().path(),
            Path::new("/g/rootfs")
        );
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/web")));
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
        let spec = plan(&config).unwrap().guest_spec;
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
    fn container_that_shares_pids_joins_the_pods_namespace() {
        let given = json!([
            {"type": "mount"}, {"type": "cgroup"}, {"type": "pid", "path": "/proc/7/ns/pid"},
            {"type": "network", "path": "/proc/7/ns/net"}, {"type": "ipc", "path": "/proc/7/ns/ipc"},
            {"type": "uts", "path": "/proc/7/ns/uts"},
        ]);
        let found = namespaces_in_pod(given);
        assert_eq!(found[2].1, Some("/g/pid-namespace".into()));
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn config_that_is_not_json_is_refused() {
        assert!(matches!(parse_spec(b"{nonsense"), Err(Error::Spec(_))));
    }

    #[test]
    fn config_without_process_or_root_is_refused_by_its_name() {
        for field in ["process", "root", "linux"] {
            let mut config = config();
            config.as_object_mut().unwrap().remove(field);
            let message = plan(&config).unwrap_err().to_string();
            assert!(
                message.contains(&format!("{field} is missing")),
                "{message}"
            );
        }
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

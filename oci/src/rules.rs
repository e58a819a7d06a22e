//! The table of what can't be honoured in a VM. Each row is either refused (the container fails and
//! says why) or dropped (it starts, with a warning in the shim's log, unless nobody has chosen it).
//! Devices have a table of their own in [`crate::devices`].

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Mount, Spec};

use crate::{error::shorten, Error, IdMap, Result, Role};

/// What happens to a container that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The container is refused.
    Refuse,
    /// The container starts without it, and the shim logs a warning.
    Drop,
    /// The container starts without it. Engines ask for it for every container, so there is nothing
    /// to be said.
    DropUnsaid,
}

/// One row of the table.
pub struct Rule {
    /// Dotted path in `config.json`.
    pub field: &'static str,
    /// Refuse or drop.
    pub action: Action,
    /// For a refusal, what to do; for a drop, what it means.
    pub advice: &'static str,
    /// Returns the offending value if the spec of a task in this role has it.
    find: fn(&Spec, &Role) -> Option<String>,
    /// Removes it from the spec (drops only).
    drop: fn(&mut Spec),
}

/// What becomes of a volume in a file system of the host whose files have no size: a guest would
/// read nothing (fuse(4)). It continues a text that names the file system.
pub const MADE_UP: &str = "which a VM can't show; the guest has its own, so leave the mount out, or run the pod without runtimeClassName";

fn keep(_: &mut Spec) {}

/// The AppArmor profiles that engines give to every container, to keep it from the kernel controls
/// that it would share with the host. The VM does that already. A profile with another name was
/// chosen by a user and must not be silently ignored.
const USUAL_PROFILES: &[&str] = &["unconfined", "cri-containerd.apparmor.d", "docker-default"];

/// The types in the SELinux labels that engines give to every container and its files, for the same
/// reason (container_selinux(8)).
const USUAL_TYPES: &[&str] = &["container_t", "container_file_t"];

/// Whether a label, `USER:ROLE:TYPE:LEVEL`, is one that engines give to every container.
fn is_usual_label(label: &str) -> bool {
    let found = label.split(':').nth(2);
    found.is_some_and(|found| USUAL_TYPES.contains(&found))
}

fn drop_process_label(spec: &mut Spec) {
    if let Some(process) = spec.process_mut() {
        process.set_selinux_label(None);
    }
}

fn drop_mount_label(spec: &mut Spec) {
    drop_linux(spec, |linux| {
        linux.set_mount_label(None);
    });
}

/// The table.
pub const RULES: &[Rule] = &[
    Rule {
        field: "linux.namespaces.pid",
        action: Action::Refuse,
        advice: "the host's pid namespace is not reachable from the guest; ask for no hostPID, --pid=host or path",
        find: |spec, role| Some(host_namespace(spec, role, LinuxNamespaceType::Pid)?.to_string()),
        drop: keep,
    },
    Rule {
        field: "linux.namespaces.network",
        action: Action::Refuse,
        advice: "the host's network is not reachable from the guest; ask for no hostNetwork or --net-host",
        find: |spec, role| Some(host_namespace(spec, role, LinuxNamespaceType::Network)?.to_string()),
        drop: keep,
    },
    Rule {
        field: "linux.namespaces.ipc",
        action: Action::Refuse,
        advice: "the host's IPC namespace is not reachable from the guest; ask for no hostIPC, --ipc=host or path",
        find: |spec, role| Some(host_namespace(spec, role, LinuxNamespaceType::Ipc)?.to_string()),
        drop: keep,
    },
    Rule {
        field: "linux.namespaces.mount",
        action: Action::Refuse,
        advice: "a container in a VM has a mount namespace of its own; add one without a path",
        find: |spec, role| Some(host_namespace(spec, role, LinuxNamespaceType::Mount)?.to_string()),
        drop: keep,
    },
    Rule {
        field: "linux.namespaces.uts",
        action: Action::Refuse,
        advice: "the host's UTS namespace is not reachable from the guest; ask for no --uts=host or path",
        find: |spec, role| Some(host_namespace(spec, role, LinuxNamespaceType::Uts)?.to_string()),
        drop: keep,
    },
    Rule {
        field: "linux.namespaces.user",
        action: Action::Refuse,
        advice: "a user namespace of the host is not reachable from the guest, which makes one of uidMappings and gidMappings (hostUsers: false)",
        find: |spec, role| {
            let user = |ns: &&LinuxNamespace| ns.typ() == LinuxNamespaceType::User;
            let found = linux(spec)?.namespaces().iter().flatten().find(user)?;
            let path = found.path().as_ref().map(|path| path.display().to_string());
            // A namespace given by path is the one that containerd has made for the pod, from the
            // spec's mappings.
            match (role, IdMap::of_namespace(spec)) {
                (Role::Sandbox | Role::Container { .. }, Some(_)) => None,
                (Role::Alone, Some(_)) => path,
                (_, None) => Some("(without mappings)".to_owned()),
            }
        },
        drop: keep,
    },
    Rule {
        field: "linux.uidMappings",
        action: Action::Refuse,
        advice: "root of a container with users of its own has to be one of them: map the id 0 of users and of groups",
        find: |spec, _| (!IdMap::of_namespace(spec)?.has_root()).then(|| "without 0".to_owned()),
        drop: keep,
    },
    Rule {
        field: "linux.netDevices",
        action: Action::Refuse,
        advice: "the host's network devices can't be moved into the guest; remove them",
        find: |spec, _| linux(spec)?.net_devices().as_ref()?.keys().next().cloned(),
        drop: keep,
    },
    Rule {
        field: "hooks.createContainer",
        action: Action::Refuse,
        advice: "it is a program of the host that acts inside the container, which a VM keeps apart; use createRuntime, which acts on the host, or startContainer, whose program is the container's",
        find: |spec, _| {
            let hook = spec.hooks().as_ref()?.create_container().as_ref()?.first()?;
            Some(hook.path().display().to_string())
        },
        drop: keep,
    },
    Rule {
        field: "mounts.uidMappings",
        action: Action::Refuse,
        advice: "only a bind mount can be id-mapped, and by both uidMappings and gidMappings",
        find: |spec, _| {
            let mapped = |m: &&Mount| m.uid_mappings().is_some() || m.gid_mappings().is_some() || has_option(m, &["idmap", "ridmap"]);
            let wrong = |m: &&Mount| !is_bind(m) || IdMap::of_mount(m).is_none();
            let found = spec.mounts().as_ref()?.iter().filter(mapped).find(wrong)?;
            Some(found.destination().display().to_string())
        },
        drop: keep,
    },
    Rule {
        field: "process.apparmorProfile",
        action: Action::Refuse,
        advice: "a profile that is asked for by name is not in the guest; ask for appArmorProfile RuntimeDefault or Unconfined",
        find: |spec, _| non_empty(spec.process().as_ref()?.apparmor_profile()).filter(|p| !USUAL_PROFILES.contains(&p.as_str())),
        drop: keep,
    },
    Rule {
        field: "process.apparmorProfile",
        action: Action::DropUnsaid,
        advice: "AppArmor profiles are not loaded in the guest; the VM confines the container",
        find: |spec, _| non_empty(spec.process().as_ref()?.apparmor_profile()).filter(|p| p != "unconfined"),
        drop: |spec| {
            if let Some(process) = spec.process_mut() {
                process.set_apparmor_profile(None);
            }
        },
    },
    Rule {
        field: "process.selinuxLabel",
        action: Action::DropUnsaid,
        advice: "SELinux labels are not set in the guest; the VM confines the container",
        find: |spec, _| non_empty(spec.process().as_ref()?.selinux_label()).filter(|label| is_usual_label(label)),
        drop: drop_process_label,
    },
    Rule {
        field: "process.selinuxLabel",
        action: Action::Drop,
        advice: "SELinux labels are not set in the guest; the VM confines the container",
        find: |spec, _| non_empty(spec.process().as_ref()?.selinux_label()),
        drop: drop_process_label,
    },
    Rule {
        field: "linux.mountLabel",
        action: Action::DropUnsaid,
        advice: "SELinux labels are not set in the guest; the VM confines the container",
        find: |spec, _| non_empty(linux(spec)?.mount_label()).filter(|label| is_usual_label(label)),
        drop: drop_mount_label,
    },
    Rule {
        field: "linux.mountLabel",
        action: Action::Drop,
        advice: "SELinux labels are not set in the guest; the VM confines the container",
        find: |spec, _| non_empty(linux(spec)?.mount_label()),
        drop: drop_mount_label,
    },
    Rule {
        field: "linux.intelRdt",
        action: Action::Drop,
        advice: "cache and bandwidth classes belong to the host's processor",
        find: |spec, _| linux(spec)?.intel_rdt().as_ref().map(|_| "is set".to_owned()),
        drop: |spec| {
            drop_linux(spec, |linux| {
                linux.set_intel_rdt(None);
            })
        },
    },
    Rule {
        field: "linux.resources.cpu.cpus",
        action: Action::Drop,
        advice: "the numbers of the host's cpus and memory nodes mean nothing in the guest",
        find: |spec, _| {
            let cpu = linux(spec)?.resources().as_ref()?.cpu().as_ref()?;
            non_empty(cpu.cpus()).or_else(|| non_empty(cpu.mems()))
        },
        drop: |spec| {
            drop_linux(spec, |linux| {
                if let Some(cpu) = linux.resources_mut().as_mut().and_then(|r| r.cpu_mut().as_mut()) {
                    cpu.set_cpus(None);
                    cpu.set_mems(None);
                }
            })
        },
    },
    Rule {
        field: "linux.resources.unified",
        action: Action::Refuse,
        advice: "a key is the name of a file of the cgroup, without a slash",
        find: |spec, _| {
            let unified = linux(spec)?.resources().as_ref()?.unified().as_ref()?;
            unified.keys().find(|key| key.contains('/')).map(|key| format!("{key:?}"))
        },
        drop: keep,
    },
    Rule {
        field: "linux.resources.blockIO",
        action: Action::Drop,
        advice: "the numbers of the host's block devices mean nothing in the guest",
        find: |spec, _| linux(spec)?.resources().as_ref()?.block_io().as_ref().map(|_| "is set".to_owned()),
        drop: |spec| {
            drop_linux(spec, |linux| {
                if let Some(resources) = linux.resources_mut() {
                    resources.set_block_io(None);
                }
            })
        },
    },
    Rule {
        field: "linux.resources.network",
        action: Action::Drop,
        advice: "network classes and priorities belong to the host's traffic control",
        find: |spec, _| linux(spec)?.resources().as_ref()?.network().as_ref().map(|_| "is set".to_owned()),
        drop: |spec| {
            drop_linux(spec, |linux| {
                if let Some(resources) = linux.resources_mut() {
                    resources.set_network(None);
                }
            })
        },
    },
];

/// The rows that concern a pod as a whole. They are checked before the pod is started.
const SANDBOX_FIELDS: &[&str] = &[
    "linux.namespaces",
    "linux.uidMappings",
    "linux.netDevices",
    "hooks.createContainer",
];

/// Refuses a sandbox that the rows for pods don't allow. The rest of its spec is for the pause
/// container, which is not run.
pub fn check_sandbox(spec: &Spec) -> Result<()> {
    let whole = |rule: &&Rule| SANDBOX_FIELDS.iter().any(|f| rule.field.starts_with(f));
    for rule in RULES.iter().filter(whole) {
        if let Some(found) = (rule.find)(spec, &Role::Sandbox) {
            return Err(Error::Refused {
                field: rule.field,
                what: shorten(&found),
                advice: rule.advice,
            });
        }
    }
    Ok(())
}

/// Applies the table: refuses the spec, or drops what has to be dropped and returns the warnings.
pub fn apply(spec: &mut Spec, role: &Role) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for rule in RULES {
        let Some(found) = (rule.find)(spec, role) else {
            continue;
        };
        let what = shorten(&found);
        match rule.action {
            Action::Refuse => {
                return Err(Error::Refused {
                    field: rule.field,
                    what,
                    advice: rule.advice,
                })
            }
            Action::Drop => {
                (rule.drop)(spec);
                warnings.push(format!("{} {what} is dropped: {}", rule.field, rule.advice));
            }
            Action::DropUnsaid => (rule.drop)(spec),
        }
    }
    Ok(warnings)
}

/// Returns whether a mount shows something that exists already, rather than making a file system.
pub fn is_bind(mount: &Mount) -> bool {
    let by_type = matches!(mount.typ().as_deref(), Some("bind" | "rbind"));
    by_type || has_option(mount, &["bind", "rbind"])
}

fn has_option(mount: &Mount, names: &[&str]) -> bool {
    mount
        .options()
        .iter()
        .flatten()
        .any(|option| names.contains(&option.as_str()))
}

fn linux(spec: &Spec) -> Option<&Linux> {
    spec.linux().as_ref()
}

fn drop_linux(spec: &mut Spec, change: impl FnOnce(&mut Linux)) {
    if let Some(linux) = spec.linux_mut() {
        change(linux);
    }
}

fn non_empty(text: &Option<String>) -> Option<String> {
    text.clone().filter(|t| !t.is_empty())
}

/// How a container would share a namespace with the host.
enum Shared {
    /// Not listed, so that the container inherits the runtime's (config-linux.md, "Namespaces").
    Inherited,
    /// Joined by a path on the host.
    Joined(String),
}

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inherited => f.write_str("(not listed, so the host's)"),
            Self::Joined(path) => f.write_str(path),
        }
    }
}

fn host_namespace(spec: &Spec, role: &Role, typ: LinuxNamespaceType) -> Option<Shared> {
    let namespaces = linux(spec).and_then(|l| l.namespaces().as_deref());
    let mut listed = namespaces.unwrap_or_default().iter();
    match listed.find(|ns| ns.typ() == typ) {
        None => Some(Shared::Inherited),
        Some(ns) => {
            let path = ns.path().as_ref()?;
            let pods = match role {
                // A network namespace given by path is the pod's own, made by CNI.
                Role::Alone | Role::Sandbox => typ == LinuxNamespaceType::Network,
                // Namespaces given by path are the sandbox's (containerd, internal/cri/opts
                // `WithPodNamespaces`).
                Role::Container { .. } => typ != LinuxNamespaceType::Mount,
            };
            (!pods).then(|| Shared::Joined(path.display().to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
        let mut value = json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network", "path": "/run/netns/pod"},
            ]},
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
        apply(&mut spec(change), &Role::Alone)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn spec_of_an_ordinary_container_passes_unchanged() {
        let before = spec(|_| {});
        let mut after = before.clone();
        assert!(apply(&mut after, &Role::Alone).unwrap().is_empty());
        assert_eq!(before, after);
    }

    #[test]
    fn each_namespace_of_the_host_is_refused_by_its_name() {
        for (index, name) in ["pid", "ipc", "uts", "mount", "network"].iter().enumerate() {
            let message = refusal(|value| {
                value["linux"]["namespaces"]
                    .as_array_mut()
                    .unwrap()
                    .remove(index);
            });
            assert!(
                message.contains(&format!("linux.namespaces.{name}")),
                "{message}"
            );
        }
    }

    #[test]
    fn pid_namespace_joined_by_path_is_refused() {
        let message =
            refusal(|value| value["linux"]["namespaces"][0]["path"] = json!("/proc/1/ns/pid"));
        assert!(message.contains("linux.namespaces.pid"), "{message}");
    }

    #[test]
    fn namespaces_of_the_sandbox_are_no_hosts_to_a_container_of_its_pod() {
        let role = Role::Container {
            sandbox_id: "s1".to_owned(),
        };
        let joined = |index: usize| {
            let mut spec = spec(|value| {
                value["linux"]["namespaces"][index]["path"] = json!("/proc/7/ns/x");
            });
            apply(&mut spec, &role)
        };
        for index in [0, 1, 2, 4] {
            joined(index).unwrap();
        }
        let message = joined(3).unwrap_err().to_string();
        assert!(message.contains("linux.namespaces.mount"), "{message}");
    }

    #[test]
    fn users_of_a_pod_need_mappings_and_their_path_is_the_pods() {
        let with = |map: serde_json::Value| {
            spec(|value| {
                let namespaces = value["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.push(json!({"type": "user", "path": "/proc/7/ns/user"}));
                value["linux"]["uidMappings"] = map.clone();
                value["linux"]["gidMappings"] = map;
            })
        };
        let mut mapped = with(json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]));
        assert!(apply(&mut mapped, &Role::Sandbox).is_ok());
        let refused = |mut spec: Spec, role| apply(&mut spec, &role).unwrap_err().to_string();
        for message in [
            refused(mapped, Role::Alone),
            refused(with(json!([])), Role::Sandbox),
        ] {
            assert!(message.contains("hostUsers"), "{message}");
        }
    }

    #[test]
    fn mount_that_is_mapped_is_a_bind_mount_with_both_mappings() {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        let bind = json!({"destination": "/a", "type": "bind", "source": "/a", "uidMappings": map, "gidMappings": map});
        assert!(apply(
            &mut spec(|value| value["mounts"] = json!([bind])),
            &Role::Alone
        )
        .is_ok());
        for (key, wrong) in [("type", json!("tmpfs")), ("gidMappings", json!(null))] {
            let mut mount = bind.clone();
            mount[key] = wrong;
            let message = refusal(|value| value["mounts"] = json!([mount]));
            assert!(message.contains("mounts.uidMappings /a"), "{message}");
        }
    }

    #[test]
    fn users_without_root_are_refused() {
        let of = |first: u32| {
            let ids = json!([{"containerID": first, "hostID": 1000, "size": 100_000}]);
            spec(|value| {
                let namespaces = value["linux"]["namespaces"].as_array_mut();
                namespaces.unwrap().push(json!({"type": "user"}));
                value["linux"]["uidMappings"] = ids.clone();
                value["linux"]["gidMappings"] = ids;
            })
        };
        let error = check_sandbox(&of(1)).unwrap_err().to_string();
        assert!(error.contains("map the id 0"), "{error}");
        assert!(check_sandbox(&of(0)).is_ok());
    }

    #[test]
    fn hook_of_the_host_inside_the_container_is_refused() {
        let hooks = json!({"createContainer": [{"path": "/bin/true"}]});
        let message = refusal(|value| value["hooks"] = hooks.clone());
        assert!(
            message.contains("hooks.createContainer /bin/true"),
            "{message}"
        );
        let of_host = json!({"createRuntime": [{"path": "/bin/true"}]});
        assert!(apply(&mut spec(|value| value["hooks"] = of_host), &Role::Alone).is_ok());
    }

    #[test]
    fn labels_that_somebody_chose_are_dropped_with_a_warning() {
        let mut spec = spec(|value| {
            value["process"]["selinuxLabel"] = json!("system_u:system_r:svirt_t:s0");
            value["linux"]["mountLabel"] = json!("system_u:object_r:svirt_t:s0");
        });
        assert_eq!(apply(&mut spec, &Role::Alone).unwrap().len(), 2);
        assert!(apply(&mut spec, &Role::Alone).unwrap().is_empty());
    }

    #[test]
    fn labels_that_engines_give_to_every_container_are_dropped_without_a_word() {
        let mut spec = spec(|value| {
            value["process"]["apparmorProfile"] = json!("cri-containerd.apparmor.d");
            value["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0:c1,c2");
            value["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0:c1,c2");
        });
        assert_eq!(apply(&mut spec, &Role::Alone).unwrap(), [""; 0]);
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.apparmor_profile(), &None);
        assert_eq!(process.selinux_label(), &None);
        assert_eq!(spec.linux().as_ref().unwrap().mount_label(), &None);
    }

    #[test]
    fn apparmor_profile_by_name_is_refused_and_the_usual_ones_are_not() {
        let with =
            |profile: &str| spec(|value| value["process"]["apparmorProfile"] = json!(profile));
        for usual in USUAL_PROFILES {
            apply(&mut with(usual), &Role::Alone).unwrap();
        }
        let message = apply(&mut with("k8s-nginx"), &Role::Alone)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("process.apparmorProfile k8s-nginx"),
            "{message}"
        );
    }

    #[test]
    fn numbers_of_the_hosts_cpus_are_dropped() {
        let mut spec = spec(|value| {
            value["linux"]["resources"] =
                json!({"cpu": {"cpus": "0-3", "mems": "0", "shares": 512}});
        });
        assert_eq!(apply(&mut spec, &Role::Alone).unwrap().len(), 1);
        let linux = spec.linux().as_ref().unwrap();
        let cpu = linux.resources().as_ref().unwrap().cpu().as_ref().unwrap();
        assert_eq!((cpu.cpus(), cpu.shares()), (&None, Some(512)));
    }
}

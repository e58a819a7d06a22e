//! Fuzzes a container's config.json and the plan that is made of it.
#![no_main]

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use caisson_fuzz::{is_file_name, is_plain_path, json, memory, told};
use caisson_oci::{
    config::Vm,
    devices::GUEST,
    rules,
    scratch::Fit,
    spec::{LinuxDeviceType, LinuxNamespaceType, Mount, Spec},
    volume::{Found, Memory, Owner, Tmpfs},
    Node, PidNamespace, PidWish, Places, Plan, Policy, Role, Volume, Wishes,
};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

/// The maximum length in bytes of a text that a user is shown.
const MAX_TOLD: usize = 2048;
const LIMIT: usize = 32 << 20;

const WORDS: &[&str] = &[
    "/",
    "..",
    "../x",
    "/..",
    "/dev",
    "/dev/shm",
    "/proc",
    "/proc/1/ns/net",
    "bind",
    "rbind",
    "ro",
    "rro",
    "rshared",
    "rslave",
    "idmap",
    "size=64k",
    "size=99999999999999999999g",
    "tmpfs",
    "sysfs",
    "proc",
    "devpts",
    "cgroup",
    "overlay",
    "none",
    "pid",
    "network",
    "ipc",
    "uts",
    "mount",
    "user",
    "cgroup",
    "b",
    "c",
    "p",
    "u",
    "a",
    "rwm",
    "path",
    "type",
    "source",
    "destination",
    "options",
    "namespaces",
    "uidMappings",
    "gidMappings",
    "containerID",
    "hostID",
    "size",
    "devices",
    "resources",
    "memory",
    "limit",
    "cpu",
    "quota",
    "period",
    "hooks",
    "prestart",
    "netDevices",
    "sysctl",
    "seccomp",
    "maskedPaths",
    "readonlyPaths",
    "rootfsPropagation",
    "annotations",
    "major",
    "minor",
    "access",
    "allow",
    "apparmorProfile",
    "unconfined",
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri.sandbox-uid",
    "sandbox",
    "container",
    "caisson.dev/skills",
    "caisson.dev/devices",
    "caisson.dev/secret-fd",
    "caisson.dev/home",
    "fuse",
    "tun",
    "ephemeral",
    "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~secret/db",
    "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/work",
    "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/s1/shm",
    "db/password=PASSWORD",
    "u1",
    "s1",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    json::mutate(data, size, max_size, seed, WORDS)
});

fuzz_target!(|text: &[u8]| memory::bounded(LIMIT, || check(text)));

fn check(text: &[u8]) {
    match plan(text) {
        Ok(Some((plan, places))) => check_plan(&plan, &places),
        Ok(None) => {}
        Err(error) => assert!(told(&error).len() <= MAX_TOLD, "a long error"),
    }
}

/// Makes the plan as the shim does. A sandbox has none, since nothing runs in it.
fn plan(text: &[u8]) -> caisson_oci::Result<Option<(Plan, Places)>> {
    Role::parse(text).ok();
    let mut wishes = Wishes::parse(text, &Policy::default(), "default")?;
    wishes.pod().ok();
    if wishes.role == Role::Sandbox {
        let sandbox = wishes.sandbox()?;
        for name in sandbox.sysctls.keys() {
            assert!(!name.split(['.', '/']).any(str::is_empty), "{name:?}");
        }
        return Ok(None);
    }
    if wishes.role != Role::Alone {
        wishes.add_files(Path::new("/bundle"))?;
    }
    let skills = wishes.annotations.skills.iter().enumerate();
    let places = Places {
        rootfs: "/g/shares/rootfs".into(),
        shares: "/g/shares".into(),
        volumes: "/g/shares/volumes".into(),
        memory: "/g/memory".into(),
        disks: "/g/disks".into(),
        parts: "/g/parts".into(),
        mounted: Vec::new(),
        found: found(wishes.bind_sources()),
        skills: skills
            .map(|(n, _)| {
                (
                    format!("/opt/skills/{n}").into(),
                    format!("/g/disks/{n}").into(),
                )
            })
            .collect(),
        home: wishes
            .annotations
            .home
            .is_some()
            .then(|| ("/home/x".into(), "/g/home".into())),
        pid_namespace: match wishes.pid_namespace() {
            PidWish::Own => PidNamespace::Own,
            PidWish::Pod => PidNamespace::Pod,
            PidWish::Of(pid) => PidNamespace::Of(pid.to_string()),
        },
    };
    let node = Node {
        vm: &Vm::default(),
        cpus: 4,
        memory_mib: 16_384,
    };
    let plan = caisson_oci::plan(wishes, node, &places)?;
    Ok(Some((plan, places)))
}

/// Returns what is at the sources of the mounts, derived from their paths.
fn found(sources: BTreeSet<PathBuf>) -> HashMap<PathBuf, Found> {
    let look = |source: &Path| {
        let bytes = source.as_os_str().as_encoded_bytes();
        let kind = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) % 4;
        let tmpfs = Tmpfs {
            size: 1 << 20,
            empty: kind == 1,
        };
        Found {
            identity: (1, bytes.len() as u64),
            tmpfs: matches!(kind, 1 | 2).then_some(tmpfs),
            fit: match kind {
                0 => Fit::Free,
                _ => Fit::default(),
            },
            swapped: kind == 3,
            owner: Owner {
                mode: 0o755,
                uid: 7,
                gid: 8,
            },
            made_up: bytes.len().is_multiple_of(32).then_some("proc"),
            parts: source
                .parent()
                .zip(source.file_name())
                .map(|(whole, name)| (whole.to_owned(), name.into()))
                .into_iter()
                .collect(),
        }
    };
    let found = sources.into_iter().map(|source| {
        let found = look(&source);
        (source, found)
    });
    found.collect()
}

fn check_plan(plan: &Plan, places: &Places) {
    for Volume { name, source, .. } in &plan.volumes {
        assert!(
            is_file_name(name) && source.is_absolute(),
            "{name:?} {source:?}"
        );
    }
    for Memory { name, copy_of, .. } in &plan.memory {
        assert!(is_file_name(name), "{name:?}");
        let volumes = || plan.volumes.iter().map(|volume| &volume.name);
        assert!(
            copy_of.iter().all(|of| volumes().any(|name| name == of)),
            "a copy of nothing"
        );
    }
    for disk in &plan.disks {
        assert!(
            disk.serial.len() <= 20 && is_file_name(&disk.serial),
            "{:?}",
            disk.serial
        );
    }
    for descriptor in &plan.descriptors {
        assert!(
            is_place(&descriptor.directory, plan, places),
            "{:?}",
            descriptor.directory
        );
        assert!(
            is_file_name(&descriptor.name) && !descriptor.name.starts_with(".."),
            "{:?}",
            descriptor.name
        );
    }
    for warning in &plan.warnings {
        assert!(warning.len() <= 1024, "a long warning");
    }
    check_guest_spec(plan, places);
}

/// Returns whether a path is where the plan puts something that the guest can mount.
fn is_place(path: &Path, plan: &Plan, places: &Places) -> bool {
    let skills = places.skills.iter().map(|(_, place)| place);
    let is_in = |folder: &Path, name: &String| path == folder.join(name);
    plan.volumes
        .iter()
        .any(|volume| is_in(&places.volumes, &volume.name))
        || plan
            .memory
            .iter()
            .any(|memory| is_in(&places.memory, &memory.name))
        || plan
            .parts
            .iter()
            .any(|part| is_in(&places.parts, &part.name))
        || skills
            .chain(places.home.iter().map(|(_, place)| place))
            .any(|place| place == path)
}

fn check_guest_spec(plan: &Plan, places: &Places) {
    let spec = &plan.spec;
    let root = spec.root().as_ref().map(|root| root.path().as_path());
    assert_eq!(root, Some(places.rootfs.as_path()));
    for mount in spec.mounts().iter().flatten() {
        check_mount(mount, plan, places);
    }
    // The container's own hook stays.
    let hooks = spec.hooks().clone().map(|mut hooks| {
        hooks.set_start_container(None);
        hooks
    });
    let hooks = serde_json::to_value(hooks).unwrap_or_default();
    let none = |list: &serde_json::Value| list.as_array().is_none_or(Vec::is_empty);
    assert!(
        hooks
            .as_object()
            .is_none_or(|hooks| hooks.values().all(none)),
        "{hooks}"
    );
    let Some(linux) = spec.linux() else {
        panic!("no linux");
    };
    assert!(linux.cgroups_path().is_none());
    assert!(linux.net_devices().as_ref().is_none_or(HashMap::is_empty));
    for namespace in linux.namespaces().iter().flatten() {
        assert!(
            namespace.typ() != LinuxNamespaceType::Network && namespace.path().is_none(),
            "{namespace:?}"
        );
    }
    for place in &plan.shared {
        assert!(place.starts_with(&places.shares), "{place:?}");
    }
    for device in linux.devices().iter().flatten() {
        let guests =
            GUEST.contains(&(device.major(), device.minor())) && device.typ() != LinuxDeviceType::B;
        assert!(guests || device.typ() == LinuxDeviceType::P, "{device:?}");
    }
    // The guest reads the spec as JSON.
    let text = serde_json::to_vec(spec).expect("a spec in JSON");
    serde_json::from_slice::<Spec>(&text).expect("the spec again");
}

fn check_mount(mount: &Mount, plan: &Plan, places: &Places) {
    assert!(mount.destination().is_absolute(), "{mount:?}");
    if rules::is_bind(mount) {
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        // A user namespace has these from the guest.
        let guests = ["/sys", "/dev/mqueue"].map(Path::new).contains(&source);
        assert!(
            (guests || is_place(source, plan, places)) && is_plain_path(source),
            "{mount:?}"
        );
        assert!(
            mount.uid_mappings().is_none() && mount.gid_mappings().is_none(),
            "{mount:?}"
        );
    } else {
        let made = [
            "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs", "devtmpfs",
        ];
        assert!(
            mount
                .typ()
                .as_deref()
                .is_some_and(|typ| made.contains(&typ)),
            "{mount:?}"
        );
    }
    let shared = |option: &String| matches!(option.as_str(), "shared" | "rshared");
    assert!(!mount.options().iter().flatten().any(shared), "{mount:?}");
}

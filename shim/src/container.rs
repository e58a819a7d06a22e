//! A container of a pod: its processes, and what containerd asked for when it created the
//! container.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use caisson_node::{
    homes::{self, PodHome},
    host::error::OnFile,
    record,
    skills::{self, Asker, SkillError, SkillStore},
};
use caisson_oci::{
    annotations::{Annotations, CONTAINER_NAME, PREFIX},
    exec::Grants,
    guest_devices, pod,
    spec::{LinuxNamespaceType, Spec},
    GuestPaths, Limits, NodeConfig,
};
use caisson_protocol::{
    agent as proto,
    path::{MEMORY, POD_PID_NAMESPACE, POD_USER_NAMESPACE, SHARES},
};
use caisson_vmm::Device;
use proto::attach_request::Device as GuestDevice;

use crate::{
    error::{Error, Result},
    plug::Plug,
    process::Process,
    share::Share,
    skill_disk, sources,
    stand_in::StandIn,
    stats,
};

/// The tag of the home's virtiofs device.
const HOME_TAG: &str = "home";
/// The largest `config.json` that is read, in bytes.
const MAX_SPEC: u64 = 16 << 20;

/// A container.
pub struct Container {
    pub bundle: PathBuf,
    pub init: Arc<Process>,
    /// The pid on the host that containerd is told for its processes: the VMM's, or in a pod the
    /// pid of its [`StandIn`].
    pub pid: u32,
    stand_in: Option<StandIn>,
    /// The init's pid in the guest. `None` for the sandbox, which is the VM itself.
    pub guest_pid: Option<u32>,
    /// Whether containerd has a task for the container and therefore gets events about it.
    pub is_task: bool,
    /// The container's limits, which the VM must be large enough for.
    limits: Mutex<Limits>,
    /// The spec's `process.oomScoreAdj`, or 0 if it has none.
    pub oom_score_adj: i32,
    /// What every additional process of the container gets.
    pub grants: Grants,
    /// The container's name in the pod, if CRI gives one.
    pub name: Option<String>,
    /// The skills that the container was created with: mount point and path in the guest.
    pub skills: Vec<(PathBuf, PathBuf)>,
    /// The path in the guest of the pid namespace that the container joined. `None` if it has its
    /// own.
    pub pid_namespace: Option<PathBuf>,
    /// The last known resource usage.
    pub stats: stats::Last,
    execs: Mutex<HashMap<String, Arc<Process>>>,
}

impl Container {
    /// Creates a container whose init has been created.
    pub fn new(
        bundle: PathBuf,
        init: Process,
        pid: u32,
        guest_pid: u32,
        limits: Limits,
        grants: Grants,
    ) -> Self {
        Self {
            bundle,
            init: Arc::new(init),
            pid,
            stand_in: None,
            guest_pid: Some(guest_pid),
            is_task: true,
            limits: Mutex::new(limits),
            oom_score_adj: 0,
            grants,
            name: None,
            skills: Vec::new(),
            pid_namespace: None,
            stats: stats::Last::default(),
            execs: Mutex::default(),
        }
    }

    /// Gives the container a pid of its own for as long as it exists.
    pub fn stand_in(&mut self, stand_in: StandIn) {
        self.pid = stand_in.pid;
        self.stand_in = Some(stand_in);
    }

    /// Creates the sandbox of a pod: containerd's pause container, or the sandbox of containerd's
    /// sandbox service, which is no task.
    pub fn sandbox(bundle: PathBuf, init: Process, pid: u32, is_task: bool) -> Self {
        Self {
            guest_pid: None,
            is_task,
            ..Self::new(bundle, init, pid, 0, Limits::default(), Grants::default())
        }
    }

    /// Whether this is the sandbox, which is the VM itself and has no process in the guest.
    pub fn is_sandbox(&self) -> bool {
        self.guest_pid.is_none()
    }

    /// Returns what the pod's record has of the container.
    pub fn recorded(&self) -> record::Container {
        let limits = self.limits();
        let execs = self.lock();
        let execs = execs.iter().map(|(id, exec)| (id.clone(), exec.state()));
        record::Container {
            name: self.name.clone(),
            bundle: self.bundle.clone(),
            pid: self.pid,
            guest_pid: self.guest_pid,
            state: self.init.state(),
            cpu_milli: limits.cpu_milli,
            memory: limits.memory,
            skills: self.skills.clone(),
            execs: execs.collect(),
        }
    }

    /// Returns the container's current limits.
    pub fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records new limits.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Returns the init, if the exec id is empty, or an exec.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let found = self.lock().get(exec).cloned();
        found.ok_or_else(|| Error::NotFound {
            what: "exec",
            id: exec.to_owned(),
        })
    }

    /// Adds an exec that has not been started yet.
    pub fn add_exec(&self, process: Process) -> Result<()> {
        let exec = process.id.exec.clone();
        let mut execs = self.lock();
        if execs.contains_key(&exec) {
            return Err(Error::Exists {
                what: "exec",
                id: exec,
            });
        }
        execs.insert(exec, Arc::new(process));
        Ok(())
    }

    /// Removes an exec.
    pub fn remove_exec(&self, exec: &str) {
        self.lock().remove(exec);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pod that a container's home belongs to.
#[derive(Clone, Copy)]
pub struct PodsHome<'a> {
    /// The pod's id.
    pub pod: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    pub home: &'a PodHome,
}

/// A bundle's spec and what its annotations ask to be plugged in.
pub struct Wishes {
    pub spec: Spec,
    annotations: Annotations,
    /// The pod's namespace, or containerd's for a container outside a pod. Empty if the annotations
    /// ask for nothing.
    namespace: String,
}

/// Reads a bundle's `config.json`.
pub fn read_spec(bundle: &Path) -> Result<Spec> {
    use std::io::Read;
    let path = bundle.join("config.json");
    let mut json = Vec::new();
    let file = std::fs::File::open(&path).map_err(Error::file("open", &path))?;
    file.take(MAX_SPEC)
        .read_to_end(&mut json)
        .map_err(Error::file("read", &path))?;
    Ok(caisson_oci::parse_spec(&json)?)
}

impl Wishes {
    /// Checks the annotations of a spec, including against the node's policy, and adds the devices
    /// that they ask for to the spec.
    pub fn of(mut spec: Spec, config: &NodeConfig, containerd_namespace: &str) -> Result<Self> {
        let given = spec.annotations().clone().unwrap_or_default();
        let annotations = Annotations::parse(&given)?;
        let mut namespace = String::new();
        if given.keys().any(|key| key.starts_with(PREFIX)) {
            let of_pod = pod::namespace(&spec)?;
            namespace = of_pod.unwrap_or_else(|| containerd_namespace.to_owned());
            config.policy.check_annotations(&given, &namespace)?;
        }
        guest_devices::grant(&mut spec, &annotations.devices)?;
        Ok(Self {
            spec,
            annotations,
            namespace,
        })
    }

    /// Returns the container's name in its pod, if CRI gives one.
    pub fn name(&self) -> Option<String> {
        let annotations = self.spec.annotations().as_ref()?;
        annotations.get(CONTAINER_NAME).cloned()
    }

    /// Returns what the annotations give to every process of the container.
    pub fn grants(&self) -> Grants {
        Grants {
            devices: self.annotations.devices.clone(),
            // The plan decides their places.
            descriptors: Vec::new(),
        }
    }

    /// Returns the folder on the host that `root.path` names (config.md, "Root": relative to the
    /// bundle).
    pub fn root(&self, bundle: &Path) -> PathBuf {
        let path = self.spec.root().as_ref().map(|root| root.path().clone());
        bundle.join(path.unwrap_or_default())
    }

    /// Returns the network namespace that CNI made for the pod, if the spec names one.
    pub fn network(&self) -> Option<PathBuf> {
        pod::joined(&self.spec, LinuxNamespaceType::Network).map(Path::to_owned)
    }

    /// Looks up what the annotations ask for. Returns the paths in the guest and the devices that
    /// must be plugged in for them.
    pub async fn resolve(
        &self,
        config: &NodeConfig,
        id: &str,
        rootfs: &Path,
        home: PodsHome<'_>,
    ) -> Result<(GuestPaths, Vec<Plug>)> {
        let mut plugs = Vec::new();
        let mut paths = GuestPaths {
            rootfs: Share::guest_rootfs(id),
            volumes: Share::guest_volumes(),
            memory: MEMORY.into(),
            found: sources::look(&self.spec).await?,
            skills: Vec::new(),
            home: None,
            secret_fds: self.annotations.secret_fds.clone(),
            pid_namespace: POD_PID_NAMESPACE.into(),
            user_namespace: POD_USER_NAMESPACE.into(),
        };
        let store = SkillStore::new(&config.store_dir);
        let asker = Asker::Namespace(&self.namespace);
        let obtained = skills::obtain(&store, config, &self.annotations.skills, asker);
        for (name, skill) in obtained.await? {
            let target = skill.target(name.as_deref());
            if paths.skills.iter().any(|(taken, _)| *taken == target) {
                return Err(SkillError::SamePlace(target).into());
            }
            paths.skills.push((target, skills::place(&skill)));
            plugs.push(skill_disk::plug(&store, &skill)?);
        }
        if let Some(wish) = &self.annotations.home {
            let process = self.spec.process().as_ref();
            let process = process.ok_or(caisson_oci::Error::Missing("process"))?;
            let target = match &wish.path {
                Some(path) => path.clone(),
                None => homes::of_user(process, rootfs).await?,
            };
            let (namespace, name) = pod::name(&self.spec)?
                .unwrap_or_else(|| (home.namespace.to_owned(), id.to_owned()));
            let asker = homes::Asker {
                id: home.pod.to_owned(),
                namespace,
                name,
                uid: process.user().uid(),
                gid: process.user().gid(),
            };
            let (path, user_namespace) = home.home.obtain(config, asker, wish.clone()).await?;
            paths.home = Some((target, Path::new(SHARES).join(HOME_TAG)));
            plugs.push(Plug {
                vm: Device::SharedDir {
                    tag: HOME_TAG.to_owned(),
                    path,
                    read_only: false,
                    user_namespace: Some(user_namespace),
                },
                guest: GuestDevice::Share(proto::Share {
                    tag: HOME_TAG.to_owned(),
                    max_inodes: caisson_vmm::max_inodes(),
                    ..Default::default()
                }),
                hold: None,
            });
        }
        Ok((paths, plugs))
    }
}

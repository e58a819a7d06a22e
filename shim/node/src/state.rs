//! Manages the state folder of a pod, `<state_dir>/<id>/`. It holds or records everything that
//! belongs to the pod on the host's file system, so that what a killed shim left behind can be
//! found again.
//!
//! ```text
//! shim.pid          the shim: "pid start-time"
//! pids              the VM's processes: "pid start-time role" a line
//! vm/               the VMM's sockets and logs
//! cgroup            the path of the pod's cgroup, if it has one
//! name              "namespace/name" of a pod of Kubernetes
//! record.json       what the pod is, see `record`
//! control           a socket, see `control`
//! shared/, view/    what the guest sees of the host, see `share`
//! home/             the pod's home is mounted there, see `homes`
//! ../.pool          a lock, see `pool`
//! ../.counters.json what the node's shims have counted, see `counters`; ../.counters is its lock
//! ../.users/<uid>   a link whose target is the id of the pod whose VM runs as that user
//! ```
//!
//! The folder belongs to root alone (mode 0700), and so does everything in it except `vm`. Others
//! get what they need by descriptor.
//!
//! [`remove`] undoes all of it. It is called by the shim at a pod's end, by containerd's `delete`
//! call after a crash, by the next start of the same id and by `caisson gc`.

use std::{
    fs, io,
    os::unix::fs::{symlink, DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use caisson_oci::NodeConfig;
use caisson_vmm::{Credentials, Placement};
use nix::unistd::{chown, Gid, Uid};

use crate::{
    cgroup::{self, CgroupError},
    host::{
        chain::chain,
        error::{FileError, OnFile},
        file,
        folder::{make_private, Folder},
        processes::{is_alive, kill_and_wait, process_line, recorded},
    },
    oom_score::{self, Class},
    record::{self, Record, RecordError, Recorder},
};

/// What can go wrong with a pod's state folder.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The pod's id can't name a folder.
    #[error(transparent)]
    Refused(#[from] caisson_oci::Error),
    /// A live shim has a pod with that id.
    #[error("pod {0:?} already exists")]
    Exists(String),
    /// All users in the range of `hypervisor.uid_count` ids from `hypervisor.uid_base` are in use.
    #[error("no free user for the pod's VM: all {0} of hypervisor.uid_count are in use; raise it or run `caisson gc`")]
    NoFreeUser(u32),
    /// An operation on the pod's cgroup failed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The pod's record can't be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// An operation on a file or folder failed.
    #[error(transparent)]
    File(#[from] FileError),
}

type Result<T> = std::result::Result<T, StateError>;

const USERS: &str = ".users";
/// The name of the file, in the folder of all state, by which the node's starts take turns.
pub const TURNS: &str = ".turns";
/// The file with the path of the pod's cgroup.
const CGROUP: &str = "cgroup";
/// The file with the path of the cgroup that the VM was in before.
const BIRTHPLACE: &str = "birthplace";

/// A pod's state folder. Dropping it removes everything, see [`remove`].
#[derive(Debug)]
pub struct PodDir {
    state_dir: PathBuf,
    id: String,
    path: PathBuf,
    /// The user that the pod's VM runs as. Nothing else on this host runs as this user.
    pub credentials: Credentials,
    /// The placement of the VM's processes. Has no cgroup before [`Self::use_cgroup`].
    pub placement: Placement,
    /// The pod's quality of service.
    pub class: Class,
    cgroup: Option<PathBuf>,
    /// The pod's record. There is none before [`Self::begin_record`].
    pub recorder: Option<Arc<Recorder>>,
}

impl PodDir {
    /// Creates the folder for a new pod of this process, and takes a user for it. First removes
    /// what a dead shim left there.
    pub fn create(config: &NodeConfig, id: &str) -> Result<Self> {
        caisson_oci::id::check(id)?;
        let path = config.state_dir.join(id);
        make_private(&config.state_dir.join(USERS))
            .map_err(StateError::file("create state folder", &config.state_dir))?;
        make_way(&config.state_dir, id)?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(StateError::file("create state folder", &path))?;
        let mut dir = Self {
            state_dir: config.state_dir.clone(),
            id: id.to_owned(),
            path,
            credentials: Credentials { uid: 0, gid: 0 },
            placement: Placement::default(),
            class: Class::Other,
            cgroup: None,
            recorder: None,
        };
        dir.write("shim.pid", &process_line(std::process::id(), ""))?;
        dir.credentials = take_user(config, id)?;
        let vm = dir.vm();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&vm)
            .map_err(StateError::file("create", &vm))?;
        let owner = Some(Uid::from_raw(dir.credentials.uid));
        let group = Some(Gid::from_raw(dir.credentials.gid));
        chown(&vm, owner, group)
            .map_err(io::Error::from)
            .map_err(StateError::file("set the owner of", &vm))?;
        Ok(dir)
    }

    /// Returns the folder for the VMM, which belongs to the VM's user.
    pub fn vm(&self) -> PathBuf {
        self.path.join("vm")
    }

    /// Returns the folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder and its user to the pod with this id. First removes what a dead shim of
    /// that id left.
    pub fn rename(&mut self, id: &str) -> Result<()> {
        caisson_oci::id::check(id)?;
        let path = self.state_dir.join(id);
        make_way(&self.state_dir, id)?;
        // `rename` would replace an empty folder; there is none.
        fs::rename(&self.path, &path).map_err(StateError::file("make state folder", &path))?;
        let users = self.state_dir.join(USERS);
        let (link, new) = (
            users.join(self.credentials.uid.to_string()),
            users.join(format!(".{id}")),
        );
        (self.id, self.path) = (id.to_owned(), path);
        symlink(id, &new)
            .and_then(|()| fs::rename(&new, &link))
            .map_err(StateError::file("take a user", link))
    }

    /// Begins the pod's record.
    pub fn begin_record(&mut self, namespace: &str) -> Result<Arc<Recorder>> {
        let record = Record::new(&self.id, namespace);
        let recorder = Arc::new(Recorder::create(&self.path, record)?);
        self.recorder = Some(recorder.clone());
        Ok(recorder)
    }

    /// Records the name by which people know the pod.
    pub fn name(&self, name: &str) -> Result<()> {
        self.write("name", name)
    }

    /// Creates a cgroup for the VM's processes.
    pub fn use_cgroup(&mut self, path: &Path) -> Result<()> {
        self.write(CGROUP, &path.to_string_lossy())?;
        cgroup::create(path)?;
        self.class = cgroup::class(path)?;
        self.placement.cgroups = cgroup::folders(path)?;
        self.placement.oom_score_adj = oom_score::of_vm(self.class, &[]);
        self.cgroup = Some(path.to_owned());
        Ok(())
    }

    /// Creates a cgroup for the VM's processes until the VM is a pod's, with a limit of memory in
    /// bytes. What the VM uses before stays charged to this cgroup, which goes with the folder.
    pub fn use_birthplace(&mut self, path: &Path, memory: u64) -> Result<()> {
        self.write(BIRTHPLACE, &path.to_string_lossy())?;
        cgroup::create(path)?;
        cgroup::limit_memory(path, memory)?;
        self.placement.cgroups = cgroup::folders(path)?;
        // If memory runs out, the machines that nobody uses yet go first.
        self.placement.oom_score_adj = oom_score::of_vm(Class::BestEffort, &[]);
        Ok(())
    }

    /// Whether memory has run out in the VM's cgroup.
    pub fn out_of_memory(&self) -> bool {
        self.cgroup.as_deref().is_some_and(cgroup::out_of_memory)
    }

    /// Returns the memory limit of the VM's cgroup in bytes, if it has one.
    pub fn memory_limit(&self) -> Option<u64> {
        cgroup::memory_limit(self.cgroup.as_deref()?)
    }

    /// Returns the limit of processes of the VM's cgroup, if it has one.
    pub fn process_limit(&self) -> Option<u64> {
        cgroup::process_limit(self.cgroup.as_deref()?)
    }

    /// Records the processes of the VM, for a cleanup after this process has died.
    pub fn record(&self, pids: &[(String, u32)]) -> Result<()> {
        let lines: Vec<_> = pids
            .iter()
            .map(|(role, pid)| process_line(*pid, role))
            .collect();
        self.write("pids", &lines.join("\n"))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(file::replace(&self.path.join(name), text.as_bytes())?)
    }
}

impl Drop for PodDir {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.state_dir, &self.id) {
            log::error!(pod = self.id; "leaving state behind: {}", chain(&error));
        }
    }
}

/// A pod that has a state folder, for `caisson list` and `caisson gc`.
#[derive(Debug)]
pub struct Found {
    pub id: String,
    /// `namespace/name` of a pod of Kubernetes.
    pub name: Option<String>,
    /// The shim's pid, while it lives.
    pub shim: Option<u32>,
    /// The VM's processes that still live: role and pid.
    pub processes: Vec<(String, u32)>,
    /// The pod's record, if it has one.
    pub record: std::result::Result<Option<Record>, RecordError>,
}

/// Returns all pods that have a state folder, sorted by id.
pub fn list(state_dir: &Path) -> Result<Vec<Found>> {
    let entries = match fs::read_dir(state_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StateError::file("read state folder", state_dir)(error)),
    };
    let mut pods = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StateError::file("read state folder", state_dir))?;
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        if caisson_oci::id::check(&id).is_err() {
            continue;
        }
        let path = entry.path();
        pods.push(Found {
            id,
            name: fs::read_to_string(path.join("name")).ok(),
            shim: shim_pid(&path),
            processes: recorded(&path.join("pids")),
            record: record::read(&path),
        });
    }
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(pods)
}

/// Whether a pod's shim is alive.
pub fn lives(state_dir: &Path, id: &str) -> bool {
    caisson_oci::id::check(id).is_ok() && shim_pid(&state_dir.join(id)).is_some_and(is_alive)
}

/// Returns the user that a pod's VM runs as.
pub fn credentials(state_dir: &Path, id: &str) -> io::Result<Credentials> {
    let metadata = fs::metadata(state_dir.join(id).join("vm"))?;
    Ok(Credentials {
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// Returns the path of a pod's cgroup, if it has one.
pub fn cgroup_of(state_dir: &Path, id: &str) -> io::Result<Option<PathBuf>> {
    match fs::read_to_string(state_dir.join(id).join(CGROUP)) {
        Ok(path) => Ok(Some(path.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Kills a pod's processes, unmounts what is mounted in its folder, frees its user and removes the
/// folder. Idempotent.
///
/// A live shim is killed too, unless it is the caller: `delete` is called when containerd has given
/// it up.
pub fn remove(state_dir: &Path, id: &str) -> Result<()> {
    caisson_oci::id::check(id)?;
    let path = state_dir.join(id);
    if !path.exists() {
        return Ok(());
    }
    let mut pids: Vec<u32> = recorded(&path.join("pids"))
        .into_iter()
        .map(|(_, pid)| pid)
        .collect();
    pids.extend(shim_pid(&path).filter(|pid| *pid != std::process::id()));
    kill_and_wait(&pids);
    let failed = || StateError::file("remove state folder", &path);
    let state = Folder::open(state_dir).map_err(failed())?;
    let pod = state.folder(id).map_err(failed())?;
    for name in pod.names().map_err(failed())? {
        pod.unmount(name).map_err(failed())?;
    }
    for name in [CGROUP, BIRTHPLACE] {
        if let Ok(cgroup) = fs::read_to_string(path.join(name)) {
            cgroup::remove(Path::new(&cgroup))?;
        }
    }
    let owner = credentials(state_dir, id).ok();
    state.remove(id).map_err(failed())?;
    free_users(state_dir, id);
    // A folder that took the name of a pod may have left the link of its user behind.
    let link = owner.map(|owner| state_dir.join(USERS).join(owner.uid.to_string()));
    if let Some((link, target)) = link.and_then(|link| Some((fs::read_link(&link).ok()?, link))) {
        if !state_dir.join(&link).exists() {
            fs::remove_file(&target).map_err(StateError::file("free user", target))?;
        }
    }
    Ok(())
}

/// Removes what a dead shim left of a pod.
fn make_way(state_dir: &Path, id: &str) -> Result<()> {
    let path = state_dir.join(id);
    match path.exists() {
        true if shim_pid(&path).is_some() => Err(StateError::Exists(id.to_owned())),
        true => remove(state_dir, id),
        false => Ok(()),
    }
}

fn take_user(config: &NodeConfig, id: &str) -> Result<Credentials> {
    let users = config.state_dir.join(USERS);
    let (base, count) = (config.hypervisor.uid_base, config.hypervisor.uid_count);
    let start = id.bytes().fold(0u32, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(byte.into())
    });
    for offset in 0..count {
        let uid = base + start.wrapping_add(offset) % count;
        let link = users.join(uid.to_string());
        match symlink(id, &link) {
            Ok(()) => return Ok(Credentials { uid, gid: uid }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StateError::file("take a user", link)(error)),
        }
    }
    Err(StateError::NoFreeUser(count))
}

fn free_users(state_dir: &Path, id: &str) {
    let Ok(entries) = fs::read_dir(state_dir.join(USERS)) else {
        return;
    };
    for link in entries.flatten().map(|entry| entry.path()) {
        if fs::read_link(&link).is_ok_and(|target| target == Path::new(id)) {
            if let Err(error) = fs::remove_file(&link) {
                log::warn!(pod = id; "free user {}: {error}", link.display());
            }
        }
    }
}

/// Returns the pid of the shim of the pod with this state folder, if it lives.
pub fn shim_pid(pod: &Path) -> Option<u32> {
    let live = recorded(&pod.join("shim.pid"));
    live.first().map(|(_, pid)| *pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> NodeConfig {
        NodeConfig {
            state_dir: dir.to_owned(),
            ..NodeConfig::default()
        }
    }

    #[test]
    fn remove_of_an_id_that_could_leave_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(remove(dir.path(), "../x").is_err());
    }

    #[test]
    fn pods_get_users_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(USERS)).unwrap();
        let mut config = config(dir.path());
        config.hypervisor.uid_count = 2;
        let first = take_user(&config, "a").unwrap();
        let second = take_user(&config, "b").unwrap();
        assert_ne!(first, second);
        assert!(matches!(
            take_user(&config, "c"),
            Err(StateError::NoFreeUser(2))
        ));
        free_users(dir.path(), "a");
        assert_eq!(take_user(&config, "c").unwrap(), first);
    }
}

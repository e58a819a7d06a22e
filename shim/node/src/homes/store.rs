//! The store of a node's homes: locks, lists, mounts and removes them.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use caisson_oci::{annotations::is_plain_name, NodeConfig};
use serde::{Deserialize, Serialize};

use super::{budget::Limits, error::HomeError, image, mount_point};
use crate::{
    host::{chain::chain, error::OnFile, file},
    state,
};

/// How long a home may take to become free once its pod is gone: its writes may have to reach the
/// disk.
const FREE_LIMIT: Duration = Duration::from_secs(10);

/// The holder of a home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The name to show: `NAMESPACE/NAME` for a pod.
    pub pod: String,
    /// The name of the pod's state folder; None if the holder is not a pod.
    pub id: Option<String>,
}

impl Holder {
    /// A holder that is a program, not a pod.
    pub fn program(name: &str) -> Self {
        Self {
            pod: format!("`{name}`"),
            id: None,
        }
    }
}

/// A home of the store.
#[derive(Debug, PartialEq, Eq)]
pub struct StoredHome {
    pub namespace: String,
    pub name: String,
    /// Its capacity in bytes.
    pub size: u64,
    /// The space that it takes on the host, in bytes.
    pub used: u64,
    /// Its present holder.
    pub user: Option<String>,
}

/// The homes of a store together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub count: u64,
    /// The space that they take on the host, in bytes.
    pub used: u64,
}

/// The store of a node's homes.
#[derive(Debug, Clone)]
pub struct HomeStore {
    pub(super) dir: PathBuf,
    pub(super) state_dir: PathBuf,
    pub(super) default_size: u64,
    pub(super) limits: Limits,
}

impl HomeStore {
    /// The store of a node; its folder need not exist yet.
    pub fn new(config: &NodeConfig) -> Self {
        Self {
            dir: config.store_dir.join("homes"),
            state_dir: config.state_dir.clone(),
            default_size: config.homes.size_mib << 20,
            limits: Limits::new(config),
        }
    }

    /// Lists all homes of the node, by name.
    pub fn list(&self) -> Result<Vec<StoredHome>, HomeError> {
        let mut homes = Vec::new();
        for (namespace, name, image) in self.images()? {
            let folder = self.folder(&namespace, &name);
            let metadata = image.metadata().map_err(HomeError::file("read", &folder))?;
            let free = match image.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(error)) => {
                    return Err(HomeError::file("lock", &folder)(error))
                }
            };
            let by = || {
                self.holder(&folder)
                    .map_or("another".to_owned(), |by| by.pod)
            };
            homes.push(StoredHome {
                namespace,
                name,
                size: metadata.len(),
                used: metadata.blocks() * 512,
                user: (!free).then(by),
            });
        }
        homes.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(homes)
    }

    /// Adds all homes of the node up. Takes no locks, so it never keeps a pod from its home.
    pub fn stored(&self) -> Result<Stored, HomeError> {
        let mut stored = Stored::default();
        for (_, _, image) in self.images()? {
            let metadata = image
                .metadata()
                .map_err(HomeError::file("read", &self.dir))?;
            stored.count += 1;
            stored.used += metadata.blocks() * 512;
        }
        Ok(stored)
    }

    /// The namespace, the name and the image of each home.
    pub(super) fn images(&self) -> Result<Vec<(String, String, File)>, HomeError> {
        let mut images = Vec::new();
        for namespace in names(&self.dir)? {
            for name in names(&self.dir.join(&namespace))? {
                let path = self.folder(&namespace, &name).join("image");
                // A folder without an image: the home is being made or removed.
                if let Ok(image) = File::open(path) {
                    images.push((namespace.clone(), name, image));
                }
            }
        }
        Ok(images)
    }

    /// Removes a home that nobody holds, with all its files.
    pub fn remove(&self, namespace: &str, name: &str) -> Result<(), HomeError> {
        let folder = self.folder(namespace, name);
        let locked = self.lock(namespace, name, &Holder::program("caisson home remove"))?;
        let path = folder.join("image");
        fs::remove_file(&path).map_err(HomeError::file("remove", &path))?;
        drop(locked);
        // A pod may already be making a new home there; then the folder stays.
        let rest = fs::remove_file(folder.join("pod")).and_then(|()| fs::remove_dir(&folder));
        match rest {
            Err(error) if !retry(&error) && !not_empty(&error) => {
                Err(HomeError::file("remove", &folder)(error))
            }
            _ => Ok(()),
        }
    }

    /// Mounts a home that nobody holds, read-only, at the directory `target`. Returns the directory
    /// of its files.
    ///
    /// Nobody else can have the home until the caller has unmounted it.
    pub fn mount(
        &self,
        namespace: &str,
        name: &str,
        target: &Path,
        holder: &Holder,
    ) -> Result<PathBuf, HomeError> {
        let image = self.lock(namespace, name, holder)?;
        image::mount_at(&image, target, true)?;
        let files = mount_point::files(target);
        mount_point::check_files(&files)?;
        Ok(files)
    }

    /// Opens a home and locks it. If its holder is a dead pod, cleans up after that pod.
    pub(super) fn lock(
        &self,
        namespace: &str,
        name: &str,
        holder: &Holder,
    ) -> Result<File, HomeError> {
        let folder = self.folder(namespace, name);
        let path = folder.join("image");
        let missing = || HomeError::Missing(format!("{namespace}/{name}"));
        let deadline = Instant::now() + FREE_LIMIT;
        let image = loop {
            let image = match File::options().read(true).write(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
                opened => opened.map_err(HomeError::file("open", &path))?,
            };
            match image.try_lock() {
                Ok(()) => break image,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(HomeError::file("lock", &path)(error))
                }
            }
            let by = self.holder(&folder);
            // What a dead pod with our own id left has been removed already.
            let ends = by.as_ref().is_none_or(|by| {
                by.id.is_some() && by.id == holder.id || self.is_removed_if_dead(by)
            });
            if !ends || Instant::now() > deadline {
                return Err(HomeError::InUse {
                    home: format!("{namespace}/{name}"),
                    by: by.map_or("another".to_owned(), |by| by.pod),
                });
            }
            thread::sleep(Duration::from_millis(20));
        };
        // It was removed while it was being opened.
        if image
            .metadata()
            .map_err(HomeError::file("read", &path))?
            .nlink()
            == 0
        {
            return Err(missing());
        }
        self.set_holder(&folder, holder)?;
        Ok(image)
    }

    /// Removes what a dead pod left, which frees its home. Returns false if the pod lives or the
    /// holder is not a pod.
    fn is_removed_if_dead(&self, holder: &Holder) -> bool {
        let Some(id) = &holder.id else {
            return false;
        };
        if state::lives(&self.state_dir, id) {
            return false;
        }
        // containerd's `delete` may be removing it at the same time.
        if let Err(error) = state::remove(&self.state_dir, id) {
            log::debug!(pod = id; "clean up after the dead user of a home: {}", chain(&error));
        }
        true
    }

    fn holder(&self, folder: &Path) -> Option<Holder> {
        let text = fs::read(folder.join("pod")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn set_holder(&self, folder: &Path, holder: &Holder) -> Result<(), HomeError> {
        let path = folder.join("pod");
        let text = serde_json::to_vec(holder)
            .map_err(|error| HomeError::file("write", &path)(error.into()))?;
        Ok(file::replace(&path, &text)?)
    }

    pub(super) fn folder(&self, namespace: &str, name: &str) -> PathBuf {
        self.dir.join(namespace).join(name)
    }
}

/// Whether a home could not get its name because somebody else is making or removing one of that
/// name.
pub(super) fn retry(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound
    )
}

fn not_empty(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::DirectoryNotEmpty
}

/// The subfolders of a folder whose names can be those of a namespace or a home.
fn names(folder: &Path) -> Result<Vec<String>, HomeError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(HomeError::file("read", folder))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(HomeError::file("read", folder))?;
        let name = entry.file_name().into_string().ok();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        names.extend(name.filter(|name| is_folder && is_plain_name(name)));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::homes::image::Tools;

    const SIZE: u64 = 16 << 20;

    fn node() -> (tempfile::TempDir, HomeStore) {
        let dir = tempfile::tempdir().unwrap();
        let config = NodeConfig {
            store_dir: dir.path().join("store"),
            state_dir: dir.path().join("state"),
            ..NodeConfig::default()
        };
        (dir, HomeStore::new(&config))
    }

    fn tools(dir: &tempfile::TempDir) -> Tools {
        Tools {
            credentials: caisson_vmm::Credentials {
                uid: 1_878_982_656,
                gid: 1_878_982_656,
            },
            cgroup: Vec::new(),
            limit: Duration::from_secs(60),
            mount_point: dir.path().to_owned(),
        }
    }

    fn pod(id: &str) -> Holder {
        Holder {
            pod: format!("default/{id}"),
            id: Some(id.to_owned()),
        }
    }

    /// Writes what the shim of a living pod has in its state folder. The shim is this process here.
    fn live(store: &HomeStore, id: &str) {
        let folder = store.state_dir.join(id);
        fs::create_dir_all(&folder).unwrap();
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let started = stat.rsplit_once(')').unwrap().1.split(' ').nth(20).unwrap();
        let line = format!("{} {started} ", std::process::id());
        fs::write(folder.join("shim.pid"), line).unwrap();
    }

    /// Makes the pod dead. From here on its home is waited for: a child that another test forks may
    /// have its lock for a moment.
    fn end(store: &HomeStore, id: &str) {
        fs::remove_dir_all(store.state_dir.join(id)).unwrap();
    }

    #[test]
    fn home_of_a_live_pod_is_refused_naming_it() {
        let (dir, store) = node();
        let tools = tools(&dir);
        live(&store, "one");
        let one = store.persistent("default", "anna", Some(SIZE), &pod("one"), &tools);
        let refused = store.persistent("default", "anna", None, &pod("two"), &tools);
        let error = refused.unwrap_err().to_string();
        assert_eq!(error, "home default/anna is in use by default/one");
        let listed = store.list().unwrap();
        assert_eq!(listed[0].user.as_deref(), Some("default/one"));
        drop(one.unwrap());
        end(&store, "one");
        store
            .persistent("default", "anna", None, &pod("two"), &tools)
            .unwrap();
    }

    #[test]
    fn home_that_a_dead_pod_still_has_is_waited_for() {
        let (dir, store) = node();
        let tools = tools(&dir);
        let one = store.persistent("default", "anna", Some(SIZE), &pod("dead"), &tools);
        let freed = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(one);
        });
        store
            .persistent("default", "anna", None, &pod("two"), &tools)
            .unwrap();
        freed.join().unwrap();
    }

    #[test]
    fn home_that_was_removed_is_made_anew_and_one_in_use_is_not_removed() {
        let (dir, store) = node();
        let tools = tools(&dir);
        live(&store, "one");
        let image = store.persistent("default", "anna", Some(SIZE), &pod("one"), &tools);
        let refused = store.remove("default", "anna");
        assert!(matches!(refused, Err(HomeError::InUse { .. })));
        drop(image);
        end(&store, "one");
        store.remove("default", "anna").unwrap();
        assert_eq!(store.list().unwrap(), []);
        let missing = store.remove("default", "anna");
        assert!(matches!(missing, Err(HomeError::Missing(_))));
        let again = store.persistent("default", "anna", Some(2 * SIZE), &pod("one"), &tools);
        assert_eq!(again.unwrap().metadata().unwrap().len(), 2 * SIZE);
    }

    #[test]
    fn home_grows_and_never_shrinks() {
        let (dir, store) = node();
        let tools = tools(&dir);
        for (asked, has) in [(2 * SIZE, 2 * SIZE), (4 * SIZE, 4 * SIZE), (SIZE, 4 * SIZE)] {
            let image = store.persistent("default", "anna", Some(asked), &pod("one"), &tools);
            assert_eq!(image.unwrap().metadata().unwrap().len(), has);
        }
    }
}

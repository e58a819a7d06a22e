//! The home of a pod: all of its containers share it, from the first that asks for it to the pod's
//! end.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use caisson_oci::{
    annotations::is_plain_name,
    home::{Home, HomeKind},
    volume::ReadOnly,
    NodeConfig,
};
use caisson_vmm::{user_namespace, Credentials};
use nix::unistd::{chown, Gid, Uid};

use super::{
    error::HomeError,
    image::{self, Tools},
    mount_point::{check_files, files, place, MOUNT},
    store::{Holder, HomeStore},
};
use crate::{
    cgroup,
    host::{
        bind::{Bind, Detached},
        error::{FileError, OnFile},
        folder::{make_private, Folder},
    },
    state,
};

fn is_missing(error: &HomeError) -> bool {
    matches!(error, HomeError::File(FileError { source, .. }) if source.kind() == io::ErrorKind::NotFound)
}

/// The pod or container that asks for a home.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The pod's id, which names its state folder.
    pub id: String,
    /// The Kubernetes namespace, or containerd's namespace for a container outside a pod.
    pub namespace: String,
    /// The name of the pod or the container.
    pub name: String,
    /// The owner of a new home.
    pub uid: u32,
    pub gid: u32,
}

/// The home that a pod has, if any.
#[derive(Debug, Default)]
pub struct PodHome {
    mounted: tokio::sync::Mutex<Option<HomeKind>>,
}

impl PodHome {
    /// Returns the kind of the home that the pod has, if it has one.
    pub async fn kind(&self) -> Option<HomeKind> {
        self.mounted.lock().await.clone()
    }

    /// Unmounts the home of a pod whose VM does not have it any more. Idempotent.
    pub async fn release(&self, config: &NodeConfig, pod: &str) -> Result<(), HomeError> {
        let mut mounted = self.mounted.lock().await;
        let (folder, place) = (config.state_dir.join(pod), place(&config.state_dir, pod));
        let shown = place.clone();
        let work = move || -> io::Result<()> {
            Folder::open(&folder)?.unmount(MOUNT)?;
            match fs::remove_dir(&place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(HomeError::file("unmount", &shown))?;
        *mounted = None;
        Ok(())
    }

    /// Returns the directory to share and the user namespace for the daemon that shares it. The
    /// first call mounts the home.
    ///
    /// The root of that user namespace is the VM's own user on the host. Inside it, the owners of
    /// files are those in the file system.
    pub async fn obtain(
        &self,
        config: &NodeConfig,
        asker: Asker,
        home: Home,
    ) -> Result<(PathBuf, OwnedFd), HomeError> {
        let place = place(&config.state_dir, &asker.id);
        let files = files(&place);
        let mut mounted = self.mounted.lock().await;
        if let Some(has) = mounted.as_ref().filter(|has| **has != home.kind) {
            return Err(HomeError::Other {
                has: has.to_string(),
                asked: home.kind.to_string(),
            });
        }
        let credentials = state::credentials(&config.state_dir, &asker.id)
            .map_err(HomeError::file("read the owner of", &place))?;
        let users = user_namespace::with_root(credentials.uid, credentials.gid);
        let users = users.map_err(HomeError::file("make a user namespace for", &files))?;
        if mounted.is_some() {
            return Ok((files, users));
        }
        let (kind, config) = (home.kind.clone(), config.clone());
        let work = move || {
            mount(&config, &asker, &home, &place, credentials, users.as_fd()).map(|()| users)
        };
        // The home's journal may have to be replayed, and its last user's writes may not have
        // finished.
        let made = tokio::task::spawn_blocking(work).await;
        let users = made.unwrap_or_else(|error| {
            Err(HomeError::file("mount", &files)(io::Error::other(error)))
        })?;
        *mounted = Some(kind);
        Ok((files, users))
    }
}

fn mount(
    config: &NodeConfig,
    asker: &Asker,
    home: &Home,
    place: &Path,
    credentials: Credentials,
    users: BorrowedFd<'_>,
) -> Result<(), HomeError> {
    let store = HomeStore::new(config);
    let size = home.size;
    // This comes before any claim: the mount point marks the claim as that of a living pod.
    make_private(place).map_err(HomeError::file("create", place))?;
    let cgroup = state::cgroup_of(&config.state_dir, &asker.id).and_then(|path| match path {
        Some(path) => cgroup::entrances(&path),
        None => Ok(Vec::new()),
    });
    let tools = Tools {
        credentials,
        cgroup: cgroup.map_err(HomeError::file("open the cgroup of", place))?,
        limit: Duration::from_secs(config.homes.tool_timeout_secs),
        mount_point: place.to_owned(),
    };
    let mut claimed = None;
    let image = match &home.kind {
        HomeKind::Ephemeral => {
            let made = store.ephemeral(&asker.namespace, size, &asker.id, &tools)?;
            claimed = Some(made.1);
            made.0
        }
        HomeKind::Persistent { name } => {
            if !is_plain_name(&asker.namespace) {
                return Err(HomeError::Namespace(asker.namespace.clone()));
            }
            let holder = Holder {
                pod: format!("{}/{}", asker.namespace, asker.name),
                id: Some(asker.id.clone()),
            };
            store.persistent(&asker.namespace, name, size, &holder, &tools)?
        }
    };
    image::mount_at(&image, place, false)?;
    make_files(place, asker)
        .and_then(|()| map_users(&files(place), users))
        .inspect_err(|_| {
            // Otherwise the home would be in use by this pod, which does not have it.
            let pod = Folder::open(&config.state_dir.join(&asker.id));
            if let Err(error) = pod.and_then(|pod| pod.unmount(MOUNT)) {
                log::warn!("a home stays mounted: {error}");
            }
        })?;
    if let Some(claimed) = claimed {
        claimed.keep();
    }
    Ok(())
}

/// Maps the owners of `files` to the ids of a user namespace.
fn map_users(files: &Path, users: BorrowedFd<'_>) -> Result<(), HomeError> {
    let how = Bind {
        recursive: false,
        read_only: ReadOnly::No,
        follows: false,
        ids: Some(users),
    };
    let place = || Folder::open(files);
    Detached::clone_of(files, how)
        .and_then(|mapped| mapped.mount(place()?))
        .map_err(HomeError::file("map the users of", files))
}

/// Makes the shared folder, which belongs to the home's first user.
fn make_files(place: &Path, asker: &Asker) -> Result<(), HomeError> {
    let files = files(place);
    match check_files(&files) {
        Err(error) if is_missing(&error) => {}
        checked => return checked,
    }
    // The folder gets its final name once it has its owner.
    let part = place.join(".part");
    fs::create_dir_all(&part).map_err(HomeError::file("create", &part))?;
    let (uid, gid) = (Uid::from_raw(asker.uid), Gid::from_raw(asker.gid));
    chown(&part, Some(uid), Some(gid))
        .map_err(io::Error::from)
        .map_err(HomeError::file("set the owner of", &part))?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o700))
        .map_err(HomeError::file("set the mode of", &part))?;
    fs::rename(&part, &files).map_err(HomeError::file("create", &files))
}

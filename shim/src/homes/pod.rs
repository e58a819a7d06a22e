//! The home of a pod: one for all of its containers, from the first that asks for it to the pod's end.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use caisson_oci::{
    annotations::is_plain_name,
    home::{Home, HomeKind},
    volume::ReadOnly,
    NodeConfig,
};
use caisson_vmm::{user_namespace, Credentials};
use nix::unistd::{chown, Gid, Uid};

use super::{file, image, Holder, HomeError, HomeStore};
use crate::{
    bind::{Bind, Detached},
    folder::{make_private, Folder},
    state,
};

/// In the pod's state folder: where the file system of its home is mounted. [`crate::state::remove`] unmounts it.
const MOUNT: &str = "home";
/// In the file system: what is shared. Beside it is ext4's own `lost+found`.
const FILES: &str = "files";

/// What is shared, of a file system that is mounted at `place`.
pub fn files(place: &Path) -> PathBuf {
    place.join(FILES)
}

/// Who asks for a home.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The pod's, in the state folder.
    pub id: String,
    /// Kubernetes' namespace, or containerd's of a container in no pod.
    pub namespace: String,
    /// The pod's name, or the container's.
    pub name: String,
    /// To whom a new home belongs.
    pub uid: u32,
    pub gid: u32,
}

/// What a pod has for a home.
#[derive(Debug, Default)]
pub struct PodHome {
    mounted: tokio::sync::Mutex<Option<HomeKind>>,
}

impl PodHome {
    /// The directory to share, mounted when it is asked for first, and the user namespace for who shares it.
    ///
    /// Its root is the VM's own user on the host. In it the owners are those of the file system.
    pub async fn obtain(
        &self,
        config: &NodeConfig,
        asker: Asker,
        home: Home,
    ) -> Result<(PathBuf, OwnedFd), HomeError> {
        let place = config.state_dir.join(&asker.id).join(MOUNT);
        let files = files(&place);
        let mut mounted = self.mounted.lock().await;
        if let Some(has) = mounted.as_ref().filter(|has| **has != home.kind) {
            return Err(HomeError::Other {
                has: has.to_string(),
                asked: home.kind.to_string(),
            });
        }
        let Credentials { uid, gid } = state::credentials(&config.state_dir, &asker.id)
            .map_err(file("read the owner of", &place))?;
        let users = user_namespace::with_root(uid, gid);
        let users = users.map_err(file("make a user namespace for", &files))?;
        if mounted.is_some() {
            return Ok((files, users));
        }
        let (kind, config) = (home.kind.clone(), config.clone());
        let work = move || mount(&config, &asker, &home, &place, users.as_fd()).map(|()| users);
        // The home's journal may have to be played back, and its last user's writes may still be on their way.
        let made = tokio::task::spawn_blocking(work).await;
        let users =
            made.unwrap_or_else(|error| Err(file("mount", &files)(io::Error::other(error))))?;
        *mounted = Some(kind);
        Ok((files, users))
    }
}

fn mount(
    config: &NodeConfig,
    asker: &Asker,
    home: &Home,
    place: &Path,
    users: BorrowedFd<'_>,
) -> Result<(), HomeError> {
    let store = HomeStore::new(config);
    let size = home.size;
    let image = match &home.kind {
        HomeKind::Ephemeral => store.ephemeral(size)?,
        HomeKind::Persistent { name } => {
            if !is_plain_name(&asker.namespace) {
                return Err(HomeError::Namespace(asker.namespace.clone()));
            }
            let holder = Holder {
                pod: format!("{}/{}", asker.namespace, asker.name),
                id: Some(asker.id.clone()),
            };
            store.persistent(&asker.namespace, name, size, &holder)?
        }
    };
    make_private(place).map_err(file("create", place))?;
    image::mount_at(&image, place, false)?;
    make_files(place, asker)
        .and_then(|()| map_users(&files(place), users))
        .inspect_err(|_| {
            // Else it would be in use by this pod, which does not have it.
            let pod = place
                .parent()
                .map_or_else(|| Folder::open(place), Folder::open);
            if let Err(error) = pod.and_then(|pod| pod.unmount(MOUNT)) {
                log::warn!("a home stays mounted: {error}");
            }
        })
}

/// Lets the owners of `files` be the ids of a user namespace.
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
        .map_err(file("map the users of", files))
}

/// Makes what is shared, for its first user.
fn make_files(place: &Path, asker: &Asker) -> Result<(), HomeError> {
    let files = files(place);
    if files.exists() {
        return Ok(());
    }
    // It gets its name when it has its owner.
    let part = place.join(".part");
    fs::create_dir_all(&part).map_err(file("create", &part))?;
    let (uid, gid) = (Uid::from_raw(asker.uid), Gid::from_raw(asker.gid));
    chown(&part, Some(uid), Some(gid))
        .map_err(io::Error::from)
        .map_err(file("set the owner of", &part))?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o700))
        .map_err(file("set the mode of", &part))?;
    fs::rename(&part, &files).map_err(file("create", &files))
}

//! The home of a pod: one for all of its containers, from the first that asks for it to the pod's end.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use caisson_oci::{
    annotations::is_plain_name,
    home::{Home, HomeKind},
    NodeConfig,
};
use nix::unistd::{chown, Gid, Uid};

use super::{file, image, Holder, HomeError, HomeStore};

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
    /// The directory to share; mounted when it is asked for first.
    pub async fn obtain(
        &self,
        config: &NodeConfig,
        asker: Asker,
        home: Home,
    ) -> Result<PathBuf, HomeError> {
        let place = config.state_dir.join(&asker.id).join(MOUNT);
        let files = files(&place);
        let mut mounted = self.mounted.lock().await;
        match mounted.as_ref() {
            Some(has) if *has == home.kind => return Ok(files),
            Some(has) => {
                return Err(HomeError::Other {
                    has: has.to_string(),
                    asked: home.kind.to_string(),
                })
            }
            None => {}
        }
        let (kind, config) = (home.kind.clone(), config.clone());
        // The home's journal may have to be played back, and its last user's writes may still be on their way.
        let made = tokio::task::spawn_blocking(move || mount(&config, &asker, &home, &place));
        made.await
            .unwrap_or_else(|error| Err(file("mount", &files)(io::Error::other(error))))?;
        *mounted = Some(kind);
        Ok(files)
    }
}

fn mount(config: &NodeConfig, asker: &Asker, home: &Home, place: &Path) -> Result<(), HomeError> {
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
    fs::create_dir_all(place).map_err(file("create", place))?;
    image::mount_at(&image, place, false)?;
    make_files(place, asker)
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

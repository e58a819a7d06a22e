//! What the guest sees of the host: one folder, shared by one virtiofs device, into which containers are mounted.
//!
//! ```text
//! <pod>/shared/<container>/rootfs       the container's root
//! <pod>/shared/<container>/volumes/<n>  its bind mounts, in the order of the spec
//! ```
//!
//! The folder is a mount with shared propagation, so that what is mounted into it later reaches the virtiofs daemon, whose
//! mount namespace is a copy. Undone with the pod's state folder, see [`crate::state`].

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use caisson_oci::Volume;
use caisson_protocol::path::SHARES;
use containerd_shim::{mount::mount_rootfs, protos::types::mount::Mount};
use nix::mount::{mount, MsFlags};

use crate::{
    error::{Error, Result},
    state::unmount_below,
};

/// The tag of the virtiofs device.
pub const TAG: &str = "pod";

/// The shared folder of a pod.
#[derive(Debug)]
pub struct Share {
    path: PathBuf,
}

impl Share {
    /// Makes the folder.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).map_err(Error::file("create", &path))?;
        mount_at(Some(&path), &path, MsFlags::MS_BIND)?;
        // Not to the rest of the host: away from the peer group that a bind mount inherits, then a group of its own.
        mount_at(None, &path, MsFlags::MS_PRIVATE)?;
        mount_at(None, &path, MsFlags::MS_SHARED)?;
        Ok(Self { path })
    }

    /// The folder, for the virtiofs daemon.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A container's root on the host.
    pub fn rootfs(&self, container: &str) -> PathBuf {
        self.path.join(container).join("rootfs")
    }

    /// A container's root in the guest.
    pub fn guest_rootfs(container: &str) -> PathBuf {
        guest(container).join("rootfs")
    }

    /// The folder of a container's volumes in the guest.
    pub fn guest_volumes(container: &str) -> PathBuf {
        guest(container).join("volumes")
    }

    /// Mounts a container's root: the mounts of containerd's request one over the other, or, where there are none, the
    /// folder that the spec names.
    pub async fn mount_rootfs(
        &self,
        container: &str,
        mounts: Vec<Mount>,
        folder: &Path,
    ) -> Result<()> {
        let target = self.rootfs(container);
        fs::create_dir_all(&target).map_err(Error::file("create", &target))?;
        if mounts.is_empty() {
            if !folder.is_dir() {
                return Err(Error::file("use root.path", folder)(
                    io::ErrorKind::NotADirectory.into(),
                ));
            }
            return mount_at(Some(folder), &target, MsFlags::MS_BIND | MsFlags::MS_REC);
        }
        // On a thread of its own: for long overlay options it changes the thread's working directory.
        let (done, result) = tokio::sync::oneshot::channel();
        let place = target.clone();
        std::thread::spawn(move || {
            let mounted = mounts.iter().try_for_each(|m| {
                let non_empty = |text| Some(text).filter(|t: &&str| !t.is_empty());
                mount_rootfs(
                    non_empty(&m.type_),
                    non_empty(&m.source),
                    &m.options,
                    &place,
                )
            });
            drop(done.send(mounted));
        });
        let mounted = result.await.unwrap_or_else(|_| {
            Err(containerd_shim::Error::Other(
                "the mounting thread ended".to_owned(),
            ))
        });
        mounted.map_err(|source| Error::Mount {
            target,
            source: Box::new(source),
        })
    }

    /// Binds the bind mounts of a container's spec, by their number.
    pub fn mount_volumes(&self, container: &str, volumes: &[Volume]) -> Result<()> {
        let folder = self.path.join(container).join("volumes");
        for (number, volume) in volumes.iter().enumerate() {
            let target = folder.join(number.to_string());
            let source = &volume.source;
            let metadata = fs::metadata(source).map_err(Error::file("mount volume", source))?;
            if metadata.is_dir() {
                fs::create_dir_all(&target).map_err(Error::file("create", &target))?;
            } else {
                fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
                fs::File::create(&target).map_err(Error::file("create", &target))?;
            }
            let recursive = if volume.recursive {
                MsFlags::MS_REC
            } else {
                MsFlags::empty()
            };
            mount_at(Some(source), &target, MsFlags::MS_BIND | recursive)?;
            if volume.read_only {
                let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                mount_at(None, &target, flags)?;
            }
        }
        Ok(())
    }

    /// Unmounts and removes what is a container's. Idempotent.
    pub fn remove(&self, container: &str) -> Result<()> {
        let path = self.path.join(container);
        if !path.exists() {
            return Ok(());
        }
        unmount_below(&path)?;
        fs::remove_dir_all(&path).map_err(Error::file("remove", &path))
    }
}

fn guest(container: &str) -> PathBuf {
    Path::new(SHARES).join(TAG).join(container)
}

fn mount_at(source: Option<&Path>, target: &Path, flags: MsFlags) -> Result<()> {
    mount(source, target, None::<&str>, flags, None::<&str>)
        .map_err(io::Error::from)
        .map_err(Error::file("mount", target))
}

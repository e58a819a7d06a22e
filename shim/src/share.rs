//! What the guest sees of the host: one folder, shared by one virtiofs device, into which containers are mounted.
//!
//! ```text
//! <pod>/shared/<container>/rootfs  the container's root
//! <pod>/shared/.volumes/<name>     a volume, for all containers that mount it in the same way
//! ```
//!
//! A volume is there as long as a container uses it. It is one place, since a file that the guest reaches by two mounts is two
//! files to it, whose sockets and locks have nothing to do with each other. No container's id begins with a dot.
//!
//! The folder is a mount with shared propagation, so that what is mounted into it later reaches the virtiofs daemon, whose
//! mount namespace is a copy. Undone with the pod's state folder, see [`crate::state`].

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use caisson_oci::{volume::ReadOnly, Volume};
use caisson_protocol::path::SHARES;
use containerd_shim::{mount::mount_rootfs, protos::types::mount::Mount};
use nix::mount::{mount, MsFlags};

use crate::{
    bind::{bind, Bind},
    error::{Error, Result},
    id_map,
    state::unmount_below,
};

/// The folder of the volumes.
const VOLUMES: &str = ".volumes";

/// The folder beside the shared one in which layers of roots are while they are being mounted.
const LAYERS: &str = "layers";

/// The tag of the virtiofs device.
pub const TAG: &str = "pod";

/// The shared folder of a pod.
#[derive(Debug)]
pub struct Share {
    path: PathBuf,
    /// The containers that use a volume, by its name.
    users: Mutex<HashMap<String, BTreeSet<String>>>,
}

impl Share {
    /// Makes the folder.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).map_err(Error::file("create", &path))?;
        mount_at(Some(&path), &path, MsFlags::MS_BIND)?;
        // Not to the rest of the host: away from the peer group that a bind mount inherits, then a group of its own.
        mount_at(None, &path, MsFlags::MS_PRIVATE)?;
        mount_at(None, &path, MsFlags::MS_SHARED)?;
        Ok(Self {
            path,
            users: Mutex::default(),
        })
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

    /// The folder of the volumes in the guest.
    pub fn guest_volumes() -> PathBuf {
        guest(VOLUMES)
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
        let layers = self.path.with_file_name(LAYERS).join(container);
        std::thread::spawn(move || {
            let mut mounts = mounts.iter();
            drop(done.send(mounts.try_for_each(|m| mount_one(m, &place, &layers))));
        });
        result
            .await
            .unwrap_or_else(|_| Err(failed_mount(&target, "the mounting thread ended")))
    }

    /// Mounts a container's volumes, those that are not there yet. What a failure leaves is removed with the container.
    pub fn mount_volumes(&self, container: &str, volumes: &[Volume]) -> Result<()> {
        let folder = self.path.join(VOLUMES);
        let mut users = self.users();
        for volume in volumes {
            let of_volume = users.entry(volume.name.clone()).or_default();
            let first = of_volume.is_empty();
            if first {
                let target = folder.join(&volume.name);
                if let Err(error) = mount_volume(volume, &target) {
                    remove_volume(&target)?;
                    return Err(error);
                }
            }
            of_volume.insert(container.to_owned());
        }
        Ok(())
    }

    /// Unmounts and removes what is a container's, and the volumes that no other uses. Idempotent.
    pub fn remove(&self, container: &str) -> Result<()> {
        let mut users = self.users();
        for (name, of_volume) in users.iter_mut() {
            if of_volume.remove(container) && of_volume.is_empty() {
                remove_volume(&self.path.join(VOLUMES).join(name))?;
            }
        }
        users.retain(|_, of_volume| !of_volume.is_empty());
        drop(users);
        let path = self.path.join(container);
        if !path.exists() {
            return Ok(());
        }
        unmount_below(&path)?;
        fs::remove_dir_all(&path).map_err(Error::file("remove", &path))
    }

    fn users(&self) -> MutexGuard<'_, HashMap<String, BTreeSet<String>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Mounts one of containerd's mounts, with the options by which its snapshotters say whose the files shall be.
fn mount_one(m: &Mount, target: &Path, layers: &Path) -> Result<()> {
    let non_empty = |text| Some(text).filter(|t: &&str| !t.is_empty());
    let mut options = m.options.clone();
    let ids = id_map::take(&mut options)
        .map_err(|reason| failed_mount(target, &reason))?
        .transpose()
        .map_err(Error::file("map the users of", target))?;
    let mapped = match &ids {
        // Its upper layer is the container's own, written with its ids.
        Some(ids) if m.type_ == "overlay" => Some(MappedLayers::mount(&mut options, ids, layers)?),
        _ => None,
    };
    mount_rootfs(non_empty(&m.type_), non_empty(&m.source), &options, target).map_err(
        |source| Error::Mount {
            target: target.to_owned(),
            source: Box::new(source),
        },
    )?;
    match (ids, mapped) {
        (Some(ids), None) => {
            let how = Bind {
                recursive: false,
                read_only: ReadOnly::No,
                follows: false,
                ids: Some(ids.as_fd()),
            };
            bind(target, target, how).map_err(Error::file("map the users of", target))
        }
        _ => Ok(()),
    }
}

fn failed_mount(target: &Path, reason: &str) -> Error {
    Error::Mount {
        target: target.to_owned(),
        source: Box::new(containerd_shim::Error::Other(reason.to_owned())),
    }
}

/// The lower layers of an overlay, each mounted with other owners until the overlay has them.
struct MappedLayers(PathBuf);

impl MappedLayers {
    /// Mounts them below `folder` and lets the options name them there.
    fn mount(options: &mut [String], ids: &OwnedFd, folder: &Path) -> Result<Self> {
        let mapped = Self(folder.to_owned());
        for option in options {
            let Some(lower) = option.strip_prefix("lowerdir=") else {
                continue;
            };
            let mut places = Vec::new();
            for (number, layer) in lower.split(':').enumerate() {
                let place = folder.join(number.to_string());
                fs::create_dir_all(&place).map_err(Error::file("create", &place))?;
                let how = Bind {
                    recursive: false,
                    read_only: ReadOnly::No,
                    follows: false,
                    ids: Some(ids.as_fd()),
                };
                let layer = Path::new(layer);
                bind(layer, &place, how).map_err(Error::file("map the users of", layer))?;
                places.push(place.display().to_string());
            }
            *option = format!("lowerdir={}", places.join(":"));
        }
        Ok(mapped)
    }
}

impl Drop for MappedLayers {
    fn drop(&mut self) {
        // The overlay has clones of its own. What stays goes with the pod's folder.
        let removed = unmount_below(&self.0)
            .and_then(|()| fs::remove_dir_all(&self.0).map_err(Error::file("remove", &self.0)));
        if let Err(error) = removed {
            log::warn!("layers of a root: {}", error.chain());
        }
    }
}

fn mount_volume(volume: &Volume, target: &Path) -> Result<()> {
    let source = &volume.source;
    let metadata = fs::metadata(source).map_err(Error::file("mount volume", source))?;
    if metadata.is_dir() {
        fs::create_dir_all(target).map_err(Error::file("create", target))?;
    } else {
        let folder = target.parent().unwrap_or(target);
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        fs::File::create(target).map_err(Error::file("create", target))?;
    }
    let ids = volume.ids.as_ref().map(id_map::namespace).transpose();
    let ids = ids.map_err(Error::file("map the users of", source))?;
    let how = Bind {
        recursive: volume.recursive,
        read_only: volume.read_only,
        follows: volume.follows_host,
        ids: ids.as_ref().map(OwnedFd::as_fd),
    };
    bind(source, target, how).map_err(Error::file("mount volume", source))
}

/// Its mount and its place; a place that is not there is a success.
fn remove_volume(target: &Path) -> Result<()> {
    unmount_below(target)?;
    let removed = match fs::symlink_metadata(target) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir(target),
        Ok(_) => fs::remove_file(target),
        Err(_) => return Ok(()),
    };
    removed.map_err(Error::file("remove", target))
}

fn guest(container: &str) -> PathBuf {
    Path::new(SHARES).join(TAG).join(container)
}

fn mount_at(source: Option<&Path>, target: &Path, flags: MsFlags) -> Result<()> {
    mount(source, target, None::<&str>, flags, None::<&str>)
        .map_err(io::Error::from)
        .map_err(Error::file("mount", target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{umount2, MntFlags};
    use std::os::unix::fs::MetadataExt;

    /// A shared folder and a source that is a mount with shared propagation, as a host's are.
    struct Fixture {
        dir: tempfile::TempDir,
        share: Share,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let share = Share::create(dir.path().join("shared")).unwrap();
            let source = dir.path().join("source");
            fs::create_dir(&source).unwrap();
            mount_at(Some(&source), &source, MsFlags::MS_BIND).unwrap();
            mount_at(None, &source, MsFlags::MS_PRIVATE).unwrap();
            mount_at(None, &source, MsFlags::MS_SHARED).unwrap();
            fs::create_dir(source.join("sub")).unwrap();
            fs::write(source.join("file"), "x").unwrap();
            Self { dir, share }
        }

        fn source(&self) -> PathBuf {
            self.dir.path().join("source")
        }

        fn volume(&self) -> Volume {
            Volume {
                name: "v".to_owned(),
                source: self.source(),
                recursive: true,
                read_only: ReadOnly::No,
                follows_host: false,
                ids: None,
            }
        }

        fn place(&self) -> PathBuf {
            self.share.path.join(VOLUMES).join("v")
        }

        fn mount_tmpfs_below_source(&self) {
            let sub = self.source().join("sub");
            mount(
                None::<&str>,
                &sub,
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .unwrap();
            fs::write(sub.join("inside"), "y").unwrap();
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            for path in [self.share.path.clone(), self.source()] {
                unmount_below(&path).unwrap();
            }
        }
    }

    #[test]
    fn volume_of_two_containers_is_one_place_until_both_are_gone() {
        let fixture = Fixture::new();
        let volumes = [fixture.volume()];
        fixture.share.mount_volumes("a", &volumes).unwrap();
        let inode = fs::metadata(fixture.place()).unwrap().ino();
        fixture.share.mount_volumes("b", &volumes).unwrap();
        assert_eq!(
            fs::read_dir(fixture.share.path.join(VOLUMES))
                .unwrap()
                .count(),
            1
        );
        fixture.share.remove("a").unwrap();
        assert_eq!(fs::metadata(fixture.place()).unwrap().ino(), inode);
        fixture.share.remove("b").unwrap();
        fixture.share.remove("b").unwrap();
        assert!(!fixture.place().exists());
    }

    #[test]
    fn removing_a_volume_leaves_the_hosts_mounts_below_it() {
        let fixture = Fixture::new();
        fixture.mount_tmpfs_below_source();
        fixture
            .share
            .mount_volumes("a", &[fixture.volume()])
            .unwrap();
        assert!(fixture.place().join("sub/inside").exists());
        fixture.share.remove("a").unwrap();
        assert!(fixture.source().join("sub/inside").exists());
    }

    #[test]
    fn mount_of_the_host_comes_into_a_volume_that_follows_and_no_other() {
        for follows_host in [true, false] {
            let fixture = Fixture::new();
            let volume = Volume {
                follows_host,
                ..fixture.volume()
            };
            fixture.share.mount_volumes("a", &[volume]).unwrap();
            fixture.mount_tmpfs_below_source();
            assert_eq!(fixture.place().join("sub/inside").exists(), follows_host);
            umount2(&fixture.source().join("sub"), MntFlags::MNT_DETACH).unwrap();
            assert!(!fixture.place().join("sub/inside").exists());
        }
    }

    #[test]
    fn volume_is_read_only_as_deep_as_asked() {
        for (read_only, top, below) in [
            (ReadOnly::No, true, true),
            (ReadOnly::Top, false, true),
            (ReadOnly::Recursive, false, false),
        ] {
            let fixture = Fixture::new();
            fixture.mount_tmpfs_below_source();
            let volume = Volume {
                read_only,
                ..fixture.volume()
            };
            fixture.share.mount_volumes("a", &[volume]).unwrap();
            let writable = |name: &str| fs::write(fixture.place().join(name), "z").is_ok();
            assert_eq!((writable("file"), writable("sub/inside")), (top, below));
        }
    }

    #[test]
    fn volume_that_is_a_file_is_one() {
        let fixture = Fixture::new();
        let volume = Volume {
            source: fixture.source().join("file"),
            ..fixture.volume()
        };
        fixture.share.mount_volumes("a", &[volume]).unwrap();
        assert_eq!(fs::read_to_string(fixture.place()).unwrap(), "x");
        fixture.share.remove("a").unwrap();
        assert!(!fixture.place().exists());
    }
}

//! Manages the folder of the host that the guest sees. One virtiofs device shares it, and the
//! containers' roots and volumes are mounted into it.
//!
//! ```text
//! <pod>/shared/<container>/own-root     the container's root
//! <pod>/shared/.volumes/<name>         a volume, for all containers that mount it in the same way
//! <pod>/shared/.volumes/own-<name>     one that only the pod changes
//! <pod>/view/                          the same folder, as the virtiofs daemon has it
//! ```
//!
//! A volume exists for as long as a container uses it. All its containers use the same mount: a
//! file that the guest reaches by two mounts is two files to it, whose sockets and locks have
//! nothing to do with each other. No container's id begins with a dot.
//!
//! The shim works in `shared`, which no guest reaches. The view is a read-only mount of it that
//! follows it (a slave, mount_namespaces(7)): whatever is mounted into `shared` appears in the view
//! with its own flags. A guest can therefore write in roots and volumes, and gets EROFS for the
//! folders that they are in. All of it is removed with the pod's state folder, see
//! [`caisson_node::state`].

mod error;
mod layers;
mod root;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use caisson_node::host::{
    bind::{self, Bind, Detached, PLAIN},
    error::OnFile,
    folder::Folder,
    id_map,
};
use caisson_oci::{volume::ReadOnly, Volume};
use caisson_protocol::path::SHARES;
pub use error::ShareError;

/// The folder that the shim works in.
const SHARED: &str = "shared";
/// The same folder, as the guest sees it.
const VIEW: &str = "view";
/// The folder of the volumes.
const VOLUMES: &str = ".volumes";
/// A container's root in the container's folder. It begins with [`volume::OWN`].
const ROOTFS: &str = "own-root";

/// The tag of the virtiofs device.
pub const TAG: &str = "pod";

/// The shared folder of a pod.
#[derive(Debug)]
pub struct Share {
    /// The pod's state folder.
    pod: PathBuf,
    shared: Folder,
    /// The mounted volumes, by their names.
    volumes: Mutex<HashMap<String, Mounted>>,
}

/// A mounted volume.
#[derive(Debug)]
struct Mounted {
    volume: Volume,
    /// The containers that use it.
    users: BTreeSet<String>,
}

impl Share {
    /// Creates the folder and its view in a pod's state folder.
    pub fn create(pod: &Path) -> Result<Self, ShareError> {
        let path = pod.join(SHARED);
        let make = || {
            let folder = Folder::open(pod)?;
            let below = folder.make_folder(SHARED)?;
            Detached::clone_of(&below.path(), PLAIN)?.mount(&below)?;
            let shared = folder.folder(SHARED)?;
            // A peer group of its own: mounts propagate to the view, but not to the rest of the
            // host.
            bind::set(&shared, false, 0, libc::MS_SHARED)?;
            let view = Bind {
                read_only: ReadOnly::Top,
                follows: true,
                ..PLAIN
            };
            Detached::clone_of(&shared.path(), view)?.mount(folder.make_folder(VIEW)?)?;
            io::Result::Ok(shared)
        };
        Ok(Self {
            shared: make().map_err(ShareError::file("make the shared folder", path))?,
            pod: pod.to_owned(),
            volumes: Mutex::default(),
        })
    }

    /// Says that the pod's state folder has been renamed.
    pub fn moved(&mut self, pod: &Path) {
        pod.clone_into(&mut self.pod);
    }

    /// Returns the folder that the virtiofs daemon shares.
    pub fn view(&self) -> PathBuf {
        self.pod.join(VIEW)
    }

    /// Returns a container's root on the host.
    pub fn rootfs(&self, container: &str) -> PathBuf {
        self.pod.join(SHARED).join(container).join(ROOTFS)
    }

    /// Returns a container's root in the guest.
    pub fn guest_rootfs(container: &str) -> PathBuf {
        guest(container).join(ROOTFS)
    }

    /// Returns the folder of the volumes in the guest.
    pub fn guest_volumes() -> PathBuf {
        guest(VOLUMES)
    }

    /// Mounts those of a container's volumes that are not mounted yet. What a failure leaves behind
    /// is removed with the container.
    pub fn mount_volumes(&self, container: &str, volumes: &[Volume]) -> Result<(), ShareError> {
        if volumes.is_empty() {
            return Ok(());
        }
        let folder = self.folder_of_volumes()?;
        let mut all = self.volumes();
        for volume in volumes {
            if !all.contains_key(&volume.name) {
                if let Err(error) = mount_volume(volume, &folder) {
                    self.remove_from(&folder, &volume.name)?;
                    return Err(ShareError::file("mount volume", &volume.source)(error));
                }
            }
            let mounted = all.entry(volume.name.clone()).or_insert_with(|| Mounted {
                volume: volume.clone(),
                users: BTreeSet::new(),
            });
            mounted.users.insert(container.to_owned());
        }
        Ok(())
    }

    /// Returns the volumes that are mounted.
    pub fn mounted(&self) -> Vec<Volume> {
        let all = self.volumes();
        all.values().map(|mounted| mounted.volume.clone()).collect()
    }

    /// Unmounts and removes what belongs to a container, and the volumes that no other container
    /// uses. Idempotent. Also succeeds if the pod's folder has been removed in the meantime, which
    /// happens when the VM ends and containerd deletes pod and container at once.
    pub fn remove(&self, container: &str) -> Result<(), ShareError> {
        let mut all = self.volumes();
        let mut unused = Vec::new();
        all.retain(|name, mounted| {
            mounted.users.remove(container);
            let used = !mounted.users.is_empty();
            if !used {
                unused.push(name.clone());
            }
            used
        });
        match self.shared.folder(VOLUMES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            volumes => {
                let failed = ShareError::file("open", self.pod.join(SHARED).join(VOLUMES));
                let volumes = volumes.map_err(failed)?;
                for name in unused {
                    self.remove_from(&volumes, &name)?;
                }
            }
        }
        drop(all);
        self.remove_from(&self.shared, container)
    }

    fn remove_from(&self, folder: &Folder, name: &str) -> Result<(), ShareError> {
        let failed = ShareError::file(
            "remove from the shared folder",
            self.pod.join(SHARED).join(name),
        );
        folder.remove(name).map_err(failed)
    }

    fn folder_of_volumes(&self) -> Result<Folder, ShareError> {
        let failed = ShareError::file("create", self.pod.join(SHARED).join(VOLUMES));
        self.shared.make_folder(VOLUMES).map_err(failed)
    }

    fn volumes(&self) -> MutexGuard<'_, HashMap<String, Mounted>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn mount_volume(volume: &Volume, folder: &Folder) -> io::Result<()> {
    let ids = volume.ids.as_ref().map(id_map::namespace).transpose()?;
    let how = Bind {
        recursive: volume.recursive,
        read_only: volume.read_only,
        follows: volume.follows_host,
        ids: ids.as_ref().map(OwnedFd::as_fd),
    };
    let mounted = Detached::clone_of(&volume.source, how)?;
    match mounted.is_dir()? {
        true => mounted.mount(folder.make_folder(&volume.name)?),
        false => mounted.mount(folder.make_file(&volume.name)?),
    }
}

fn guest(container: &str) -> PathBuf {
    Path::new(SHARES).join(TAG).join(container)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{mount, umount2, MntFlags, MsFlags};
    use std::{fs, os::unix::fs::MetadataExt};

    fn mount_at(source: Option<&Path>, target: &Path, flags: MsFlags) {
        mount(source, target, None::<&str>, flags, None::<&str>).unwrap();
    }

    /// A shared folder, and a source that is a mount with shared propagation, like those of a host.
    struct Fixture {
        dir: tempfile::TempDir,
        share: Share,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let share = Share::create(dir.path()).unwrap();
            let source = dir.path().join("source");
            fs::create_dir(&source).unwrap();
            mount_at(Some(&source), &source, MsFlags::MS_BIND);
            mount_at(None, &source, MsFlags::MS_PRIVATE);
            mount_at(None, &source, MsFlags::MS_SHARED);
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
            self.dir.path().join(SHARED).join(VOLUMES).join("v")
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
            let folder = Folder::open(self.dir.path()).unwrap();
            for name in folder.names().unwrap() {
                folder.unmount(name).unwrap();
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
            fs::read_dir(fixture.dir.path().join(SHARED).join(VOLUMES))
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
    fn container_is_removed_after_the_folder_of_its_pod() {
        let fixture = Fixture::new();
        fixture
            .share
            .mount_volumes("a", &[fixture.volume()])
            .unwrap();
        let pod = Folder::open(fixture.dir.path()).unwrap();
        pod.remove(SHARED).unwrap();
        fixture.share.remove("a").unwrap();
        assert!(fixture.source().join("file").exists());
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

    fn refused(result: io::Result<()>) -> bool {
        result.is_err_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }

    #[test]
    fn view_has_what_is_mounted_later_and_is_read_only_but_for_that() {
        let fixture = Fixture::new();
        let view = fixture.share.view();
        fixture
            .share
            .mount_volumes("a", &[fixture.volume()])
            .unwrap();
        fs::write(view.join(VOLUMES).join("v/file"), "by the guest").unwrap();
        assert_eq!(
            fs::read_to_string(fixture.source().join("file")).unwrap(),
            "by the guest"
        );
        for folder in [view.clone(), view.join(VOLUMES)] {
            assert!(refused(fs::write(folder.join("new"), "x")), "{folder:?}");
            assert!(refused(fs::create_dir(folder.join("new"))), "{folder:?}");
        }
        let moved = fs::rename(view.join(VOLUMES), view.join("moved"));
        assert!(refused(moved));
        fixture.share.remove("a").unwrap();
        assert!(!view.join(VOLUMES).join("v").exists());
    }
}

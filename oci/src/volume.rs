//! Decides where the bind mounts of a spec come from in the guest: from the host through the pod's
//! share, or from the guest's own memory.
//!
//! - `…/sandboxes/<sandbox>/shm` at `/dev/shm` (CRI's tmpfs of the pod): a tmpfs of the same size,
//!   one for the pod.
//! - An emptyDir of the pod with medium Memory, without a file: a tmpfs of the same size, owner and
//!   mode, one for the pod.
//! - A small volume that the kubelet swaps as a whole (its link `..data`): a copy in memory that
//!   follows it, for inotify.
//! - An emptyDir of the pod that is kept on a disk ([`crate::scratch`]): a folder on that disk.
//! - Any other emptyDir of the pod: the share. Only the guest makes it read-only, so that it is
//!   one place for readers and writers.
//! - Anything else, including secrets and projected volumes, which the kubelet fills: the share,
//!   made read-only by the host.
//!
//! A volume is one file system in the guest, with the same inodes for all containers, so sockets
//! and locks work across it. A container that mounts a part of a volume (`subPath`), or mounts it
//! read-only beside a writer, gets a part of that file system: see [`Part`]. The guest is shown no
//! more of the host than the pod mounts, so this holds for the emptyDirs of the pod, and for a
//! volume that another container of the pod has mounted whole before.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Mount;
use sha2::{Digest, Sha256};

use crate::{
    scratch::{Fit, Wanted},
    IdMap, Result, Role,
};

/// The names of volumes that only the pod changes begin with this.
pub const OWN: &str = "own-";
/// The name of the memory that is mounted at `/dev/shm`.
pub const SHM: &str = "shm";
/// Size of a pod's /dev/shm if the host has none to copy, in bytes (containerd, `defaultShmSize`).
const DEFAULT_SHM: u64 = 64 << 20;

/// The folder of the emptyDirs in that of a pod (Kubernetes, pkg/volume/emptydir).
const EMPTY_DIRS: &str = "volumes/kubernetes.io~empty-dir";

/// The most that a copy of a volume may hold, old and new version together, in bytes. A Kubernetes
/// object has at most 1 MiB; a projected volume has several.
pub const MAX_COPY: u64 = 32 << 20;

/// What the shim has found at the source of a bind mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Device and inode from stat(2): a path that becomes something else becomes another volume.
    pub identity: (u64, u64),
    /// Its owner and mode.
    pub owner: Owner,
    /// Set if the source is the root of a tmpfs.
    pub tmpfs: Option<Tmpfs>,
    /// Whether it can be kept on a disk, if it is an emptyDir.
    pub fit: Fit,
    /// Whether the kubelet's atomic writer wrote the volume and it is small.
    pub swapped: bool,
    /// The file system, such as `proc`, if the host's kernel makes up its files when they are read.
    pub made_up: Option<&'static str>,
    /// The folders of the pod that the source is in, each with the path in it.
    pub parts: Vec<(PathBuf, PathBuf)>,
}

/// The owner and mode of a file or folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// Permission bits.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A tmpfs of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// The most that it may hold, in bytes.
    pub size: u64,
    /// Whether there is no file in it, but possibly folders: the kubelet makes that of a `subPath`
    /// (Kubernetes, pkg/volume/util/subpath).
    pub empty: bool,
}

/// A bind mount of the spec: a directory or file of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// A plain file name, the same for all mounts that are to be one place.
    pub name: String,
    /// The path on the host, as in the spec.
    pub source: PathBuf,
    /// Whether the mounts below it are included.
    pub recursive: bool,
    /// How much is read-only, which the host enforces, too.
    pub read_only: ReadOnly,
    /// Whether later mounts below it on the host appear in the guest (`HostToContainer`).
    pub follows_host: bool,
    /// The mapping of its files' owners, if they are others than on the host.
    pub ids: Option<IdMap>,
}

/// How much of a volume is read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOnly {
    /// Nothing.
    No,
    /// The volume itself, but not the mounts below it.
    Top,
    /// Everything.
    Recursive,
}

/// A file system in the guest's memory, one for the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// A plain file name.
    pub name: String,
    /// The size in bytes.
    pub size: u64,
    /// The owner and mode of its root.
    pub owner: Owner,
    /// Whether set-user-id, devices and programs are disallowed, as in `/dev/shm`.
    pub strict: bool,
    /// The name of the volume that it is a copy of.
    pub copy_of: Option<String>,
}

/// A disk of the guest, whose image is in a folder of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScratchDisk {
    /// The same for all mounts that are on the disk.
    pub serial: String,
    /// The folder.
    pub folder: PathBuf,
}

/// A part of a volume that a container mounts by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// A plain file name, the same for all mounts of the part.
    pub name: String,
    /// The place of the volume in the guest.
    pub whole: PathBuf,
    /// The path in the volume, without links.
    pub path: PathBuf,
    /// The owner and mode of the folder, if the guest makes it where there is none: those of the
    /// folder that the kubelet made on the host.
    pub folder: Option<Owner>,
    /// Whether a mount that one container makes below it appears in the others
    /// (mount_namespaces(7)).
    pub shared: bool,
}

impl Part {
    /// Returns the part at a path of the volume whose place in the guest is `whole`.
    pub fn new(whole: PathBuf, path: PathBuf, folder: Option<Owner>) -> Self {
        Self {
            name: digest(format!("{whole:?} {path:?}").as_bytes()),
            whole,
            path,
            folder,
            shared: false,
        }
    }

    /// Returns all of a volume as a part in which mounts are shared.
    pub fn shared(whole: PathBuf) -> Self {
        Self {
            name: digest(format!("shared {whole:?}").as_bytes()),
            shared: true,
            ..Self::new(whole, PathBuf::new(), None)
        }
    }
}

/// Where a mount comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// The host.
    Host(Volume),
    /// A copy that follows the host's volume.
    Copy(Volume, Memory),
    /// The guest's memory.
    Memory(Memory),
    /// A disk of the guest, and the owner and mode that the volume has to begin with.
    Disk(ScratchDisk, Owner),
}

/// What is known, for its volumes, about the pod that a container is in.
#[derive(Debug)]
pub struct Pod<'a> {
    /// The container's role in the pod.
    pub role: &'a Role,
    /// The pod's uid in Kubernetes.
    pub uid: Option<&'a str>,
    /// What the shim found, by the source of the bind mount.
    pub found: &'a HashMap<PathBuf, Found>,
    /// The volumes that containers of the pod have mounted.
    pub mounted: &'a [Volume],
    /// Where the pod's emptyDirs are to be kept.
    pub scratch: Wanted,
}

impl Pod<'_> {
    /// Decides where a bind mount comes from, and returns the path in it. Fails if the pod asked
    /// for a disk that can't be.
    pub fn source_of(&self, mount: &Mount, source: &Path) -> Result<(Source, PathBuf)> {
        let parts = self.found.get(source).into_iter();
        let found = parts
            .flat_map(|found| &found.parts)
            .find_map(|(whole, path)| {
                if self.is_own_empty_dir(whole) {
                    let whole = self.whole(mount, whole);
                    return Some(whole.map(|whole| (whole, path.clone())));
                }
                let wanted = self.volume(mount, source);
                let mut mounted = self.mounted.iter();
                let fits = |volume: &&Volume| volume.source == *whole && volume.has_all_of(&wanted);
                Some(Ok((
                    Source::Host(mounted.find(fits)?.clone()),
                    path.clone(),
                )))
            });
        found.unwrap_or_else(|| Ok((self.whole(mount, source)?, PathBuf::new())))
    }

    /// Returns the owner that the source of a bind mount has in the guest, and its mode.
    pub fn owner_of(&self, mount: &Mount, source: &Path) -> Owner {
        let owner = self
            .found
            .get(source)
            .map_or_else(Owner::default, |found| found.owner);
        let Some(ids) = IdMap::of_mount(mount) else {
            return owner;
        };
        let (uid, gid) = ids.outside(owner.uid, owner.gid);
        Owner { uid, gid, ..owner }
    }

    /// Decides where a bind mount of a whole volume comes from.
    fn whole(&self, mount: &Mount, source: &Path) -> Result<Source> {
        let found = self.found.get(source).cloned().unwrap_or_default();
        let owner = self.owner_of(mount, source);
        if let Some(tmpfs) = &found.tmpfs {
            let shm = self.is_shm(mount, source);
            if shm || (self.is_own_empty_dir(source) && tmpfs.empty) {
                return Ok(Source::Memory(Memory {
                    name: match shm {
                        true => SHM.to_owned(),
                        false => digest(source.as_os_str().as_encoded_bytes()),
                    },
                    size: tmpfs.size,
                    owner,
                    strict: shm,
                    copy_of: None,
                }));
            }
        } else if self.is_own_empty_dir(source) && self.is_on_disk(source, found.fit)? {
            let disk = ScratchDisk {
                serial: serial(source),
                folder: source.to_owned(),
            };
            return Ok(Source::Disk(disk, owner));
        }
        let volume = self.volume(mount, source);
        // A container that may write to the volume means the host's.
        if !found.swapped || volume.read_only == ReadOnly::No {
            return Ok(Source::Host(volume));
        }
        let memory = Memory {
            name: volume.name.clone(),
            size: MAX_COPY,
            owner,
            strict: false,
            copy_of: Some(volume.name.clone()),
        };
        Ok(Source::Copy(volume, memory))
    }

    /// Whether an emptyDir is kept on a disk. What containers of the pod share stays shared.
    fn is_on_disk(&self, source: &Path, fit: Fit) -> Result<bool> {
        let shared = self.mounted.iter().any(|volume| volume.source == source);
        let fit = match shared {
            true => Fit::No("is shared by the pod's other containers already"),
            false => fit,
        };
        self.scratch
            .is_disk(fit, &format!("the emptyDir {}", source.display()))
    }

    /// Returns the volume that a bind mount of the host needs.
    fn volume(&self, mount: &Mount, source: &Path) -> Volume {
        let has = |name: &str| mount.options().iter().flatten().any(|o| o == name);
        let own_empty_dir = self.is_own_empty_dir(source);
        let recursive = own_empty_dir || has("rbind") || mount.typ().as_deref() == Some("rbind");
        let read_only = match (has("rro"), has("ro")) {
            _ if own_empty_dir => ReadOnly::No,
            (true, _) => ReadOnly::Recursive,
            (_, true) => ReadOnly::Top,
            _ => ReadOnly::No,
        };
        let follows_host = own_empty_dir || has("rslave") || has("slave");
        let ids = IdMap::of_mount(mount);
        let identity = self.found.get(source).map(|found| found.identity);
        let key =
            format!("{source:?} {identity:?} {recursive} {read_only:?} {follows_host} {ids:?}");
        let digest = digest(key.as_bytes());
        Volume {
            name: match own_empty_dir {
                true => format!("{OWN}{digest}"),
                false => digest,
            },
            source: source.to_owned(),
            recursive,
            read_only,
            follows_host,
            ids,
        }
    }

    /// Returns the pod's memory for a spec's own tmpfs at /dev/shm, which containerd leaves in the
    /// spec if it made none for the pod.
    pub fn own_shm(&self, mount: &Mount) -> Option<Memory> {
        let shm = mount.typ().as_deref() == Some("tmpfs")
            && mount.destination() == Path::new("/dev/shm")
            && *self.role != Role::Alone;
        let mut options = mount.options().iter().flatten();
        shm.then(|| Memory {
            name: SHM.to_owned(),
            size: options.find_map(|o| size(o)).unwrap_or(DEFAULT_SHM),
            owner: Owner {
                mode: 0o1777,
                ..Owner::default()
            },
            strict: true,
            copy_of: None,
        })
    }

    fn is_shm(&self, mount: &Mount, source: &Path) -> bool {
        let Role::Container { sandbox_id } = self.role else {
            return false;
        };
        let folder = Path::new("sandboxes").join(sandbox_id).join(SHM);
        mount.destination() == Path::new("/dev/shm") && source.ends_with(folder)
    }

    /// Whether mounts are shared between the containers that mount it like this one: it is an
    /// emptyDir of the pod.
    pub fn shares_mounts(&self, mount: &Mount, source: &Path) -> bool {
        let options = ["shared", "rshared", "slave", "rslave"];
        let mut given = mount.options().iter().flatten();
        given.any(|option| options.contains(&option.as_str())) && self.is_in_empty_dir(source)
    }

    /// Whether a path is an emptyDir of this pod or a part of one.
    pub fn is_in_empty_dir(&self, source: &Path) -> bool {
        let parts = self.found.get(source).into_iter();
        let mut wholes = parts.flat_map(|found| &found.parts);
        self.is_own_empty_dir(source) || wholes.any(|(whole, _)| self.is_own_empty_dir(whole))
    }

    /// Returns whether a path is an emptyDir of this pod: a hostPath may name another pod's.
    fn is_own_empty_dir(&self, source: &Path) -> bool {
        let kind = source.parent().unwrap_or(source);
        self.uid.is_some_and(|uid| kind.ends_with(empty_dirs(uid)))
    }
}

impl Volume {
    /// Whether what is mounted for this volume can stand for one that another mount needs.
    fn has_all_of(&self, wanted: &Volume) -> bool {
        let writable = self.read_only == ReadOnly::No;
        let recursive = self.recursive || !wanted.recursive;
        let follows = self.follows_host || !wanted.follows_host;
        (writable || self.read_only == wanted.read_only)
            && recursive
            && follows
            && self.ids == wanted.ids
    }
}

/// Returns the emptyDir of a pod that the source of a bind mount is a part of, if it is one:
/// `<kubelet>/pods/<uid>/volume-subpaths/<volume>/<container>/<number>` (Kubernetes,
/// pkg/volume/util/subpath). The volume of that name may be of another kind.
pub fn empty_dir_of(source: &Path, uid: &str) -> Option<PathBuf> {
    let volume = source.parent()?.parent()?;
    let pod = volume.parent()?.parent()?;
    let folder = Path::new("pods").join(uid);
    let is_part = volume.parent()?.ends_with(folder.join("volume-subpaths"));
    let kubelet = pod.parent()?.parent()?;
    let empty_dirs = kubelet.join(empty_dirs(uid));
    is_part.then_some(empty_dirs.join(volume.file_name()?))
}

/// Whether a folder is some pod's emptyDir.
pub fn is_empty_dir(folder: &Path) -> bool {
    folder
        .parent()
        .is_some_and(|parent| parent.ends_with(EMPTY_DIRS))
}

/// Returns the folder of a pod's emptyDirs below the kubelet's (Kubernetes, pkg/volume/emptydir).
fn empty_dirs(uid: &str) -> PathBuf {
    Path::new("pods").join(uid).join(EMPTY_DIRS)
}

/// Parses the `size` option of tmpfs(5), except for percentages.
fn size(option: &str) -> Option<u64> {
    let text = option.strip_prefix("size=")?;
    let (digits, shift) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Returns the serial of the disk in a folder, which has at most 20 bytes (virtio spec 5.2.6.2).
fn serial(folder: &Path) -> String {
    let digest = digest(folder.as_os_str().as_encoded_bytes());
    format!("s-{}", &digest[..16])
}

/// Returns a digest of the key as 32 hex digits.
fn digest(key: &[u8]) -> String {
    hex::encode(&Sha256::digest(key)[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use serde_json::json;

    const EMPTY_DIR: &str = "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/work";
    const SHM_SOURCE: &str = "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/s1/shm";

    fn mount(destination: &str, options: &[&str]) -> Mount {
        let value = json!({"destination": destination, "type": "bind", "options": options});
        serde_json::from_value(value).unwrap()
    }

    fn tmpfs(empty: bool) -> Found {
        Found {
            tmpfs: Some(Tmpfs {
                size: 1 << 20,
                empty,
            }),
            ..folder(0o777)
        }
    }

    fn folder(mode: u32) -> Found {
        Found {
            identity: (40, 1),
            owner: Owner {
                mode,
                uid: 0,
                gid: 2000,
            },
            ..Found::default()
        }
    }

    fn source(at: &str, source: &str, options: &[&str], found: Found) -> Source {
        let all = [(source.into(), found)].into();
        source_beside(&[], &mount(at, options), source, all).0
    }

    fn source_beside(
        mounted: &[Volume],
        mount: &Mount,
        source: &str,
        found: HashMap<PathBuf, Found>,
    ) -> (Source, PathBuf) {
        let role = Role::Container {
            sandbox_id: "s1".to_owned(),
        };
        let pod = Pod {
            role: &role,
            uid: Some("u1"),
            found: &found,
            mounted,
            scratch: Wanted::of(None, Scratch::Disk),
        };
        pod.source_of(mount, Path::new(source)).unwrap()
    }

    fn volume(path: &str, options: &[&str]) -> Volume {
        match source("/data", path, options, Found::default()) {
            Source::Host(volume) => volume,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn shm_of_the_pod_is_the_guests_memory() {
        let Source::Memory(memory) = source("/dev/shm", SHM_SOURCE, &["rbind"], tmpfs(false))
        else {
            panic!("not in memory");
        };
        assert_eq!(
            (memory.name.as_str(), memory.size, memory.strict),
            (SHM, 1 << 20, true)
        );
        let other = SHM_SOURCE.replace("s1", "s2");
        assert!(matches!(
            source("/dev/shm", &other, &[], tmpfs(true)),
            Source::Host(_)
        ));
    }

    #[test]
    fn shm_that_containerd_did_not_make_is_the_pods_all_the_same() {
        let value = json!({"destination": "/dev/shm", "type": "tmpfs", "options": ["nosuid", "size=65536k"]});
        let mount: Mount = serde_json::from_value(value).unwrap();
        let found = HashMap::new();
        let pod = |role| Pod {
            role,
            uid: None,
            found: &found,
            mounted: &[],
            scratch: Wanted::default(),
        };
        let role = Role::Container {
            sandbox_id: "s1".to_owned(),
        };
        assert_eq!(pod(&role).own_shm(&mount).unwrap().size, 64 << 20);
        assert_eq!(pod(&Role::Alone).own_shm(&mount), None);
    }

    #[test]
    fn empty_dir_in_memory_is_the_guests_memory_while_it_is_empty() {
        let found = |empty| source("/work", EMPTY_DIR, &["rbind", "rw"], tmpfs(empty));
        let Source::Memory(memory) = found(true) else {
            panic!("not in memory");
        };
        assert_eq!(
            (memory.owner.mode, memory.owner.gid, memory.strict),
            (0o777, 2000, false)
        );
        assert!(matches!(found(false), Source::Host(_)));
    }

    #[test]
    fn volume_that_is_swapped_as_a_whole_is_a_copy_unless_it_is_written() {
        let found = || Found {
            swapped: true,
            ..folder(0o2775)
        };
        let Source::Copy(volume, memory) = source("/c", "/srv/config", &["rbind", "ro"], found())
        else {
            panic!("no copy");
        };
        assert_eq!(
            (memory.copy_of, memory.owner.gid),
            (Some(volume.name), 2000)
        );
        assert!(matches!(
            source("/c", "/srv/config", &["rbind", "rw"], found()),
            Source::Host(_)
        ));
    }

    #[test]
    fn tmpfs_that_the_kubelet_fills_comes_from_the_host() {
        let secret = "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~secret/token";
        assert!(matches!(
            source("/s", secret, &["rbind", "ro"], tmpfs(true)),
            Source::Host(_)
        ));
    }

    #[test]
    fn readers_and_writers_of_an_empty_dir_share_one_place() {
        assert_eq!(
            volume(EMPTY_DIR, &["rbind", "ro"]),
            volume(EMPTY_DIR, &["rbind", "rw"])
        );
        let other = EMPTY_DIR.replace("u1", "u2");
        assert_eq!(volume(&other, &["rbind", "ro"]).read_only, ReadOnly::Top);
        assert_ne!(
            volume("/srv", &["rbind", "ro"]),
            volume("/srv", &["rbind", "rw"])
        );
    }

    const SUB_PATH: &str = "/var/lib/kubelet/pods/u1/volume-subpaths/work/app/0";

    fn part_of(whole: &str) -> Found {
        Found {
            parts: vec![(whole.into(), "a/b".into())],
            ..folder(0o750)
        }
    }

    #[test]
    fn sub_path_names_the_empty_dir_that_it_may_be_a_part_of() {
        let of = |path: &str| empty_dir_of(Path::new(path), "u1");
        assert_eq!(of(SUB_PATH), Some(EMPTY_DIR.into()));
        for other in [
            EMPTY_DIR,
            "/",
            "/var/lib/kubelet/pods/u2/volume-subpaths/work/app/0",
            "/var/lib/kubelet/pods/u1/volume-subpaths/work/0",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn part_of_an_empty_dir_is_in_the_place_of_the_whole() {
        for whole in [folder(0o777), tmpfs(true)] {
            let found = [
                (SUB_PATH.into(), part_of(EMPTY_DIR)),
                (EMPTY_DIR.into(), whole.clone()),
            ];
            let mount = mount("/work", &["bind", "ro"]);
            let (part, path) = source_beside(&[], &mount, SUB_PATH, found.into());
            assert_eq!(path, Path::new("a/b"));
            assert_eq!(part, source("/work", EMPTY_DIR, &["rbind", "rw"], whole));
        }
    }

    #[test]
    fn part_of_another_volume_is_in_the_place_of_a_whole_that_has_as_much() {
        let whole = volume("/srv", &["rbind", "rw"]);
        let source = |mounted: &Volume, options: &[&str]| {
            let found = [("/srv/a/b".into(), part_of("/srv"))].into();
            let mounted = std::slice::from_ref(mounted);
            source_beside(mounted, &mount("/work", options), "/srv/a/b", found)
        };
        for options in [["rbind", "ro"], ["bind", "rw"]] {
            let (place, path) = source(&whole, &options);
            assert_eq!(place, Source::Host(whole.clone()));
            assert_eq!(path, Path::new("a/b"));
        }
        let read_only = volume("/srv", &["rbind", "ro"]);
        for (mounted, options) in [
            (&read_only, &["rbind", "rw"][..]),
            (&whole, &["rbind", "rw", "rslave"][..]),
        ] {
            let (place, path) = source(mounted, options);
            assert!(matches!(place, Source::Host(own) if own.source == Path::new("/srv/a/b")));
            assert_eq!(path, PathBuf::new());
        }
    }

    fn free() -> Found {
        Found {
            fit: Fit::Free,
            ..folder(0o2775)
        }
    }

    #[test]
    fn empty_dir_that_is_kept_on_a_disk_has_the_owner_of_its_folder() {
        let Source::Disk(disk, owner) = source("/work", EMPTY_DIR, &["rbind", "rw"], free()) else {
            panic!("not on a disk");
        };
        assert_eq!(disk.folder, Path::new(EMPTY_DIR));
        assert!(disk.serial.len() <= 20);
        assert_eq!((owner.mode, owner.gid), (0o2775, 2000));
    }

    #[test]
    fn part_of_an_empty_dir_on_a_disk_is_on_that_disk() {
        let found = [
            (SUB_PATH.into(), part_of(EMPTY_DIR)),
            (EMPTY_DIR.into(), free()),
        ];
        let (part, path) = source_beside(&[], &mount("/work", &["bind"]), SUB_PATH, found.into());
        assert_eq!(path, Path::new("a/b"));
        assert_eq!(part, source("/work", EMPTY_DIR, &["rbind", "rw"], free()));
    }

    #[test]
    fn empty_dir_that_a_container_of_the_pod_shares_stays_shared() {
        let mounted = [volume(EMPTY_DIR, &["rbind", "rw"])];
        let found = [(EMPTY_DIR.into(), free())].into();
        let (place, _) = source_beside(&mounted, &mount("/work", &["rbind"]), EMPTY_DIR, found);
        assert!(matches!(place, Source::Host(_)));
    }

    #[test]
    fn empty_dir_of_another_pod_is_shared() {
        let other = EMPTY_DIR.replace("u1", "u2");
        assert!(matches!(
            source("/x", &other, &["rbind"], free()),
            Source::Host(_)
        ));
    }

    #[test]
    fn options_of_a_mount_are_kept() {
        assert_eq!(
            volume("/srv", &["rbind", "rro"]).read_only,
            ReadOnly::Recursive
        );
        assert!(volume("/srv", &["rbind", "rslave"]).follows_host);
        assert!(!volume("/srv", &["bind", "rprivate"]).recursive);
    }
}

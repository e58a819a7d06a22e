//! Decides where the bind mounts of a spec come from in the guest: from the host through the pod's
//! share, or from the guest's own memory.
//!
//! - `…/sandboxes/<sandbox>/shm` at `/dev/shm` (CRI's tmpfs of the pod): a tmpfs of the same size,
//!   one for the pod.
//! - An emptyDir of the pod with medium Memory, empty: a tmpfs of the same size, owner and mode,
//!   one for the pod.
//! - A small volume that the kubelet swaps as a whole (its link `..data`): a copy in memory that
//!   follows it, for inotify.
//! - An emptyDir of the pod: the share. Only the guest makes it read-only, so that it is one place
//!   for readers and writers.
//! - Anything else, including secrets and projected volumes, which the kubelet fills: the share,
//!   made read-only by the host.
//!
//! What two containers of a pod mount in the same way is one place in the guest, with the same
//! inodes, so sockets and locks work across it. An emptyDir in memory that is not empty was filled
//! on the host (a subPath is a folder there), so it is shared like one on disk.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Mount;
use sha2::{Digest, Sha256};

use crate::{IdMap, Role};

/// The name of the memory that is mounted at `/dev/shm`.
pub const SHM: &str = "shm";
/// Size of a pod's /dev/shm if the host has none to copy, in bytes (containerd, `defaultShmSize`).
const DEFAULT_SHM: u64 = 64 << 20;

/// The most that a copy of a volume may hold, old and new version together, in bytes. A Kubernetes
/// object has at most 1 MiB; a projected volume has several.
pub const MAX_COPY: u64 = 32 << 20;

/// What the shim has found at the source of a bind mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Device and inode from stat(2): a path that becomes something else becomes another volume.
    pub identity: (u64, u64),
    /// Set if the source is the root of a tmpfs.
    pub tmpfs: Option<Tmpfs>,
    /// Set if the kubelet's atomic writer wrote the volume and it is small: the folder's owner and
    /// mode.
    pub swapped: Option<Owner>,
    /// The file system, such as `proc`, if the host's kernel makes up its files when they are read.
    pub made_up: Option<&'static str>,
}

/// The owner and mode of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Whether it is empty.
    pub empty: bool,
    /// Permission bits of its root.
    pub mode: u32,
    /// Owner of its root.
    pub uid: u32,
    /// Group of its root.
    pub gid: u32,
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
    /// Permission bits of its root.
    pub mode: u32,
    /// Owner of its root.
    pub uid: u32,
    /// Group of its root.
    pub gid: u32,
    /// Whether set-user-id, devices and programs are disallowed, as in `/dev/shm`.
    pub strict: bool,
    /// The name of the volume that it is a copy of.
    pub copy_of: Option<String>,
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
}

impl Pod<'_> {
    /// Decides where a bind mount comes from.
    pub fn source_of(&self, mount: &Mount, source: &Path) -> Source {
        let has = |name: &str| mount.options().iter().flatten().any(|o| o == name);
        let found = self.found.get(source).cloned().unwrap_or_default();
        let ids = IdMap::of_mount(mount);
        let owner = |uid, gid| ids.as_ref().map_or((uid, gid), |ids| ids.outside(uid, gid));
        let own_empty_dir = self.is_own_empty_dir(source);
        if let Some(tmpfs) = &found.tmpfs {
            let shm = self.is_shm(mount, source);
            if shm || (own_empty_dir && tmpfs.empty) {
                let (uid, gid) = owner(tmpfs.uid, tmpfs.gid);
                return Source::Memory(Memory {
                    name: match shm {
                        true => SHM.to_owned(),
                        false => digest(source.as_os_str().as_encoded_bytes()),
                    },
                    size: tmpfs.size,
                    mode: tmpfs.mode,
                    uid,
                    gid,
                    strict: shm,
                    copy_of: None,
                });
            }
        }
        let recursive = has("rbind") || mount.typ().as_deref() == Some("rbind");
        let read_only = match (has("rro"), has("ro")) {
            _ if own_empty_dir => ReadOnly::No,
            (true, _) => ReadOnly::Recursive,
            (_, true) => ReadOnly::Top,
            _ => ReadOnly::No,
        };
        let follows_host = has("rslave") || has("slave");
        let identity = found.identity;
        let key =
            format!("{source:?} {identity:?} {recursive} {read_only:?} {follows_host} {ids:?}");
        let volume = Volume {
            name: digest(key.as_bytes()),
            source: source.to_owned(),
            recursive,
            read_only,
            follows_host,
            ids: ids.clone(),
        };
        let swapped = found.swapped.map(|folder| Owner {
            uid: owner(folder.uid, folder.gid).0,
            gid: owner(folder.uid, folder.gid).1,
            ..folder
        });
        match swapped {
            // A container that may write to the volume means the host's.
            Some(owner) if read_only != ReadOnly::No => Source::Copy(
                volume.clone(),
                Memory {
                    name: volume.name.clone(),
                    size: MAX_COPY,
                    mode: owner.mode,
                    uid: owner.uid,
                    gid: owner.gid,
                    strict: false,
                    copy_of: Some(volume.name),
                },
            ),
            _ => Source::Host(volume),
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
            mode: 0o1777,
            uid: 0,
            gid: 0,
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

    /// Returns whether a path is `<kubelet>/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>`
    /// (Kubernetes, pkg/volume/emptydir) of this pod: a hostPath may name another pod's.
    fn is_own_empty_dir(&self, source: &Path) -> bool {
        let kind = source.parent().unwrap_or(source);
        self.uid.filter(|uid| !uid.is_empty()).is_some_and(|uid| {
            let parts = Path::new("pods").join(uid).join("volumes");
            kind.ends_with(parts.join("kubernetes.io~empty-dir"))
        })
    }
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

/// Returns a digest of the key as 32 hex digits.
fn digest(key: &[u8]) -> String {
    hex::encode(&Sha256::digest(key)[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const EMPTY_DIR: &str = "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/work";
    const SHM_SOURCE: &str = "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/s1/shm";

    fn mount(destination: &str, options: &[&str]) -> Mount {
        let value = json!({"destination": destination, "type": "bind", "options": options});
        serde_json::from_value(value).unwrap()
    }

    fn tmpfs(empty: bool) -> Found {
        Found {
            identity: (40, 1),
            swapped: None,
            made_up: None,
            tmpfs: Some(Tmpfs {
                size: 1 << 20,
                empty,
                mode: 0o777,
                uid: 0,
                gid: 2000,
            }),
        }
    }

    fn source(at: &str, source: &str, options: &[&str], found: Found) -> Source {
        let role = Role::Container {
            sandbox_id: "s1".to_owned(),
        };
        let pod = Pod {
            role: &role,
            uid: Some("u1"),
            found: &HashMap::from([(source.into(), found)]),
        };
        pod.source_of(&mount(at, options), Path::new(source))
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
            (memory.mode, memory.gid, memory.strict),
            (0o777, 2000, false)
        );
        assert!(matches!(found(false), Source::Host(_)));
    }

    #[test]
    fn volume_that_is_swapped_as_a_whole_is_a_copy_unless_it_is_written() {
        let owner = Owner {
            mode: 0o2775,
            uid: 0,
            gid: 2000,
        };
        let found = || Found {
            swapped: Some(owner),
            ..Found::default()
        };
        let Source::Copy(volume, memory) = source("/c", "/srv/config", &["rbind", "ro"], found())
        else {
            panic!("no copy");
        };
        assert_eq!((memory.copy_of, memory.gid), (Some(volume.name), 2000));
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

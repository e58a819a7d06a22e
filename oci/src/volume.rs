//! Where the bind mounts of a spec come from in the guest: from the host through the pod's share, or from the guest's own memory.
//!
//! | source on the host | in the guest |
//! |---|---|
//! | `…/sandboxes/<sandbox>/shm` at `/dev/shm` (CRI's tmpfs of the pod) | a tmpfs of the same size, one for the pod |
//! | an emptyDir of the pod with medium Memory, empty | a tmpfs of the same size, owner and mode, one for the pod |
//! | a volume that the kubelet swaps as a whole (its link `..data`) and that is small | a copy in memory that follows it, for inotify |
//! | an emptyDir of the pod | the share; read-only by the guest alone, so that it is one place for readers and writers |
//! | anything else, secrets and projected volumes too, which the kubelet fills | the share, read-only by the host |
//!
//! What two containers of a pod mount in the same way is one place in the guest, with the same inodes: sockets and locks work
//! across it. An emptyDir in memory that has something in it was filled on the host (a subPath is a folder there), so it is
//! shared like one on disk.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Mount;
use sha2::{Digest, Sha256};

use crate::{IdMap, Role};

/// The name of the memory that is at `/dev/shm`.
pub const SHM: &str = "shm";
/// Size of a pod's /dev/shm where the host has none to copy, in bytes (containerd, `defaultShmSize`).
const DEFAULT_SHM: u64 = 64 << 20;

/// What a copy of a volume may hold, old and new version at once, in bytes. An object of Kubernetes has 1 MiB at most, a
/// projected volume has several.
pub const MAX_COPY: u64 = 32 << 20;

/// What the shim has found at the source of a bind mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// stat(2)'s device and inode: a path that becomes something else becomes another volume.
    pub identity: (u64, u64),
    /// It is the root of a tmpfs.
    pub tmpfs: Option<Tmpfs>,
    /// The kubelet's atomic writer has written it, and it is small: the owner and mode of the folder.
    pub swapped: Option<Owner>,
}

/// Of a folder.
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
    /// Nothing is in it.
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
    /// The same for whatever shall be one place, a plain file name.
    pub name: String,
    /// On the host, as the spec says it.
    pub source: PathBuf,
    /// With the mounts below it.
    pub recursive: bool,
    /// Enforced on the host, too.
    pub read_only: ReadOnly,
    /// What the host mounts below it later appears in the guest (`HostToContainer`).
    pub follows_host: bool,
    /// The owners of its files are others than on the host.
    pub ids: Option<IdMap>,
}

/// How much of a volume is read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOnly {
    /// Nothing.
    No,
    /// It, but not the mounts below it.
    Top,
    /// Everything.
    Recursive,
}

/// A file system in the guest's memory, one for the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// A plain file name.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Permission bits of its root.
    pub mode: u32,
    /// Owner of its root.
    pub uid: u32,
    /// Group of its root.
    pub gid: u32,
    /// Without set-user-id, devices and programs, as `/dev/shm` is.
    pub strict: bool,
    /// The name of the volume that it is a copy of.
    pub copy_of: Option<String>,
}

/// Where a mount comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// The host.
    Host(Volume),
    /// A copy that follows the host's.
    Copy(Volume, Memory),
    /// The guest's memory.
    Memory(Memory),
}

/// The pod that a container is in, as far as volumes tell.
#[derive(Debug)]
pub struct Pod<'a> {
    /// What the container is to it.
    pub role: &'a Role,
    /// Kubernetes' uid.
    pub uid: Option<&'a str>,
    /// By the source of the bind mount.
    pub found: &'a HashMap<PathBuf, Found>,
}

impl Pod<'_> {
    /// Where a bind mount comes from.
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
            // Who may write into it means the host's.
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

    /// The pod's memory for a tmpfs of the spec's own at /dev/shm: what containerd leaves if it made none for the pod.
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

    /// `<kubelet>/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>` (Kubernetes, pkg/volume/emptydir). Of this pod: a
    /// hostPath may name another's.
    fn is_own_empty_dir(&self, source: &Path) -> bool {
        let kind = source.parent().unwrap_or(source);
        self.uid.filter(|uid| !uid.is_empty()).is_some_and(|uid| {
            let parts = Path::new("pods").join(uid).join("volumes");
            kind.ends_with(parts.join("kubernetes.io~empty-dir"))
        })
    }
}

/// tmpfs(5)'s `size`, but for its percent.
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

/// 32 hex digits.
fn digest(key: &[u8]) -> String {
    let hash = Sha256::digest(key);
    hash.iter().take(16).map(|b| format!("{b:02x}")).collect()
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

//! Looks up what is at the sources of a spec's bind mounts on the host. The crate `oci` needs to
//! know this, but does no I/O and so can't look it up itself.

use std::{
    cell::LazyCell,
    collections::{BTreeSet, HashMap},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use caisson_node::host::{
    error::{FileError, OnFile},
    folder::{descriptor_path, Folder},
    mount_table::MountTable,
};
use caisson_oci::{
    scratch::Fit,
    volume::{self, Found, Owner, Tmpfs, MAX_COPY},
};
use nix::sys::statfs::{
    statfs, FsType, BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, CGROUP_SUPER_MAGIC, DEBUGFS_MAGIC,
    PROC_SUPER_MAGIC, SECURITYFS_MAGIC, SYSFS_MAGIC, TMPFS_MAGIC, TRACEFS_MAGIC,
};
use rustix::fs::FileType;

use crate::scratch;

/// The deepest nesting of folders in a volume that the kubelet swaps. The paths in a projected
/// volume have only a few parts.
const MAX_DEPTH: usize = 16;

/// The most folders in a folder of an emptyDir in which nothing was written. There is one
/// for each `subPath`.
const MAX_FOLDERS: usize = 1000;

/// The file systems whose files the host's kernel makes up when they are read.
const MADE_UP: [(FsType, &str); 8] = [
    (BPF_FS_MAGIC, "bpf"),
    (CGROUP_SUPER_MAGIC, "cgroup"),
    (CGROUP2_SUPER_MAGIC, "cgroup2"),
    (DEBUGFS_MAGIC, "debugfs"),
    (PROC_SUPER_MAGIC, "proc"),
    (SECURITYFS_MAGIC, "securityfs"),
    (SYSFS_MAGIC, "sysfs"),
    (TRACEFS_MAGIC, "tracefs"),
];

/// Looks at each source, and finds those that are parts of `wholes`, of which some may not exist.
/// Runs off the shim's only thread, since a pod may have created many files there. Fails if a
/// source does not exist.
pub async fn look(
    sources: BTreeSet<PathBuf>,
    wholes: BTreeSet<PathBuf>,
) -> Result<HashMap<PathBuf, Found>, FileError> {
    let looking = move || {
        let mut all = sources.into_iter().map(look_at).collect::<Result<_, _>>()?;
        find_parts(&mut all, wholes);
        Ok(all)
    };
    let looked = tokio::task::spawn_blocking(looking).await;
    looked.unwrap_or_else(|error| {
        Err(FileError::file("look at", "the volumes")(
            std::io::Error::other(error),
        ))
    })
}

fn look_at(source: PathBuf) -> Result<(PathBuf, Found), FileError> {
    let failed = || FileError::file("mount volume", &source);
    let metadata = fs::metadata(&source).map_err(failed())?;
    let mut found = Found {
        identity: (metadata.dev(), metadata.ino()),
        owner: Owner {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        },
        ..Found::default()
    };
    let file_system = statfs(&source).map_err(|error| failed()(error.into()))?;
    let kind = file_system.filesystem_type();
    found.made_up = MADE_UP
        .iter()
        .find_map(|(made_up, name)| (*made_up == kind).then_some(*name));
    let swapped = fs::symlink_metadata(source.join("..data")).is_ok_and(|data| data.is_symlink());
    // The old and the new version exist at the same time, and the other half of the space is left
    // for what the folders take.
    let small = || size_below(&Folder::open(&source).ok()?, MAX_COPY / 4, MAX_DEPTH);
    found.swapped = swapped && small().is_some();
    let parent = source.parent().unwrap_or(&source);
    let is_root = fs::metadata(parent).is_ok_and(|parent| parent.dev() != metadata.dev());
    if metadata.is_dir() && is_root && kind == TMPFS_MAGIC {
        let root = Folder::open(&source).map_err(failed())?;
        found.tmpfs = Some(Tmpfs {
            size: file_system.blocks() * file_system.block_size() as u64,
            empty: has_folders_alone(&root, MAX_DEPTH),
        });
    }
    if metadata.is_dir() && volume::is_empty_dir(&source) {
        let folder = Folder::open(&source).map_err(failed())?;
        found.fit = match is_root {
            true => Fit::No("is a file system of its own"),
            false => fit(&folder),
        };
    }
    Ok((source, found))
}

/// Whether an emptyDir can be kept on a disk. Files on the host would not be there, but the folders
/// that the kubelet makes for a `subPath` are made in the guest, too.
fn fit(folder: &Folder) -> Fit {
    match (
        scratch::is_there(folder),
        has_folders_alone(folder, MAX_DEPTH),
    ) {
        (true, _) => Fit::Made,
        (false, true) => Fit::Free,
        (false, false) => Fit::No("has files on the host already"),
    }
}

/// Finds which sources are in one of the folders `wholes`, on whatever path they come here: the
/// kubelet mounts the folder of a `subPath` at a place of its own.
fn find_parts(all: &mut HashMap<PathBuf, Found>, wholes: BTreeSet<PathBuf>) {
    let mut folders = Vec::new();
    for whole in wholes {
        // What was mounted may be gone by now, and the volume of a sub path may be of another kind.
        let Ok((whole, found)) = look_at(whole) else {
            continue;
        };
        if !found.swapped {
            folders.push((whole, found));
        }
    }
    // Few containers mount a volume that another one has, and a node may have many mounts.
    let table = LazyCell::new(|| MountTable::read().unwrap_or_default());
    for (source, found) in all.iter_mut() {
        let device = found.identity.0;
        let candidates = folders
            .iter()
            .filter(|(_, whole)| whole.identity.0 == device);
        for (whole, of_whole) in candidates {
            if let Some(path) = path_in(whole, of_whole, source, found, &table) {
                found.parts.push((whole.clone(), path));
            }
        }
    }
    for (whole, found) in folders {
        all.entry(whole).or_insert(found);
    }
}

/// Returns the path of a file or folder in a folder `whole`, or `None` if it is not in it.
fn path_in(
    whole: &Path,
    of_whole: &Found,
    source: &Path,
    found: &Found,
    table: &MountTable,
) -> Option<PathBuf> {
    if of_whole.identity == found.identity {
        return Some(PathBuf::new());
    }
    let inside = table.place(source)?;
    let path = inside.strip_prefix(table.place(whole)?).ok()?;
    path.to_str()?;
    // Something else may be mounted over it.
    let there = Folder::open(whole).ok()?.place(path).ok()?;
    let there = fs::metadata(descriptor_path(&there)).ok()?;
    ((there.dev(), there.ino()) == found.identity).then(|| path.to_owned())
}

/// Whether there is nothing but folders in a folder, which may be nested `depth` times. A pod may
/// have made many of them.
fn has_folders_alone(folder: &Folder, depth: usize) -> bool {
    let Ok(mut entries) = folder.entries() else {
        return false;
    };
    let mut all = entries.by_ref().take(MAX_FOLDERS);
    let folders = all.all(|entry| {
        let Ok((name, FileType::Directory)) = entry else {
            return false;
        };
        let below = folder.folder(name);
        depth > 0 && below.is_ok_and(|below| has_folders_alone(&below, depth - 1))
    });
    folders && entries.next().is_none()
}

/// Returns the total size of the files below a folder, where each folder and each file smaller than
/// 1 KiB counts as 1 KiB. Returns `None` if the total is above `most`, or if folders are nested
/// deeper than the kubelet makes them, since the pod may have filled the volume.
fn size_below(folder: &Folder, most: u64, depth: usize) -> Option<u64> {
    let mut sum = 0;
    for entry in folder.entries().ok()? {
        let (name, kind) = entry.ok()?;
        sum += match kind {
            FileType::Directory => {
                let below = folder.folder(name).ok()?;
                1024 + size_below(&below, most.checked_sub(sum)?, depth.checked_sub(1)?)?
            }
            _ => folder.length(name).ok()?.max(1024),
        };
        if sum > most {
            return None;
        }
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{mount, umount2, MntFlags, MsFlags};

    async fn look_at_one(source: &Path) -> Found {
        let only = [source.to_owned()].into();
        let found = look(only, BTreeSet::new()).await.unwrap();
        found[source].clone()
    }

    #[tokio::test]
    async fn tmpfs_is_found_with_its_size_and_owner_and_a_folder_in_it_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let options = "size=1m,mode=2770,gid=2000";
        mount(
            None::<&str>,
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        )
        .unwrap();
        let root = look_at_one(dir.path()).await;
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let with_folder = look_at_one(dir.path()).await;
        let folder = look_at_one(&sub).await;
        fs::write(sub.join("file"), "").unwrap();
        let filled = look_at_one(dir.path()).await;
        umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
        let expected = Tmpfs {
            size: 1 << 20,
            empty: true,
        };
        assert_eq!(root.tmpfs.as_ref(), Some(&expected));
        assert_eq!((root.owner.mode, root.owner.gid), (0o2770, 2000));
        assert_eq!(with_folder.tmpfs, Some(expected));
        assert!(!filled.tmpfs.unwrap().empty);
        assert_eq!(folder.tmpfs, None);
    }

    /// The kubelet mounts the folder of a `subPath` elsewhere.
    #[tokio::test]
    async fn folder_that_is_mounted_elsewhere_is_a_part_of_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, part, other) = (
            dir.path().join("volume"),
            dir.path().join("part"),
            dir.path().join("other"),
        );
        for folder in [volume.join("a/b").as_path(), &part, &other] {
            fs::create_dir_all(folder).unwrap();
        }
        let none = None::<&str>;
        mount(
            Some(&volume.join("a/b")),
            &part,
            none,
            MsFlags::MS_BIND,
            none,
        )
        .unwrap();
        let sources = [part.clone(), other.clone(), volume.clone()].into();
        let found = look(sources, [volume.clone(), dir.path().join("none")].into()).await;
        umount2(&part, MntFlags::MNT_DETACH).unwrap();
        let found = found.unwrap();
        assert_eq!(found[&part].parts, [(volume.clone(), "a/b".into())]);
        assert_eq!(found[&volume].parts, [(volume.clone(), "".into())]);
        assert_eq!(found[&other].parts, []);
    }

    #[tokio::test]
    async fn source_that_is_not_there_is_named() {
        let only = [PathBuf::from("/nosuch/dir")].into();
        let error = look(only, BTreeSet::new()).await.unwrap_err();
        assert!(error.to_string().contains("/nosuch/dir"), "{error}");
    }

    #[tokio::test]
    async fn volume_in_which_a_pod_made_many_folders_is_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("..1", dir.path().join("..data")).unwrap();
        let copied = async || look_at_one(dir.path()).await.swapped;
        assert!(copied().await);
        let mut deep = dir.path().to_owned();
        for _ in 0..=MAX_DEPTH {
            deep.push("d");
            fs::create_dir(&deep).unwrap();
        }
        assert!(!copied().await);
        fs::remove_dir_all(dir.path().join("d")).unwrap();
        assert!(copied().await);
        for number in 0..MAX_COPY / 4 / 1024 + 1 {
            fs::create_dir(dir.path().join(number.to_string())).unwrap();
        }
        assert!(!copied().await);
    }
}

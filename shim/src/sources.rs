//! Looks up what is at the sources of a spec's bind mounts on the host. The crate `oci` needs to
//! know this, but does no I/O and so can't look it up itself.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use caisson_node::host::{
    error::{FileError, OnFile},
    folder::Folder,
};
use caisson_oci::volume::{Found, Owner, Tmpfs, MAX_COPY};
use nix::sys::statfs::{
    statfs, FsType, BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, CGROUP_SUPER_MAGIC, DEBUGFS_MAGIC,
    PROC_SUPER_MAGIC, SECURITYFS_MAGIC, SYSFS_MAGIC, TMPFS_MAGIC, TRACEFS_MAGIC,
};
use rustix::fs::FileType;

/// The deepest nesting of folders in a volume that the kubelet swaps. The paths in a projected
/// volume have only a few parts.
const MAX_DEPTH: usize = 16;

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

/// Looks at each source. Runs off the shim's only thread, since a pod may have created many files
/// there. Fails if a source does not exist.
pub async fn look(sources: BTreeSet<PathBuf>) -> Result<HashMap<PathBuf, Found>, FileError> {
    let looking = move || sources.into_iter().map(look_at).collect();
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
        tmpfs: None,
        swapped: None,
        made_up: None,
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
    if swapped && small().is_some() {
        found.swapped = Some(Owner {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
    }
    let parent = source.parent().unwrap_or(&source);
    let is_root = fs::metadata(parent).is_ok_and(|parent| parent.dev() != metadata.dev());
    if metadata.is_dir() && is_root && kind == TMPFS_MAGIC {
        let mut entries = fs::read_dir(&source).map_err(failed())?;
        found.tmpfs = Some(Tmpfs {
            size: file_system.blocks() * file_system.block_size() as u64,
            empty: entries.next().is_none(),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
    }
    Ok((source, found))
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
    use std::path::Path;

    fn only(source: &Path) -> BTreeSet<PathBuf> {
        [source.to_owned()].into()
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
        let root = look(only(dir.path()))
            .await
            .unwrap()
            .remove(dir.path())
            .unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let filled = look(only(dir.path()))
            .await
            .unwrap()
            .remove(dir.path())
            .unwrap();
        let folder = look(only(&sub)).await.unwrap().remove(&sub).unwrap();
        umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
        let expected = Tmpfs {
            size: 1 << 20,
            empty: true,
            mode: 0o2770,
            uid: 0,
            gid: 2000,
        };
        assert_eq!(root.tmpfs, Some(expected));
        assert!(!filled.tmpfs.unwrap().empty);
        assert_eq!(folder.tmpfs, None);
    }

    #[tokio::test]
    async fn source_that_is_not_there_is_named() {
        let error = look(only(Path::new("/nosuch/dir"))).await.unwrap_err();
        assert!(error.to_string().contains("/nosuch/dir"), "{error}");
    }

    #[tokio::test]
    async fn volume_in_which_a_pod_made_many_folders_is_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("..1", dir.path().join("..data")).unwrap();
        let copied = async || {
            look(only(dir.path())).await.unwrap()[dir.path()]
                .swapped
                .is_some()
        };
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

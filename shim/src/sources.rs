//! What is at the sources of a spec's bind mounts, on the host: what `oci` needs to know and, having no I/O, can't look up.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use caisson_oci::{
    spec::Spec,
    volume::{Found, Owner, Tmpfs, MAX_COPY},
};
use nix::sys::statfs::{statfs, TMPFS_MAGIC};

use crate::error::{Error, Result};

/// Looks at each source. One that is not there fails.
pub fn look(spec: &Spec) -> Result<HashMap<PathBuf, Found>> {
    let mut found = HashMap::new();
    for mount in spec.mounts().iter().flatten() {
        let mut options = mount.options().iter().flatten();
        let bind = options.any(|o| o == "bind" || o == "rbind");
        let bind = bind || matches!(mount.typ().as_deref(), Some("bind" | "rbind"));
        if let (true, Some(source)) = (bind, mount.source()) {
            if source.is_absolute() && !found.contains_key(source) {
                found.insert(source.clone(), look_at(source)?);
            }
        }
    }
    Ok(found)
}

fn look_at(source: &Path) -> Result<Found> {
    let failed = || Error::file("mount volume", source);
    let metadata = fs::metadata(source).map_err(failed())?;
    let mut found = Found {
        identity: (metadata.dev(), metadata.ino()),
        tmpfs: None,
        swapped: None,
    };
    let swapped = fs::symlink_metadata(source.join("..data")).is_ok_and(|data| data.is_symlink());
    // Old and new version are there at once, and as much again is left for what the folders take.
    if swapped && size_below(source, MAX_COPY / 4).is_some() {
        found.swapped = Some(Owner {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
    }
    let parent = source.parent().unwrap_or(source);
    let is_root = fs::metadata(parent).is_ok_and(|parent| parent.dev() != metadata.dev());
    if metadata.is_dir() && is_root {
        let file_system = statfs(source).map_err(|error| failed()(error.into()))?;
        if file_system.filesystem_type() == TMPFS_MAGIC {
            let mut entries = fs::read_dir(source).map_err(failed())?;
            found.tmpfs = Some(Tmpfs {
                size: file_system.blocks() * file_system.block_size() as u64,
                empty: entries.next().is_none(),
                mode: metadata.mode() & 0o7777,
                uid: metadata.uid(),
                gid: metadata.gid(),
            });
        }
    }
    Ok(found)
}

/// The sizes of the files below a folder; none if they, or their number in KiB, are above `most`.
fn size_below(dir: &Path, most: u64) -> Option<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let metadata = entry.metadata().ok()?;
        sum += match metadata.is_dir() {
            true => size_below(&entry.path(), most - sum)?,
            false => metadata.len().max(1024),
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

    fn spec(source: &Path) -> Spec {
        let mounts =
            serde_json::json!([{"destination": "/data", "source": source, "options": ["rbind"]}]);
        serde_json::from_value(serde_json::json!({"ociVersion": "1.1.0", "mounts": mounts}))
            .unwrap()
    }

    #[test]
    fn tmpfs_is_found_with_its_size_and_owner_and_a_folder_in_it_is_none() {
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
        let root = look(&spec(dir.path())).unwrap().remove(dir.path()).unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let filled = look(&spec(dir.path())).unwrap().remove(dir.path()).unwrap();
        let folder = look(&spec(&sub)).unwrap().remove(&sub).unwrap();
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

    #[test]
    fn source_that_is_not_there_is_named() {
        let error = look(&spec(Path::new("/nosuch/dir"))).unwrap_err();
        assert!(error.to_string().contains("/nosuch/dir"), "{error}");
    }
}

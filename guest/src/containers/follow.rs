//! Keeps copies, in the guest's memory, of volumes that the kubelet swaps as a whole (configMap,
//! secret, projected, downward API).
//!
//! On a share, the guest sees a change of the host but gets no notice of it: the kernel raises
//! inotify events only for changes that are made through it. So such a volume is copied and checked
//! twice a second. A change is swapped in here as the kubelet does it on the host (Kubernetes,
//! pkg/volume/util/atomic_writer.go): all files lie in a folder `..<time>`, the link `..data` to it
//! is replaced by a rename, and users see links that lead through `..data`.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fs, io,
    os::unix::fs::{chown, lchown, symlink, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use caisson_protocol::{agent::Memory, path::MEMORY};
use tokio::task::AbortHandle;

use super::memory;
use crate::{kernel::mounts, Error, Result};

/// How often the volumes are checked. A change arrives within this period plus the second for which
/// a share's entries are cached.
const PERIOD: Duration = Duration::from_millis(500);
const DATA: &str = "..data";
const NEXT: &str = "..data_next";
/// How deep folders of a volume may be nested.
const MAX_DEPTH: u32 = 16;

/// The copies that containers use. Clones share the same copies.
#[derive(Clone, Default)]
pub struct Followed {
    copies: Arc<Mutex<HashMap<String, Copy>>>,
}

struct Copy {
    users: BTreeSet<String>,
    watching: AbortHandle,
}

impl Followed {
    /// Makes a copy for a container, or uses the one that exists.
    pub fn add(&self, container: &str, volume: &Memory) -> Result<()> {
        memory::mount(volume)?;
        let mut copies = self.lock();
        if let Some(copy) = copies.get_mut(&volume.name) {
            copy.users.insert(container.to_string());
            return Ok(());
        }
        let (from, to) = (PathBuf::from(&volume.copy_of), place(&volume.name));
        sync(&from, &to).map_err(Error::file("copy volume", &from))?;
        let watching = tokio::spawn(watch(from, to)).abort_handle();
        let users = BTreeSet::from([container.to_string()]);
        copies.insert(volume.name.clone(), Copy { users, watching });
        Ok(())
    }

    /// Forgets a container. A copy that no other container uses is removed.
    pub fn remove(&self, container: &str) -> Result<()> {
        let mut unused = Vec::new();
        self.lock().retain(|name, copy| {
            if copy.users.remove(container) && copy.users.is_empty() {
                copy.watching.abort();
                unused.push(name.clone());
            }
            !copy.users.is_empty()
        });
        for name in unused {
            mounts::unmount(&place(&name))?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Copy>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(name: &str) -> PathBuf {
    Path::new(MEMORY).join(name)
}

async fn watch(from: PathBuf, to: PathBuf) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let (source, copy) = (from.clone(), to.clone());
        let synced = tokio::task::spawn_blocking(move || match changed(&source, &copy)? {
            true => sync(&source, &copy),
            false => Ok(()),
        });
        // The kubelet may be changing the volume right now; the next round sees the whole change.
        if let Ok(Err(error)) = synced.await {
            log::debug!(path = from.display().to_string(), error:%; "volume not copied");
        }
    }
}

fn changed(from: &Path, to: &Path) -> io::Result<bool> {
    let version = |dir: &Path| fs::read_link(dir.join(DATA));
    Ok(version(from)? != version(to)? || names(from)? != names(to)?)
}

/// Brings a copy up to date: copies what is new, swaps, then removes what is gone.
fn sync(from: &Path, to: &Path) -> io::Result<()> {
    let (wanted, there) = (names(from)?, names(to)?);
    for name in wanted.difference(&there).filter(|name| *name != DATA) {
        copy(&from.join(name), &to.join(name), MAX_DEPTH)?;
    }
    let version = fs::read_link(from.join(DATA))?;
    if fs::read_link(to.join(DATA)).ok().as_ref() != Some(&version) {
        symlink(&version, to.join(NEXT))?;
        fs::rename(to.join(NEXT), to.join(DATA))?;
    }
    for name in there.difference(&wanted) {
        let path = to.join(name);
        match fs::symlink_metadata(&path)?.is_dir() {
            true => fs::remove_dir_all(path)?,
            false => fs::remove_file(path)?,
        }
    }
    Ok(())
}

fn names(dir: &Path) -> io::Result<BTreeSet<OsString>> {
    let entries = fs::read_dir(dir)?;
    entries.map(|entry| Ok(entry?.file_name())).collect()
}

/// Copies a file, link or folder with its owner and mode. Removes what a failure leaves behind.
fn copy(from: &Path, to: &Path, depth: u32) -> io::Result<()> {
    let copied = copy_entry(from, to, depth);
    if copied.is_err() {
        // If anything remains, the next round fails and reports it.
        let _ = fs::remove_dir_all(to).or_else(|_| fs::remove_file(to));
    }
    copied
}

fn copy_entry(from: &Path, to: &Path, depth: u32) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    let owner = (Some(metadata.uid()), Some(metadata.gid()));
    if metadata.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return lchown(to, owner.0, owner.1);
    }
    if metadata.is_dir() {
        if depth == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        fs::create_dir(to)?;
        for name in names(from)? {
            copy_entry(&from.join(&name), &to.join(&name), depth - 1)?;
        }
    } else if metadata.is_file() {
        fs::copy(from, to)?;
    } else {
        return Ok(());
    }
    chown(to, owner.0, owner.1)?;
    // Set after the owner, since changing the owner clears the set-group-id bit.
    fs::set_permissions(to, metadata.permissions())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Writes a version of a volume with one key as the kubelet does.
    fn write(volume: &Path, version: &str, key: &str, text: &str) {
        fs::create_dir(volume.join(version)).unwrap();
        fs::write(volume.join(version).join(key), text).unwrap();
        fs::set_permissions(
            volume.join(version).join(key),
            fs::Permissions::from_mode(0o440),
        )
        .unwrap();
        symlink(version, volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join(DATA)).unwrap();
        if !volume.join(key).is_symlink() {
            symlink(format!("..data/{key}"), volume.join(key)).unwrap();
        }
    }

    #[test]
    fn copy_follows_a_swap_and_drops_what_is_gone() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) = (from.path(), to.path());
        write(from, "..1", "key", "first");
        sync(from, to).unwrap();
        assert_eq!(fs::read_to_string(to.join("key")).unwrap(), "first");
        assert_eq!(fs::metadata(to.join("key")).unwrap().mode() & 0o777, 0o440);
        assert!(!changed(from, to).unwrap());
        write(from, "..2", "other", "second");
        fs::remove_dir_all(from.join("..1")).unwrap();
        fs::remove_file(from.join("key")).unwrap();
        assert!(changed(from, to).unwrap());
        sync(from, to).unwrap();
        assert_eq!(fs::read_to_string(to.join("other")).unwrap(), "second");
        assert_eq!(names(to).unwrap(), names(from).unwrap());
    }

    #[test]
    fn volume_that_is_being_changed_is_left_for_the_next_round() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(from.path(), "..1", "key", "first");
        sync(from.path(), to.path()).unwrap();
        fs::remove_file(from.path().join(DATA)).unwrap();
        assert!(changed(from.path(), to.path()).is_err());
        assert_eq!(fs::read_to_string(to.path().join("key")).unwrap(), "first");
    }
}
